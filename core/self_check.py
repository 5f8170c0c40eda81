"""The self-check of a Jacobian before it is trusted, and the choice of the way in which its products are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CachedModelError, DerivativeError
from .operators import DIFFERENCE_STEP, DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD, Jacobian, Probe

# Largest relative disagreement that still counts as the same product.
AGREEMENT = 1e-2
# The same where a model computes in half precision: its central differences resolve no more.
ROUNDED_AGREEMENT = 0.08
# Largest relative disagreement of two central differences that are used for want of a better product, and of a
# prediction without rounded layers to the sampled one.
ROUGH_AGREEMENT = 0.1
# The same of a one-sided difference. Along leading singular vectors, where the model bends most, it is a few times less
# precise than for the random vector of the check.
ONE_SIDED_AGREEMENT = 0.03
DIFFERENCE_STEPS = (DIFFERENCE_STEP, 4 * DIFFERENCE_STEP, 16 * DIFFERENCE_STEP)
ASKED_FOR = "this was asked for"
PASSED = "Derivatives passed their self-check."
# What code that cannot be differentiated raises; a cancel is none of these.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError)


@dataclass(frozen=True)
class SelfCheck:
    """What the self-check measured.

    Attributes:
        repeat: relative difference of two equal calls.
        difference: of the forward product to central differences, relative; None where there is none but those.
        adjoint: |<Jv, Jv> - <v, J'Jv>| / |J'Jv|; None where no backward pass was asked for, or it failed.
        way: how forward products are taken from here on.
        reverse: whether backward products can be trusted.
        sentence: the outcome in words.
        evaluations: what it took.
        probe: the products that it took, for searches to start from.
    """

    repeat: float
    difference: float | None
    adjoint: float | None
    way: str
    reverse: bool
    sentence: str
    evaluations: int
    probe: Probe

    def report(self) -> dict:
        """What goes into a report."""
        return {key: value for key, value in vars(self).items() if key != "probe"}


def self_check(jacobian: Jacobian, seed: int = 0, reverse: bool = True) -> SelfCheck:
    """Test an operator before it is trusted; 10 evaluations where all is well.

    Calls that must be equal and run the whole network, forward products against central differences, and, with
    `reverse`, the adjoint identity at u = Jv, where a wrong adjoint cannot hide behind a small inner product. As v is
    random with norm sqrt(N), <v, e> is about as large as an error e of J'u, so its share of |J'u| is a relative error.
    Where forward AD fails, `jacobian.way` is from here on the next that passes: double backward (only with `reverse`,
    for it needs as much memory), or central differences. Where the backward pass fails, `reverse` of the result is
    False.

    Raises:
        DerivativeError: the model is not repeatable, or too rough.
        CachedModelError: it does not run its network when it is asked.
    """
    v, before = at_every_scale(jacobian.x, seed), jacobian.denoiser.counter.evaluations
    repeat = _check_repeat(jacobian)
    product, difference, sentence = _check_forward(jacobian, v, reverse)
    adjoint, back, failure = _check_adjoint(jacobian, v, product) if reverse else (None, None, "")
    jacobian.predict(-jacobian.x)  # far from x, where a cache that goes by similarity runs the layers it left out
    rounded = jacobian.way != DIFFERENCES and PASSED not in sentence
    tolerance = ROUNDED_AGREEMENT if rounded else AGREEMENT
    works = adjoint is not None and adjoint <= tolerance
    if reverse and not works:
        failure = failure or f"adjoint error {adjoint:.1e}"
        sentence += f" Backward products failed their self-check ({failure}) and are not used."
    if not works and jacobian.way != DOUBLE_BACKWARD:
        jacobian.release()
    tolerance = ROUGH_AGREEMENT if jacobian.way == DIFFERENCES else tolerance
    probe = Probe(v, product, back if works else None, tolerance)
    evaluations = jacobian.denoiser.counter.evaluations - before
    return SelfCheck(repeat, difference, adjoint, jacobian.way, works, sentence, evaluations, probe)


def at_every_scale(like: Tensor, seed: int) -> Tensor:
    """A seeded random tensor shaped as `like` (1, C, ..., H, W), of norm sqrt(N), to test products with.

    The sum, with equal energy, of noise of one cell, of 2 a side, of 4 and so on up to single pixels: white noise has
    next to nothing in the lowest frequencies of a large picture, where a fault would not be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    *batch, height, width = like.shape
    total, side = torch.zeros(like.shape), 1
    while side < 2 * max(height, width):
        size = min(side, height), min(side, width)
        cells = torch.randn(1, math.prod(batch), *size, generator=generator)
        layer = torch.nn.functional.interpolate(cells, size=(height, width)).view(like.shape)
        total, side = total + layer / layer.norm(), 2 * side
    return (total * (total.numel() ** 0.5 / total.norm())).to(like)


def _check_repeat(jacobian: Jacobian) -> float:
    """Relative difference of two equal calls."""
    answers = [jacobian.predict(jacobian.x) for _ in range(2)]
    if not torch.isfinite(answers[0]).all():
        msg = (
            "The model's prediction is not a finite number. Run the model in a higher precision (start ComfyUI with"
            " --fp32-unet, say)."
        )
        raise DerivativeError(msg)
    repeat = _relative(*answers)
    if not repeat <= 1e-5:
        msg = (
            f"The model gives different answers to the same question (relative difference {repeat:.1e}), so its "
            "derivatives mean nothing. Remove nodes that add randomness to the MODEL."
        )
        raise DerivativeError(msg)
    jacobian.value = answers[0]
    return repeat


def _check_forward(jacobian: Jacobian, v: Tensor, reverse: bool) -> tuple[Tensor, float | None, str]:
    """A trusted J v, the relative difference to central differences, and a sentence; sets the way and the steps."""
    asked, reasons, error = jacobian.way, [], None
    differences = _Differences(jacobian, v)
    for way in _exact_ways(asked, reverse):
        jacobian.way = way
        try:
            product = jacobian.matvec(v)
        except CachedModelError:
            raise
        except FAILURES as failure:
            jacobian.release()
            reasons.append(f"{way} failed ({_in_words(failure)})")
            if isinstance(failure, torch.cuda.OutOfMemoryError):
                break  # what is left to try needs more
            continue
        error, sentence = _judge(jacobian, product, differences)
        if sentence:
            jacobian.one_sided_step = differences.best_one_sided(product)
            other = "" if way == asked else f"Forward products are taken by {way}, because {' and '.join(reasons)}. "
            return product, error, other + sentence
        jacobian.release()
        reasons.append(f"{way} disagreed with central differences by {error:.1e}")
    jacobian.way = DIFFERENCES
    reason = " and ".join(reasons) or ASKED_FOR
    product = differences.best(reason)
    jacobian.one_sided_step = differences.best_one_sided(product)
    return product, error, f"Forward products are central differences, because {reason}."


def _exact_ways(asked: str, reverse: bool) -> list[str]:
    """The ways to try before central differences, the one that was asked for first."""
    if asked == FORWARD_AD and reverse:
        return [FORWARD_AD, DOUBLE_BACKWARD]
    return [] if asked == DIFFERENCES else [asked]


class _Differences:
    """Central differences of J v at growing steps, taken when they are needed."""

    def __init__(self, jacobian: Jacobian, v: Tensor):
        self.jacobian, self.v = jacobian, v
        self.estimates: list[Tensor] = []
        self.one_sided: list[Tensor] = []

    def _at(self, number: int) -> Tensor:
        while len(self.estimates) <= number:
            self.jacobian.difference_step = DIFFERENCE_STEPS[len(self.estimates)]
            product, ahead, h = self.jacobian.difference(self.v, self.jacobian.difference_step)
            self.estimates.append(product)
            self.one_sided.append((ahead - self.jacobian.value) / h)
        return self.estimates[number]

    def best_one_sided(self, product: Tensor) -> float | None:
        """The step at which a one-sided difference is nearest to a trusted product, None where all are too rough."""
        errors = [_relative(estimate, product) for estimate in self.one_sided]
        least = min(errors)
        return DIFFERENCE_STEPS[errors.index(least)] if least <= ONE_SIDED_AGREEMENT else None

    def error_of(self, product: Tensor) -> float:
        """Relative error of a product: the smallest over steps, up to the first that confirms it.

        A right product agrees with a difference at some step, whatever the model's curvature; a wrong one at none.
        """
        error = math.inf
        for number in range(len(DIFFERENCE_STEPS)):
            error = min(error, _relative(product, self._at(number)))
            if error <= AGREEMENT:
                break
        return error

    def _changes(self) -> list[float]:
        """Relative changes from one step to the next."""
        return [_relative(self._at(i), self._at(i + 1)) for i in range(len(DIFFERENCE_STEPS) - 1)]

    @property
    def rounded(self) -> bool:
        """Whether rounding dominates the error: it falls with the step, curvature's part grows."""
        small, large = self._changes()
        return small > large

    def common_error(self, product: Tensor) -> float:
        """Relative error of a product by two noisy differences d = J v + n, whose rounding errors n are independent.

        <d1 - w, d2 - w> has the mean |J v - w|^2: the noise drops out of it, so far smaller errors of w can be seen.
        """
        first, second = (estimate - product for estimate in self.estimates[-2:])
        return float((first * second).sum().abs().sqrt() / product.norm())

    def best(self, reason: str) -> Tensor:
        """The difference whose result changes least to the next one; its step is the operator's from here on.

        Raises:
            DerivativeError: the differences disagree at every step.
        """
        changes = self._changes()
        number = min(range(len(changes)), key=changes.__getitem__)
        if not changes[number] <= ROUGH_AGREEMENT:
            exact = "Set 'derivatives' to 'automatic', or use" if reason == ASKED_FOR else "Use"
            msg = (
                f"No derivative of this model can be trusted: {reason}, and central differences disagree among"
                f" themselves by {changes[number]:.1e}. {exact} the method 'text', which needs none."
            )
            raise DerivativeError(msg)
        number += self.rounded
        self.jacobian.difference_step = DIFFERENCE_STEPS[number]
        return self._at(number)


def _judge(jacobian: Jacobian, product: Tensor, differences: _Differences) -> tuple[float, str]:
    """Relative error of a product by central differences, and a sentence if it can be trusted, empty if not."""
    error = differences.error_of(product)
    if error <= AGREEMENT:
        return error, PASSED
    if not differences.rounded:
        return error, ""
    error = min(error, differences.common_error(product))
    if error <= ROUNDED_AGREEMENT:
        return error, (
            f"Derivatives passed their self-check to within {error:.0e}, which is as far as the model's own rounding "
            "lets it see."
        )
    exact, distance = _judge_unrounded(jacobian, product, differences.v)
    if exact <= ROUNDED_AGREEMENT and distance <= ROUGH_AGREEMENT:
        return exact, (
            "Derivatives are those of the model in plain arithmetic, without the rounding of fast layers; its"
            f" prediction is {distance:.0e} off the sampled one."
        )
    return error, ""


def _judge_unrounded(jacobian: Jacobian, product: Tensor, v: Tensor) -> tuple[float, float]:
    """Errors of a product and of the prediction where layers that round their inputs (fp8, int8) do not."""
    differences = _Differences(jacobian, v)
    with jacobian.denoiser.derivative(False):
        distance = _relative(jacobian.predict(jacobian.x), jacobian.value)
        error = differences.error_of(product)
    if error > AGREEMENT:
        error = min(error, differences.common_error(product)) if differences.rounded else math.inf
    return error, distance


def _check_adjoint(jacobian: Jacobian, v: Tensor, product: Tensor) -> tuple[float | None, Tensor | None, str]:
    """|<Jv, Jv> - <v, J'Jv>| / |J'Jv| and J'Jv, or the reason why there is no J'."""
    try:
        back = jacobian.rmatvec(product)
    except CachedModelError:
        raise
    except FAILURES as failure:
        return None, None, _in_words(failure)
    return abs(float(product.square().sum() - (v * back).sum())) / float(back.norm()), back, ""


def _in_words(failure: Exception) -> str:
    """The first line of an exception's message, or its kind."""
    return (str(failure) or type(failure).__name__).splitlines()[0][:120]


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm().clamp_min(1e-30))
