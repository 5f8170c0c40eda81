"""Encode: from a clean latent x0 to the noisy latent at sigma*, along the model's own deterministic ODE.

The ODE is dx/dsigma = v(x, sigma) = (x - D(x, sigma)) / sigma for eps, v and flow models alike. All methods walk the
ascending noise levels sigma_1 < ... < sigma_n = sigma* of the sampling schedule, from x0 at sigma = 0, where v is 0/0:
the first step takes D at sigma_1 with x0 as its input and repeats once from where that led (ours).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError


@dataclass(frozen=True)
class InversionMethod:
    """A way up the ODE.

    Attributes:
        step: (velocity, x, sigma, next sigma, v at x or None) -> (next x, v at the next x or None).
        evaluations: model evaluations of one step.
        summary: one sentence for a report.
    """

    step: Callable
    evaluations: int
    summary: str


def _euler(velocity, x, sigma, up, _):
    return x + (up - sigma) * velocity(x, sigma), None


def _heun(velocity, x, sigma, up, _):
    v = velocity(x, sigma)
    return x + (up - sigma) * (v + velocity(x + (up - sigma) * v, up)) / 2, None


def _midpoint(velocity, x, sigma, up, _):
    middle = (sigma + up) / 2
    return x + (up - sigma) * velocity(x + (middle - sigma) * velocity(x, sigma), middle), None


def _fixed_point(velocity, x, sigma, up, v, iterations):
    """Solve x_up = x + (up - sigma) v(x_up, up), which is Euler's sampling step read backwards."""
    for _ in range(iterations):
        # the first guess follows the velocity of the step before, so it costs nothing
        v = velocity(x + (up - sigma) * v, up)
    return x + (up - sigma) * v, v


def _backward(iterations: int):
    return lambda velocity, x, sigma, up, v: _fixed_point(velocity, x, sigma, up, v, iterations)


INVERSIONS = {
    "backward euler": InversionMethod(_backward(1), 1, "each sampling step read backwards, one correction"),
    "backward euler, refined": InversionMethod(_backward(3), 3, "each sampling step read backwards, three corrections"),
    "euler": InversionMethod(_euler, 1, "DDIM / Euler"),
    "heun": InversionMethod(_heun, 2, "second order"),
    "midpoint": InversionMethod(_midpoint, 2, "second order, RF-Solver"),
}


def invert_ode(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: list[float],
    *,
    method: str = "backward euler",
    prompt: str = "source",
    guidance: float = 1.0,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """x at sigma* = sigmas[-1], from x0.

    Args:
        denoiser: the model.
        x0: clean latent (B, C, H, W) in the model's space.
        sigmas: ascending noise levels, all above 0.
        method: a key of INVERSIONS; the cost is its evaluations a step, and 2 for the first.
        prompt: name of the prompt that describes x0.
        guidance: guidance of the predictions.
        on_step: called with (step, steps, prediction) after each step.

    Sources: "euler" is DDIM inversion (arXiv 2010.02502, section 4.3), "midpoint" RF-Solver (arXiv 2411.04746), "heun"
    Heun's method; "backward euler" iterates the implicit equation of the sampling step as ReNoise (arXiv 2403.14602)
    and AIDI do, started from the velocity of the step before so that one evaluation a step is enough (ours).
    """
    return _walk(denoiser, x0, sigmas, INVERSIONS[method].step, prompt, guidance, on_step)


def controlled_inversion(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: list[float],
    noise: Tensor,
    *,
    control: float = 0.5,
    prompt: str = "source",
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Controlled inversion of a flow model: the ODE, pulled towards a given noise (B, C, H, W) by `control` (0 to 1).

    v_c = v + control ((n - x) / (1 - sigma) - v), by Euler's method; one evaluation a step and one more for the first.

    Source: RF inversion (arXiv 2410.10792, eq. 8), with t = 1 - sigma.
    """

    def controlled(velocity, x, sigma, up, _):
        v = velocity(x, sigma)
        return x + (up - sigma) * (v + control * ((noise - x) / (1 - sigma) - v)), None

    return _walk(denoiser, x0, sigmas, controlled, prompt, 1.0, on_step)


def seeded_noise(x0: Tensor, seed: int) -> Tensor:
    """Standard normal noise of x0's shape, drawn on the CPU so that every device gets the same."""
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0)


def _walk(denoiser, x0, sigmas, step, prompt, guidance, on_step) -> Tensor:
    _check_finite(x0)
    predictions: list[Tensor] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        predictions[:] = [denoiser(x, sigma, prompt, guidance)]
        return (x - predictions[0]) / sigma

    def finished(number: int) -> None:
        if on_step is not None:
            on_step(number, len(sigmas), predictions[0])

    v = velocity(x0, sigmas[0])
    v = velocity(x0 + sigmas[0] * v, sigmas[0])
    x = x0 + sigmas[0] * v
    finished(1)
    for i in range(1, len(sigmas)):
        x, v = step(velocity, x, sigmas[i - 1], sigmas[i], v)
        finished(i + 1)
    return x


def _check_finite(x0: Tensor) -> None:
    if not torch.isfinite(x0).all():
        msg = (
            "'latent' holds values that are not numbers (NaN or infinity), so it cannot be inverted. Encode the picture"
            " again."
        )
        raise InputError(msg)
