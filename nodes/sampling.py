"""Noise levels and scales of a MODEL, how sampling steps are spaced, and the plain run by which results are shown."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .errors import InputError, UnsupportedModelError


def schedule_from(model_sampling, scheduler: str, steps: int, sigma: float) -> Tensor:
    """`steps` steps from sigma down to 0, spaced as the scheduler spaces the whole range; sigma is the first point.

    There are fewer where the scheduler has fewer different noise levels below sigma: 'simple' and others choose among
    the model's own.
    """

    @functools.cache
    def below(total: int) -> Tensor:
        full = comfy.samplers.calculate_sigmas(model_sampling, scheduler, total).cpu().to(torch.float32)
        points = torch.unique_consecutive(full[full < sigma * (1 - 1e-4)])
        # a first step much shorter than the next would be a wasted evaluation
        near = len(points) > 1 and sigma - points[0] < 0.3 * (points[0] - points[1])
        return points[1:] if near else points

    # the share of the schedule that lies below sigma says about how many steps the whole range needs
    total = max(steps, steps * steps // max(1, len(below(steps))) - 1)
    # the smallest total from there on that gives enough, by bisection, for some schedulers are slow
    totals = range(total, max(total, 4 * steps + 1000) + 1)
    enough = bisect.bisect_left(totals, steps, key=lambda total: min(steps, len(below(total))))
    points = below(totals[min(enough, len(totals) - 1)])
    return torch.cat([torch.tensor([sigma]), points[-steps:]])


def sample_euler(
    model: ModelPatcher, noise: Tensor, sigmas: Tensor, positive: list, latent: dict, negative: list | None = None
) -> Tensor:
    """ComfyUI's own euler sampling at guidance 1, from a given noise; the samples in ComfyUI's latent space.

    A noise mask of the latent holds, as it does with ComfyUI's sampler nodes. At guidance 1 only patches of the MODEL
    look at the negative prompt.
    """
    euler = comfy.samplers.sampler_object("euler")
    return comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        euler,
        sigmas,
        positive,
        negative or [],
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
    )


def noise_level(model_sampling, level: float, sigma: float) -> float:
    """Sigma to start at: `sigma` itself, or where it is 0 the one at `level`; refuses what the model does not know."""
    lowest, highest = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    if sigma == 0:
        return sigma_at_level(model_sampling.percent_to_sigma, level, lowest, highest)
    if not lowest <= sigma <= highest:
        msg = (
            f"'sigma' is {sigma:.4g}, outside this model's schedule of {lowest:.4g} to {highest:.4g}. Choose a value"
            " inside it, or 0 to use 'level'."
        )
        raise InputError(msg)
    return sigma


def linear_scale(noise_scaling: Callable[..., Tensor], sigma: float) -> tuple[float, float]:
    """Read (a, b) of x = a x0 + b n from a model's own `noise_scaling(sigma, noise, latent)`.

    Raises:
        UnsupportedModelError: x is not of this form (an offset, or a or b is 0), so Tweedie's formula does not hold.
    """
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    level = torch.tensor([sigma])

    def at(noise: Tensor, latent: Tensor) -> float:
        # some families scale in place, so every call gets its own tensors
        return float(noise_scaling(level, noise.clone(), latent.clone()))

    a, b, offset, both = at(zero, one), at(one, zero), at(zero, zero), at(one, one)
    if abs(offset) > 1e-6 or abs(both - a - b) > 1e-4 * (abs(a) + abs(b)):
        msg = (
            "This model does not noise a picture as 'picture + noise', which the slider's formulas need. "
            "Use an image model of the eps, v or flow kind."
        )
        raise UnsupportedModelError(msg)
    if a <= 1e-6 or b <= 1e-6:
        msg = (
            f"Noise level sigma {sigma:.4g} leaves {'nothing of the picture' if a <= 1e-6 else 'no noise'} in the "
            "latent, so there is nothing to edit at it. Set 'level' further inside 0 to 1; 0.4 to 0.9 is usual."
        )
        raise UnsupportedModelError(msg)
    return a, b


def sigma_at_level(
    percent_to_sigma: Callable[[float], float], level: float, sigma_min: float, sigma_max: float
) -> float:
    """Sigma of noise level f in (0, 1]: `percent_to_sigma(1 - f)`, clamped to the model's range.

    Raises:
        InputError: f is outside (0, 1] or not a number.
    """
    if not (math.isfinite(level) and 0.0 < level <= 1.0):
        msg = (
            f"'level' is {level}, outside the schedule: it is the share of the noise schedule to go back, more than 0 "
            "and at most 1. 0.4 to 0.9 is usual."
        )
        raise InputError(msg)
    return min(max(float(percent_to_sigma(1.0 - level)), sigma_min), sigma_max)


def level_at_sigma(percent_to_sigma: Callable[[float], float], sigma: float) -> float:
    """The noise level f in (0, 1] of a sigma, rounded up to millionths: the reverse of `sigma_at_level`."""
    million = 10**6
    found = bisect.bisect_left(
        range(1, million), sigma * (1 - 1e-6), key=lambda k: float(percent_to_sigma(1 - k / million))
    )
    return (found + 1) / million


def scale_at(model: ModelPatcher, sigma: float) -> tuple[float, float]:
    """(a, b) of the model's noise process x = a x0 + b n at sigma; refuses what is not of this form."""
    return linear_scale(model.get_model_object("model_sampling").noise_scaling, sigma)


def is_flow(model: ModelPatcher) -> bool:
    """Whether the model is a flow model with x = (1 - sigma) x0 + sigma n."""
    a, b = scale_at(model, 0.5)
    return abs(a - 0.5) < 1e-4 and abs(b - 0.5) < 1e-4
