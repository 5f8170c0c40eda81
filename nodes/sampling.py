"""Where a sampling run starts, how its steps are spaced, and the plain run by which results are shown."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.denoiser import sigma_at_level
from ..core.errors import InputError


def schedule_from(model_sampling, scheduler: str, steps: int, sigma: float) -> Tensor:
    """`steps` steps from sigma down to 0, spaced as the scheduler spaces the whole range; sigma is the first point."""

    def below(total: int) -> Tensor:
        full = comfy.samplers.calculate_sigmas(model_sampling, scheduler, total).cpu().to(torch.float32)
        points = full[full < sigma * (1 - 1e-4)]
        # a first step much shorter than the next would be a wasted evaluation
        near = len(points) > 1 and sigma - points[0] < 0.3 * (points[0] - points[1])
        return points[1:] if near else points

    # the share of the schedule that lies below sigma says about how many steps the whole range needs
    total = max(steps, steps * steps // max(1, len(below(steps))) - 1)
    while len(points := below(total)) < steps and total < 4 * steps + 1000:
        total += 1
    return torch.cat([torch.tensor([sigma]), points[-steps:]])


def sample_euler(
    model: ModelPatcher, noise: Tensor, sigmas: Tensor, positive: list, latent: dict, negative: list | None = None
) -> Tensor:
    """ComfyUI's own euler sampling at guidance 1, from a given noise; the samples in ComfyUI's latent space.

    At guidance 1 only patches of the MODEL look at the negative prompt.
    """
    euler = comfy.samplers.sampler_object("euler")
    return comfy.sample.sample_custom(
        model, noise, 1.0, euler, sigmas, positive, negative or [], latent["samples"], disable_pbar=True
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
