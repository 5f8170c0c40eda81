"""Encode: from a clean latent x0 to the noisy latent at sigma*, along the model's own deterministic ODE.

With x = a x0 + b n a step of the ODE from level i to level j keeps what the model takes for picture and noise at x,
D = D(x, sigma_i) and n = (x - a_i D) / b_i, and changes their amounts:
    x_j = x + (a_j - a_i) D + (b_j - b_i) n = r x + g D,    r = b_j / b_i,  g = a_j - r a_i,
for any noise scale a, b: Euler's method for eps, v and flow models, DDIM for variance-preserving ones.
All methods walk the ascending noise levels sigma_1 < ... < sigma_n = sigma* of the sampling schedule. The sampling
step that ends at the picture is x0 = D(x_1): the first step up solves it for x_1, by x <- x + x0 - D(x), twice from x0
(ours).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import SOURCE, Denoiser
from .errors import LatentNotFiniteError, NoiseLevelsError, NotFiniteError, UnknownNameError


class Split(NamedTuple):
    """What the model takes for picture and for noise at a point x = a D + b n."""

    denoised: Tensor
    noise: Tensor


class _Steps:
    """Predictions and steps of one walk up the noise levels; keeps the latest prediction for previews."""

    def __init__(self, denoiser: Denoiser, prompt: str, guidance: float):
        self.denoiser, self.prompt, self.guidance = denoiser, prompt, guidance
        self.latest: Tensor | None = None

    def split(self, x: Tensor, sigma: float) -> Split:
        a, b = self.denoiser.scale(sigma)
        self.latest = self.denoiser(x, sigma, self.prompt, self.guidance)
        return Split(self.latest, (x - a * self.latest) / b)

    def step(self, x: Tensor, split: Split, sigma: float, up: float) -> Tensor:
        """x + (a_up - a) D + (b_up - b) n."""
        (a, b), (a_up, b_up) = self.denoiser.scale(sigma), self.denoiser.scale(up)
        return x + (a_up - a) * split.denoised + (b_up - b) * split.noise


@dataclass(frozen=True)
class InversionMethod:
    """A method of walking up the ODE.

    Attributes:
        step: (steps, x, sigma, next sigma, latest split) -> (next x, its split or None).
        evaluations: model evaluations of one step.
    """

    step: Callable[[_Steps, Tensor, float, float, Split | None], tuple[Tensor, Split | None]]
    evaluations: int


def _euler(steps, x, sigma, up, _):
    return steps.step(x, steps.split(x, sigma), sigma, up), None


def _heun(steps, x, sigma, up, _):
    here = steps.split(x, sigma)
    there = steps.split(steps.step(x, here, sigma, up), up)
    mean = Split(*((p + q) / 2 for p, q in zip(here, there, strict=True)))
    return steps.step(x, mean, sigma, up), None


def _midpoint(steps, x, sigma, up, _):
    middle = (sigma + up) / 2
    at_middle = steps.step(x, steps.split(x, sigma), sigma, middle)
    return steps.step(x, steps.split(at_middle, middle), sigma, up), None


def _backward_euler(iterations: int):
    """Solve x = r y + g D(y), the sampling step from y at `up` down to x, by y <- y + x - r y - g D(y)."""

    def step(steps, x, sigma, up, latest):
        y = steps.step(x, latest, sigma, up)  # the first guess goes by the prediction of the step before: no cost
        for _ in range(iterations):
            latest = steps.split(y, up)
            y = steps.step(x, latest, sigma, up)  # y + x - r y - g D(y), with y = a D(y) + b n there
        return y, latest

    return step


INVERSIONS = {
    "backward euler": InversionMethod(_backward_euler(1), 1),
    "backward euler, refined": InversionMethod(_backward_euler(3), 3),
    "euler": InversionMethod(_euler, 1),
    "heun": InversionMethod(_heun, 2),
    "midpoint": InversionMethod(_midpoint, 2),
}


def invert(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: list[float],
    *,
    method: str = "backward euler",
    prompt: str = SOURCE,
    guidance: float = 1.0,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """x at sigma* = sigmas[-1], from x0.

    Args:
        denoiser: the model.
        x0: clean latent (B, C, H, W) in the model's space.
        sigmas: ascending noise levels, with b > 0 at all of them. "midpoint" asks the model at levels between them too.
        method: a key of INVERSIONS; the cost is its evaluations a step, and 2 for the first.
        prompt: name of the prompt that describes x0.
        guidance: guidance of the predictions.
        on_step: called with (step, steps, prediction) after each step.

    Sources: "euler" is DDIM inversion (arXiv 2010.02502, section 4.3), "midpoint" RF-Solver (arXiv 2411.04746), "heun"
    Heun's method; "backward euler" iterates the implicit equation of the sampling step as ReNoise (arXiv 2403.14602)
    and AIDI do, started from the prediction of the step before so that one evaluation a step is enough (ours).

    Raises:
        LatentNotFiniteError: x0 holds values that are not numbers.
        NoiseLevelsError: there are no levels, they descend somewhere, or b is 0 at the first.
        NotFiniteError: the model predicts values that are not numbers.
        UnknownNameError: there is no such method.
    """
    if method not in INVERSIONS:
        msg = f"There is no inversion method {method!r}. The methods are: {', '.join(INVERSIONS)}."
        raise UnknownNameError(msg)
    return _walk(_Steps(denoiser, prompt, guidance), x0, sigmas, INVERSIONS[method].step, on_step)


def controlled_inversion(
    denoiser: Denoiser,
    x0: Tensor,
    sigmas: list[float],
    noise: Tensor,
    *,
    control: float = 0.5,
    prompt: str = SOURCE,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Controlled inversion of a flow model: the ODE, pulled towards a given noise (B, C, H, W) by `control` (0 to 1).

    v_c = v + control ((n - x) / (1 - t) - v) with v = dx/dt and t = sigma, by Euler's method; one evaluation a step
    and one more for the first.

    Source: RF inversion (arXiv 2410.10792, eq. 8).

    Raises:
        LatentNotFiniteError: x0 holds values that are not numbers.
    """

    def controlled(steps, x, sigma, up, _):
        denoised, own_noise = steps.split(x, sigma)
        v = own_noise - denoised
        return x + (up - sigma) * (v + control * ((noise - x) / (1 - sigma) - v)), None

    return _walk(_Steps(denoiser, prompt, 1.0), x0, sigmas, controlled, on_step)


def seeded_noise(x0: Tensor, seed: int) -> Tensor:
    """Standard normal noise of x0's shape, drawn on the CPU so that every device gets the same."""
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0)


@torch.no_grad()
def _walk(steps, x0, sigmas, step, on_step) -> Tensor:
    if not torch.isfinite(x0).all():
        msg = "The picture's latent holds values that are not numbers (NaN or infinity), so it cannot be inverted."
        raise LatentNotFiniteError(msg)

    if not sigmas:
        msg = "An inversion needs at least one noise level, but there are none."
        raise NoiseLevelsError(msg)
    for sigma, up in zip(sigmas, sigmas[1:], strict=False):
        if up < sigma:  # levels may repeat, as those of schedules of many steps do
            msg = f"The noise levels of an inversion must ascend, but {up:.4g} comes after {sigma:.4g}."
            raise NoiseLevelsError(msg)
    if not steps.denoiser.scale(sigmas[0])[1] > 0:
        msg = f"There is no noise at the first level {sigmas[0]:.4g}, where an inversion cannot start."
        raise NoiseLevelsError(msg)

    def finished(number: int) -> None:
        if on_step is not None:
            on_step(number, len(sigmas), steps.latest)

    x = x0
    for _ in range(2):
        latest = steps.split(x, sigmas[0])
        x = x + x0 - latest.denoised
    finished(1)
    for i in range(1, len(sigmas)):
        x, latest = step(steps, x, sigmas[i - 1], sigmas[i], latest)
        finished(i + 1)
    if not torch.isfinite(x).all():
        msg = "The model predicts values that are not numbers (NaN or infinity) on the way to the noise level."
        raise NotFiniteError(msg)
    return x
