"""What the Hessian could add to words beyond the methods of Find Directions: forms that only this benchmark has (ours).

Functions (bench, case, **setting) -> edit, as in own.py and peers.py. K = a J = I + b^2 Hessian of log p.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.eim.editor import TARGET, Editor
from benchmarks.eim.peers import Edit
from benchmarks.portraits import Bench, Case
from latent_directions.core.anchor import NoisePaths
from latent_directions.core.denoiser import SOURCE, Denoiser
from latent_directions.core.search import Search

DAMPING = 0.01


def averaged(bench: Bench, case: Case, *, level: float, levels: Sequence[float], draws: int, **options) -> Edit:
    """HSDS with its move of the latent averaged over noise levels and noise draws.

    The moves are averaged in units of x0, d = move / a, and applied from fresh noise at `level`.

    Args:
        bench: the demo model.
        case: what to move.
        level: where sampling starts.
        levels: where directions are looked for, in turn from `draws` noises.
        draws: number of noises.
        options: further inputs of Find Directions.
    """
    inversion, sigmas = bench.encode(case, level, "fresh noise")
    scale = Editor(bench, case).run(lambda denoiser, _: denoiser.scale)
    moves = []
    for one in levels:
        for seed in range(draws):
            found, _ = bench.find(case, bench.encode(case, one, "fresh noise", seed=seed)[0], "HSDS", **options)
            moves.append(found.step * found.latent / scale(found.sigma)[0])
    mean = torch.stack(moves).mean(0) * scale(inversion.sigma)[0]
    direction = replace(found, sigma=inversion.sigma, latent=mean / mean.norm(), step=float(mean.norm()))
    return lambda strengths: bench.edit(inversion, sigmas, direction, strengths)


def words_kept_by_the_hessian(bench: Bench, case: Case, *, level: float, steps: int, hessian: bool) -> Edit:
    """Words compared at every step, from fresh noise; what is to be kept is projected off in the inner product of C.

    q' = q - P (P'C P + DAMPING diag(P'P))^-1 P'C q, P the changes of the keep pairs on the reference path, and
    C = (K + K') / 2 there; without `hessian` C = I, which is the projection of the nodes but for its damping.
    """
    editor = Editor(bench, case)
    sigmas = editor.schedule(level, steps).tolist()

    def on_path(denoiser: Denoiser, x0: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """x_ref, D(x_ref, source), P and C P (pairs, N) at every step."""
        fresh, found = NoisePaths(x0, (0,), fresh=True), []
        for sigma in sigmas[:-1]:
            x = denoiser.noised(x0, fresh.at(sigma)[0], sigma)
            changes = torch.cat([denoiser(x, sigma, one) - denoiser(x, sigma, other) for one, other in editor.keep])
            changes_by_c = symmetrised(denoiser, x, sigma, changes) if hessian else changes
            found.append((x, denoiser(x, sigma), changes.flatten(1), changes_by_c.flatten(1)))
        return found

    path = editor.run(on_path)

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            return torch.cat([sampled(denoiser, x0, float(strength)) for strength in strengths])

        def sampled(denoiser: Denoiser, x0: Tensor, strength: float) -> Tensor:
            moved = torch.zeros_like(x0)
            for (reference, unmoved, p, changes_by_c), sigma, below in zip(path, sigmas, sigmas[1:], strict=False):
                source, target = (denoiser(reference + moved, sigma, name) for name in (SOURCE, TARGET))
                q = (target - source).flatten()
                gram = p @ changes_by_c.T + DAMPING * (p @ p.T).diagonal().diag()
                q = q - torch.linalg.lstsq(gram, (changes_by_c @ q)[:, None]).solution[:, 0] @ p
                a, b = denoiser.scale(sigma)
                a_below, b_below = denoiser.scale(below) if below else (1.0, 0.0)
                change = source - unmoved + strength * q.view_as(x0)
                moved = b_below / b * moved + (a_below - b_below / b * a) * change
            return x0 + moved

        return editor.pictures(editor.run(body))

    return edit


def symmetrised(denoiser: Denoiser, x: Tensor, sigma: float, vectors: Tensor) -> Tensor:
    """(K + K') v / 2 for vectors (p, C, H, W) at x (1, C, H, W), after the self-check of the operator."""
    with Search(denoiser, x, sigma).checked(backward=True) as check:
        a, jacobian = denoiser.scale(sigma)[0], check.jacobian
        return torch.cat([a * (jacobian.matvec(v[None]) + jacobian.rmatvec(v[None])) / 2 for v in vectors])
