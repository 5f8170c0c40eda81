"""What directions change of the model's prediction of an encoded picture, at a noise level."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from ..core.anchor import AnchoredPrediction, NoisePaths, ReferenceCache, moved_noise
from ..core.denoiser import SOURCE, Denoiser
from ..core.direction import Direction, Prompt
from .anchored import without_anchor
from .host import finite, run
from .manipulate import usable, with_slider
from .prompts import holds_prompt, negative_prompt, prompt_name, with_prompt
from .sampling import scale_at
from .sockets import AppliedSlider, Inversion


def predicted_changes(
    inversion: Inversion, directions: Sequence[Direction], strength: float, sigma: float, step: Callable[[], None]
) -> tuple[list[Tensor], dict]:
    """What directions change of the model's prediction of the clean latent, on the way of the encoded picture.

    A move of the noise moves it equally far at every noise level. The picture itself and each prompt are predicted once
    for all directions: a direction that moves the noise takes one more evaluation, one of words its two prompts, and
    every pair that is kept its own two.

    Args:
        inversion: the encoded picture, without sliders.
        directions: any that a slider can run.
        strength: of each.
        sigma: the noise level.
        step: called after each direction.

    Returns:
        For each direction a change (B, C, ..., H, W) in the model's latent space, on the CPU; and the cost.

    Raises:
        InputError: a direction does not fit the picture or its model.
    """
    sliders = [with_slider(inversion, usable(inversion, one), strength).sliders[-1] for one in directions]
    model = without_anchor(inversion.source_model)
    prompts = {SOURCE: inversion.positive} | negative_prompt(model, 1.0, inversion.negative or None)
    moves = [_moves(inversion, slider, prompts) for slider in sliders]

    def body(denoiser: Denoiser, x0: Tensor) -> list[Tensor]:
        found, paths, cache = [], NoisePaths(inversion.paths.at(sigma)[0]), ReferenceCache()
        for own in moves:
            predict = AnchoredPrediction(x0, paths, denoiser.noised, own, cache=cache)
            x = denoiser.noised(x0, moved_noise(predict.noise, own, inversion.scale[1]), sigma)
            found.append(finite(predict(x, sigma, denoiser.predictions) - x0).float().cpu())
            step()
        return found

    return run(model, prompts, inversion.latent, inversion.sigma, body)


def _moves(inversion: Inversion, slider: AppliedSlider, prompts: dict[str, list]) -> tuple:
    """The moves of a slider; the prompts that they ask for are added to `prompts`, by the names that they ask with."""

    def name_of(prompt: Prompt) -> str:
        if holds_prompt(inversion.positive, prompt):
            return SOURCE
        name = prompt_name(prompt)
        prompts[name] = with_prompt(inversion.positive, prompt)
        return name

    direction = slider.direction.at(inversion.sigma, functools.partial(scale_at, inversion.source_model))
    return direction.moves(slider.strength, name_of, mask=slider.mask)
