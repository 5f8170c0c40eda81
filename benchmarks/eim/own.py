"""Our own methods, in the same form as the peers: (bench, case, **setting) -> edit, and edit(strengths) -> pictures."""

from collections.abc import Sequence

import numpy as np

from benchmarks.eim.peers import Edit
from benchmarks.first import random_like
from benchmarks.portraits import Bench, Case, eight_bit
from latent_directions.nodes.quick import PrepareQuickSlider, QuickSlider

LATENT_ALONE = {"image_share": 1.0, "text_share": 0.0}


def slider(
    bench: Bench,
    case: Case,
    *,
    level: float,
    noise: str,
    method: str = "text",
    keep: bool = False,
    recorded: bool = False,
    **options,
) -> Edit:
    """The pack's own nodes.

    Args:
        bench: the demo model.
        case: what to move.
        level: of Encode Picture.
        noise: its method.
        method: of Find Directions.
        keep: whether the case's own keep prompts are given.
        recorded: whether words are taken on the reference path.
        options: further inputs of Find Directions.
    """
    inversion, sigmas = bench.encode(case, level, noise)
    direction, _ = bench.find(case, inversion, method, keep=case.keep if keep else "", **options)
    return lambda strengths: bench.edit(inversion, sigmas, direction, strengths, recorded=recorded)


def quick_slider(bench: Bench, case: Case, *, level: float, noise: str, keep: bool = False, **options) -> Edit:
    """Prepare Quick Slider, then Quick Slider at every strength.

    Args:
        bench: the demo model.
        case: what to move.
        level: of Encode Picture.
        noise: its method.
        keep: whether the case's own keep prompts are given.
        options: further inputs of Find Directions.
    """
    inversion, sigmas = bench.encode(case, level, noise)
    direction, _ = bench.find(case, inversion, "text", keep=case.keep if keep else "", **options)
    prepared = PrepareQuickSlider.execute(inversion, [direction], sigmas=sigmas).result[0]

    def edit(strengths: Sequence[float]) -> list[np.ndarray]:
        latents = [QuickSlider.execute(inversion, prepared, 0, float(s)).result[0]["samples"] for s in strengths]
        return [eight_bit(bench.vae.decode(one)[0]) for one in latents]

    return edit


def random_direction(bench: Bench, case: Case, *, level: float, noise: str) -> Edit:
    """A random move of the latent, as long as that of HSDS, as the control of all methods that move the latent."""
    inversion, sigmas = bench.encode(case, level, noise)
    direction, _ = bench.find(case, inversion, "HSDS", **LATENT_ALONE)
    seed = sum(case.name.encode())
    return lambda strengths: bench.edit(inversion, sigmas, random_like(direction, seed), strengths)
