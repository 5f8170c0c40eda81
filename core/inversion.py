"""Encode: from a clean latent x0 to the noisy latent at sigma*, along the model's own deterministic ODE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError


def invert_ode(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: list[float],
    *,
    prompt: str = "source",
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Euler's method up the ODE dx/dsigma = (x - D) / sigma, from x0 to sigmas[-1].

    Args:
        denoiser: the model.
        x0: clean latent (B, C, H, W) in the model's space.
        sigmas: ascending noise levels, all above 0; the last is sigma*.
        prompt: name of the prompt that describes x0.
        on_step: called with (step, steps, prediction) after each step.

    Returns:
        x at sigmas[-1]; costs one evaluation a step and one more for the first.

    At sigma = 0 the right-hand side is 0/0. The first step takes D at sigmas[0] with x0 as its input and repeats once
    from where that led (an implicit Euler step by fixed point).

    Source: DDIM inversion (Song et al., arXiv 2010.02502, section 4.3); for flow models the same ODE. First step: ours.
    """
    if not torch.isfinite(x0).all():
        msg = (
            "'latent' holds values that are not numbers (NaN or infinity), so it cannot be inverted. Encode the picture"
            " again."
        )
        raise InputError(msg)
    x = x0
    for _ in range(2):
        prediction = denoiser(x, sigmas[0], prompt)
        # x0 + sigma (x - D) / sigma
        x = x0 + (x - prediction)
    if on_step is not None:
        on_step(1, len(sigmas), prediction)
    for i in range(1, len(sigmas)):
        prediction = denoiser(x, sigmas[i - 1], prompt)
        x = x + (sigmas[i] - sigmas[i - 1]) * (x - prediction) / sigmas[i - 1]
        if on_step is not None:
            on_step(i + 1, len(sigmas), prediction)
    return x


def seeded_noise(x0: Tensor, seed: int) -> Tensor:
    """Standard normal noise of x0's shape, drawn on the CPU so that every device gets the same."""
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0)
