"""The published methods as sliders. D is the denoised prediction, v = (x - D) / sigma the velocity of the flow model.

Each is a function (bench, case, **setting) -> edit, and edit(strengths) -> 8-bit pictures. What does not depend on
the strength is computed before, once. Noise is drawn by fixed seeds.

Signed where there is a natural slider: guidance or a coefficient may be negative, and methods that compare two branches
exchange their prompts. SDEdit and RF inversion have none.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.eim.editor import EMPTY, TARGET, Editor, euler, guided, per_sample, step_noise
from benchmarks.portraits import Bench, Case
from latent_directions.core.denoiser import SOURCE, Denoiser
from latent_directions.core.inversion import controlled_inversion, invert, seeded_noise
from latent_directions.core.linalg import orthonormal_span, project_off

POOLED = "pooled_output"  # ComfyUI's name of the pooled vector
Edit = Callable[[Sequence[float]], list[np.ndarray]]


def prompt_swap(bench: Bench, case: Case, *, level: float, steps: int, slope: float = 1.0) -> Edit:
    """Prompt swap on the inverted latent (DDIM inversion, arXiv 2010.02502): invert by the source prompt, sample.

    Strength is ComfyUI's guidance with the source prompt as the negative one, times `slope`: at 0 the source prompt is
    sampled, which is the reconstruction, at 1/slope the target prompt alone.
    """
    editor = Editor(bench, case)
    sigmas = editor.schedule(level, steps)
    start = editor.inverted(sigmas)

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            guidance = per_sample(slope * np.asarray(strengths), x0)
            x = start.expand(len(strengths), *start.shape[1:])
            return euler(lambda x, sigma: guided(denoiser, x, sigma, TARGET, guidance, SOURCE), x, sigmas)

        return editor.pictures(editor.run(body))

    return edit


def embedding_interpolation(bench: Bench, case: Case, *, level: float, steps: int, slope: float = 1.0) -> Edit:
    """Interpolation of the embedding, c_s + s (c_t - c_s), pooled vector included, from the inverted latent."""
    editor = Editor(bench, case)
    sigmas = editor.schedule(level, steps)
    start = editor.inverted(sigmas)
    (source, of_source), (target, of_target) = (editor.prompts[name][0] for name in (SOURCE, TARGET))

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        shares = [slope * float(strength) for strength in strengths]
        tokens = torch.cat([source + share * (target - source) for share in shares])
        pooled, change = of_source[POOLED], of_target[POOLED] - of_source[POOLED]
        entry = {**of_source, POOLED: torch.cat([pooled + share * change for share in shares])}

        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            x = start.expand(len(strengths), *start.shape[1:])
            return euler(lambda x, sigma: denoiser(x, sigma, "moved"), x, sigmas)

        return editor.pictures(editor.run(body, {"moved": [[tokens, entry]]}))

    return edit


def sdedit(bench: Bench, case: Case, *, top: float, steps: int, guidance: float = 1.0) -> Edit:
    """SDEdit (arXiv 2108.01073): noise the picture to a level, sample the target prompt from there.

    Strength 3 noises to `top`, a share of the schedule, in `steps` steps; lower strengths to a level in proportion, in
    as many steps as that takes.
    """
    editor = Editor(bench, case)

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            return torch.cat([sampled(denoiser, x0, float(strength) / 3) for strength in strengths])

        def sampled(denoiser: Denoiser, x0: Tensor, share: float) -> Tensor:
            if share <= 0:
                return x0
            sigmas = editor.schedule(share * top, max(2, round(share * steps)))
            x = denoiser.noised(x0, step_noise(x0, 0), float(sigmas[0]))
            return euler(lambda x, sigma: guided(denoiser, x, sigma, TARGET, guidance), x, sigmas)

        return editor.pictures(editor.run(body))

    return edit


def _both_ways(x0: Tensor, strengths: Sequence[float], edited: Callable[[np.ndarray, str, str], Tensor]) -> Tensor:
    """Latents (strengths, C, H, W) of edits whose negative strengths exchange the prompts; at 0 it is x0 (1, C, H, W).

    `edited` takes the sizes of the strengths of one sign, and the prompts to go towards and away from.
    """
    s = np.asarray(strengths, dtype=float)
    z = x0.repeat(len(s), 1, 1, 1)
    for sign, towards, away in ((1, TARGET, SOURCE), (-1, SOURCE, TARGET)):
        of_sign = np.sign(s) == sign
        if of_sign.any():
            z[of_sign] = edited(np.abs(s[of_sign]), towards, away)
    return z


def flowedit(
    bench: Bench,
    case: Case,
    *,
    level: float,
    steps: int,
    source_guidance: float = 1.0,
    base: float = 1.0,
    slope: float = 1.0,
    keep: bool = False,
) -> Edit:
    """FlowEdit (arXiv 2412.08629, algorithm 1 with n_avg = 1 and n_min = 0); `level` is its n_max over all its steps.

    z <- z + (sigma' - sigma) [v(z + x_src - x0, target) - v(x_src, source)], x_src = (1 - sigma) x0 + sigma n with n
    drawn anew at every step. Strength s is target guidance base + slope |s|; negative ones exchange the prompts; at 0
    the picture is given back. With `keep` (ours) the changes of prediction at x_src between the two prompts of each
    keep pair are projected off the difference at every step.
    """
    editor = Editor(bench, case)
    sigmas = [float(s) for s in editor.schedule(level, steps)]

    def on_path(denoiser: Denoiser, x0: Tensor) -> list[tuple[Tensor, dict[str, Tensor], Tensor | None]]:
        """x_src, both prompts' predictions there, and the basis of what to keep, at every step."""
        found = []
        for i, sigma in enumerate(sigmas[:-1]):
            x = denoiser.noised(x0, step_noise(x0, i), sigma)
            predictions = {name: guided(denoiser, x, sigma, name, source_guidance) for name in (SOURCE, TARGET)}
            kept = [denoiser(x, sigma, one) - denoiser(x, sigma, other) for one, other in editor.keep] if keep else []
            found.append((x, predictions, orthonormal_span(kept) if kept else None))
        return found

    path = editor.run(on_path)

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            return _both_ways(x0, strengths, lambda sizes, *prompts: walk(denoiser, x0, base + slope * sizes, *prompts))

        def walk(denoiser: Denoiser, x0: Tensor, guidance: np.ndarray, towards: str, away: str) -> Tensor:
            z, guidance = x0.repeat(len(guidance), 1, 1, 1), per_sample(guidance, x0)
            for i, (sigma, below) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
                x_source, on_source, kept = path[i]
                change = guided(denoiser, z + x_source - x0, sigma, towards, guidance) - on_source[away]
                change = change if kept is None else project_off(change, kept)
                z = z + (below - sigma) * ((z - x0) - change) / sigma
            return z

        return editor.pictures(editor.run(body))

    return edit


def rf_inversion(
    bench: Bench,
    case: Case,
    *,
    steps: int,
    by: str,
    gamma: float = 0.5,
    eta: float = 1.0,
    slope: float = 0.3,
    guidance: float = 1.0,
) -> Edit:
    """RF inversion (arXiv 2410.10792): controlled inversion to noise, controlled sampling under the target prompt.

    Sampling follows v + eta (v(x | x0) - v) with v(x | x0) = (x - x0) / sigma, so D' = (1 - eta) D + eta x0. Strength s
    takes `slope` s off eta at all steps (by "eta"), or leaves that share of the schedule, its lower noise levels,
    without control (by "stop": the paper controls the first steps only). At strength 0 and eta 1 it gives the picture.
    """
    editor = Editor(bench, case)
    sigmas = editor.schedule(1.0, steps)
    ascending = [float(s) for s in sigmas.flip(0) if s > 0]
    start = editor.run(
        lambda denoiser, x0: controlled_inversion(denoiser, x0, ascending, seeded_noise(x0, 0), control=gamma)
    )

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        freed = slope * np.asarray(strengths, dtype=float)
        stops = [editor.sigma(min(share, 1.0)) if share > 0 else 0.0 for share in freed]

        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            def predict(x: Tensor, sigma: float) -> Tensor:
                control = eta - freed if by == "eta" else np.where(sigma > np.array(stops), eta, 0.0)
                control = per_sample(control.clip(0, 1), x0)
                return control * x0 + (1 - control) * guided(denoiser, x, sigma, TARGET, guidance)

            return euler(predict, start.expand(len(strengths), *start.shape[1:]), sigmas)

        return editor.pictures(editor.run(body))

    return edit


def semantic_guidance(
    bench: Bench,
    case: Case,
    *,
    level: float,
    steps: int,
    slope: float,
    quantile: float,
    warm_up: float = 0.0,
    concept: str = "phrase",
) -> Edit:
    """Semantic guidance (SEGA, arXiv 2301.12247) with the implicit mask and perfect inversion of LEDITS++ (2311.16711).

    D' = D(x, source) + r + s slope M psi. psi is the difference between the edit's concept and the prompt without it:
    the attribute's phrase against the empty prompt, or target against source. M is 1 where |psi|, summed over the
    channels, is in its upper 1 - `quantile`. r = x0 - D(x_ref, source) is what the inversion's path leaves over, so
    that strength 0 gives the picture back. No edit in the first `warm_up` share of the steps.
    """
    editor = Editor(bench, case, {"phrase": case.phrase})
    towards, away = ("phrase", EMPTY) if concept == "phrase" else (TARGET, SOURCE)
    sigmas = editor.schedule(level, steps)
    levels = [float(s) for s in sigmas[:-1]]
    first_edited = levels[min(round(warm_up * steps), len(levels) - 1)]

    def on_path(denoiser: Denoiser, x0: Tensor) -> tuple[Tensor, dict[float, Tensor]]:
        """The inverted latent, and what is left over at every level of its path."""
        start = invert(denoiser, x0, levels[::-1])
        noise = denoiser.noise_of(start, x0, levels[0])
        return start, {sigma: x0 - denoiser(denoiser.noised(x0, noise, sigma), sigma) for sigma in levels}

    start, left_over = editor.run(on_path)

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            scale = per_sample(slope * np.asarray(strengths), x0)

            def predict(x: Tensor, sigma: float) -> Tensor:
                source = denoiser(x, sigma)
                if sigma > first_edited:
                    return source + left_over[sigma]
                without = source if away == SOURCE else denoiser(x, sigma, away)
                change = denoiser(x, sigma, towards) - without
                size = change.abs().sum(1, keepdim=True)
                threshold = size.flatten(1).quantile(quantile, dim=1).view(-1, 1, 1, 1)
                return source + left_over[sigma] + scale * (size >= threshold) * change

            return euler(predict, start.expand(len(strengths), *start.shape[1:]), sigmas)

        return editor.pictures(editor.run(body))

    return edit


def dds(
    bench: Bench,
    case: Case,
    *,
    steps: int,
    rate: float,
    guidance: float = 1.0,
    bottom: float = 0.1,
    top: float = 0.9,
) -> Edit:
    """Delta denoising score (arXiv 2304.07090): gradient steps on the clean latent by the paired noise difference.

    z <- z - rate |s| [eps(a z + b n, target) - eps(a x0 + b n, source)], both guided alike, the level uniform in the
    schedule's shares `bottom` to `top`, level and noise drawn anew at every step. Negative strengths exchange the
    prompts.
    """
    editor = Editor(bench, case)
    shares = np.random.default_rng(0).uniform(bottom, top, steps)
    levels = [editor.sigma(float(share)) for share in shares]

    def on_path(denoiser: Denoiser, x0: Tensor) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The picture's noisy latent and both prompts' predictions there, at every step."""
        noisy = [denoiser.noised(x0, step_noise(x0, i), sigma) for i, sigma in enumerate(levels)]
        return [
            (x, {name: guided(denoiser, x, sigma, name, guidance) for name in (SOURCE, TARGET)})
            for x, sigma in zip(noisy, levels, strict=True)
        ]

    path = editor.run(on_path)

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            return _both_ways(x0, strengths, lambda sizes, *prompts: descended(denoiser, x0, rate * sizes, *prompts))

        def descended(denoiser: Denoiser, x0: Tensor, rates: np.ndarray, towards: str, away: str) -> Tensor:
            z, rates = x0.repeat(len(rates), 1, 1, 1), per_sample(rates, x0)
            for sigma, (x_source, on_source) in zip(levels, path, strict=True):
                a, b = denoiser.scale(sigma)
                x = x_source + a * (z - x0)
                change = guided(denoiser, x, sigma, towards, guidance) - on_source[away]
                z = z - rates * a / b * ((z - x0) - change)  # eps = (x - a D) / b
            return z

        return editor.pictures(editor.run(body))

    return edit
