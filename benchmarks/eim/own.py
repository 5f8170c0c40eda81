"""Our own methods, in the same form as the peers: (bench, case, **setting) -> edit, and edit(strengths) -> pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.eim.editor import TARGET, Editor, euler
from benchmarks.eim.peers import Edit
from benchmarks.portraits import Bench, Case
from latent_directions.core.anchor import AnchoredPrediction, NoisePaths, PredictionMove, ReferenceCache
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.inversion import invert


def slider(bench: Bench, case: Case, *, method: str, level: float, keep: bool = False) -> Edit:
    """The pack's own Find Directions and Direction Slider."""
    inversion, sigmas = bench.encode(case, level)
    direction, _ = bench.find(case, inversion, method, keep=case.keep if keep else "")
    return lambda strengths: bench.edit(inversion, sigmas, direction, strengths)


def words_live(bench: Bench, case: Case, *, level: float, steps: int, keep: bool = False) -> Edit:
    """The difference of the two prompts added to the anchored prediction (core/anchor.py), from the inverted noise."""
    editor = Editor(bench, case)
    sigmas = editor.schedule(level, steps)
    top, ascending = float(sigmas[0]), [float(s) for s in sigmas.flip(0) if s > 0]
    noise = editor.run(lambda denoiser, x0: denoiser.noise_of(invert(denoiser, x0, ascending), x0, top))
    cache = ReferenceCache()

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def sampled(denoiser: Denoiser, x0: Tensor, strength: float) -> Tensor:
            move = PredictionMove(strength=strength, keep=editor.keep if keep else (), towards=TARGET)
            anchored = AnchoredPrediction(x0, NoisePaths(noise), denoiser.noised, (move,), cache=cache)
            return euler(lambda x, sigma: anchored(x, sigma, denoiser.predictions), anchored.reference(top), sigmas)

        return editor.pictures(
            editor.run(lambda denoiser, x0: torch.cat([sampled(denoiser, x0, float(s)) for s in strengths]))
        )

    return edit
