"""The self-check of a Jacobian before it is trusted, and the choice of the mode in which its products are taken."""

from __future__ import annotations

import math
import textwrap
import traceback
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import DerivativeError, LatentDirectionsError, NotFiniteError, NotRepeatableError, NoTrustedModeError
from .inversion import seeded_noise
from .linalg import in_float64, relative_error
from .operators import DIFFERENCE_STEP, DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD, Jacobian

# Largest relative difference of two products that count as equal.
AGREEMENT = 1e-2
# Largest relative difference of two products of a model in half precision, whose central differences resolve no more.
ROUNDED_AGREEMENT = 0.08
# Largest relative difference of two central differences that are used for want of a better product, and of a
# prediction without rounded layers to the sampled one.
DIFFERENCE_AGREEMENT = 0.1
# Largest relative error of one-sided differences that are used. Along leading singular vectors, where the model bends
# most, they are a few times less precise than for the random vector of the check.
ONE_SIDED_AGREEMENT = 0.03
DIFFERENCE_STEPS = (DIFFERENCE_STEP, 4 * DIFFERENCE_STEP, 16 * DIFFERENCE_STEP)
# A network with kinks (the ReLUs of small VAEs) changes its slope within every step: the error of a difference falls
# only with the root of the step. At this step it must be at most KINK_AGREEMENT, and half of that at the others.
KINK_STEP, KINK_AGREEMENT = 2e-4, 2e-2
PASSED = "Derivatives passed their self-check."
# What a model's code raises where it cannot be differentiated; a cancel is none of these.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError)
# An error that this package's own code raises is a bug, and no failure of a derivative, unless it is a RuntimeError:
# those may come from torch.
PACKAGE = __package__.rpartition(".")[0] or __package__
# Norm of the part along J v of the vector w that J' is checked with; its parts along other directions are about 1.
ALIGNED = 3.0


@dataclass(frozen=True)
class Probe:
    """A random vector with its products, taken to check an operator, from which searches start at no cost.

    Attributes:
        vector: v (1, ...).
        image: J v.
        back: J'w of the random vector w that backward products were checked with; None where none can be trusted.
        tolerance: largest relative disagreement of two products that the model's precision explains.
    """

    vector: Tensor
    image: Tensor
    back: Tensor | None
    tolerance: float


@dataclass(frozen=True)
class SelfCheck:
    """A Jacobian that has been checked, and what the check measured.

    Attributes:
        jacobian: the trusted operator.
        backward: whether its backward products can be trusted.
        probe: the products that the check took.
        repeat: relative difference of two equal calls.
        difference: of the forward product to central differences, relative; None where there is none but those.
        adjoint: |<Jv, w> - <v, J'w>| / |Jv|; None where no backward pass was asked for, or it failed.
        sentence: the outcome in words.
        evaluations: what the check took.
    """

    jacobian: Jacobian
    backward: bool
    probe: Probe
    repeat: float
    difference: float | None
    adjoint: float | None
    sentence: str
    evaluations: int

    def report(self) -> dict:
        """What goes into a report."""
        return {
            "repeat": self.repeat,
            "difference": self.difference,
            "adjoint": self.adjoint,
            "mode": self.jacobian.mode,
            "backward": self.backward,
            "sentence": self.sentence,
            "evaluations": self.evaluations,
        }


@torch.no_grad()
def self_check(candidate: Jacobian, seed: int = 0, *, backward: bool = True) -> SelfCheck:
    """Test a Jacobian before it is trusted; 10 evaluations where all is well and no value or graph of it is known.

    It checks that equal calls give equal values, that J v agrees with central differences, and with `backward` that
    <Jv, w> = <v, J'w>. For white noise w the difference relative to |Jv| estimates the relative error of J', whatever
    the size of the latent. ALIGNED times the unit vector along J v is added to w, so that a J' that is wrong by a
    constant factor fails too.
    The trusted operator takes its products in the candidate's mode, or where that fails in the next that passes:
    double backward (only with `backward`, for it needs as much memory), or central differences. The candidate itself
    does not change.

    Raises:
        NotFiniteError: the function's value is not a number.
        NotRepeatableError: equal calls give different values.
        NoTrustedModeError: central differences disagree among themselves too, so that nothing can be trusted.
    """
    candidate = replace(candidate, checked=False)
    v, before = at_every_scale(candidate.x, seed), candidate.counter.evaluations
    repeat = _check_repeat(candidate)
    jacobian, product, difference, sentence = _check_forward(candidate, v, backward)
    adjoint, back, failure = _check_adjoint(jacobian, v, product, seed) if backward else (None, None, "")
    _evaluate_far_away(jacobian)
    rounded = jacobian.mode != DIFFERENCES and PASSED not in sentence
    tolerance = ROUNDED_AGREEMENT if rounded else AGREEMENT
    works = adjoint is not None and adjoint <= tolerance
    if backward and not works:
        failure = failure or f"adjoint error {adjoint:.1e}"
        sentence += f" Backward products failed their self-check ({failure}) and are not used."
    if not works and jacobian.mode != DOUBLE_BACKWARD:
        jacobian.release()
    tolerance = DIFFERENCE_AGREEMENT if jacobian.mode == DIFFERENCES else tolerance
    probe = Probe(v, product, back if works else None, tolerance)
    evaluations = jacobian.counter.evaluations - before
    return SelfCheck(replace(jacobian, checked=True), works, probe, repeat, difference, adjoint, sentence, evaluations)


def _evaluate_far_away(jacobian: Jacobian) -> None:
    """At -x a cache that skips layers for similar inputs must run them, and the host can notice.

    That f is not defined there is no failure.
    """
    try:
        jacobian.function(-jacobian.x)
    except FAILURES as failure:
        _pass_on(failure)


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


def _check_repeat(candidate: Jacobian) -> float:
    """Relative difference of two equal calls."""
    repeat = relative_error(candidate.value, candidate.function(candidate.x))
    if not torch.isfinite(candidate.value).all():
        msg = "The model's prediction is not a finite number."
        raise NotFiniteError(msg)
    if not repeat <= 1e-5:
        msg = (
            f"Two evaluations of the model at the same input differ (relative difference {repeat:.1e}), so derivatives"
            " cannot be computed."
        )
        raise NotRepeatableError(msg)
    return repeat


def _check_forward(candidate: Jacobian, v: Tensor, backward: bool) -> tuple[Jacobian, Tensor, float | None, str]:
    """A trusted operator, its J v, the relative difference to central differences, and a sentence."""
    reasons, error = [], None
    differences = _Differences(candidate, v)
    for mode in _exact_modes(candidate.mode, backward):
        jacobian = replace(candidate, mode=mode)
        try:
            product = jacobian.matvec(v)
        except FAILURES as failure:
            _pass_on(failure)
            jacobian.release()
            reasons.append(f"{mode} failed ({_in_words(failure)})")
            if isinstance(failure, torch.cuda.OutOfMemoryError):
                break  # what is left to try needs more
            continue
        error, sentence = _judge(jacobian, product, differences)
        if sentence:
            jacobian = replace(jacobian, one_sided_step=differences.best_one_sided(product))
            if mode != candidate.mode:
                sentence = f"Forward products are taken by {mode}, because {' and '.join(reasons)}. {sentence}"
            return jacobian, product, error, sentence
        jacobian.release()
        reasons.append(f"{mode} disagreed with central differences by {error:.1e}")
    reason = " and ".join(reasons)
    step, product = differences.best(reason)
    one_sided = differences.best_one_sided(product)
    jacobian = replace(candidate, mode=DIFFERENCES, difference_step=step, one_sided_step=one_sided)
    because = reason or "this was asked for"
    return jacobian, product, error, f"Forward products are central differences, because {because}."


def _exact_modes(asked: str, backward: bool) -> list[str]:
    """The modes to try before central differences, the one that was asked for first."""
    if asked == FORWARD_AD and backward:
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
            product, ahead, h = self.jacobian.difference(self.v, DIFFERENCE_STEPS[len(self.estimates)])
            self.estimates.append(product)
            self.one_sided.append((ahead - self.jacobian.value) / h)
        return self.estimates[number]

    def best_one_sided(self, product: Tensor) -> float | None:
        """The step at which a one-sided difference is nearest to a trusted product, None where none is near enough."""
        errors = [relative_error(estimate, product) for estimate in self.one_sided]
        least = min(errors)
        return DIFFERENCE_STEPS[errors.index(least)] if least <= ONE_SIDED_AGREEMENT else None

    def error_of(self, product: Tensor) -> float:
        """Relative error of a product: the smallest over steps, up to the first that confirms it.

        A right product agrees with a difference at some step, whatever the model's curvature; a wrong one at none.
        """
        error = math.inf
        for number in range(len(DIFFERENCE_STEPS)):
            error = min(error, relative_error(product, self._at(number)))
            if error <= AGREEMENT:
                break
        return error

    def _changes(self) -> list[float]:
        """Relative changes from one step to the next."""
        return [relative_error(self._at(i), self._at(i + 1)) for i in range(len(DIFFERENCE_STEPS) - 1)]

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

    def best(self, reason: str) -> tuple[float, Tensor]:
        """The step from which the difference changes least to the next one, and the difference there.

        `reason` says why no exact mode is used; it is empty where none was asked for.

        Raises:
            NoTrustedModeError: the differences disagree at every step.
        """
        changes = self._changes()
        number = min(range(len(changes)), key=changes.__getitem__)
        if not changes[number] <= DIFFERENCE_AGREEMENT:
            tried = f"{reason}, and central differences" if reason else "central differences, which were asked for,"
            msg = (
                f"No derivative of this model can be trusted: {tried} differ between step lengths by"
                f" {changes[number]:.1e}."
            )
            raise NoTrustedModeError(msg, asked_for=not reason)
        number += self.rounded
        return DIFFERENCE_STEPS[number], self._at(number)


def _judge(jacobian: Jacobian, product: Tensor, differences: _Differences) -> tuple[float, str]:
    """Relative error of a product by central differences, and a sentence if it can be trusted, empty if not."""
    error = differences.error_of(product)
    if error <= AGREEMENT:
        return error, PASSED
    if not differences.rounded:
        short = relative_error(product, jacobian.difference(differences.v, KINK_STEP)[0])
        return (short, PASSED) if short <= min(KINK_AGREEMENT, error / 2) else (error, "")
    error = min(error, differences.common_error(product))
    if error <= ROUNDED_AGREEMENT:
        return error, (
            f"Derivatives passed their self-check to within {error:.0e}, which is as far as the model's own rounding "
            "lets it see."
        )
    exact, distance = _judge_unrounded(jacobian, product, differences.v)
    if exact <= ROUNDED_AGREEMENT and distance <= DIFFERENCE_AGREEMENT:
        return exact, (
            "Derivatives are those of the model with its quantized layers computed without rounding; its prediction"
            f" there differs from the sampled one by {distance:.0e}."
        )
    return error, ""


def _judge_unrounded(jacobian: Jacobian, product: Tensor, v: Tensor) -> tuple[float, float]:
    """Errors of a product and of the prediction where layers that round their inputs (fp8, int8) do not."""
    differences = _Differences(jacobian, v)
    with jacobian.differentiable(False):
        distance = relative_error(jacobian.function(jacobian.x), jacobian.value)
        error = differences.error_of(product)
    if error > AGREEMENT:
        error = min(error, differences.common_error(product)) if differences.rounded else math.inf
    return error, distance


def _check_adjoint(
    jacobian: Jacobian, v: Tensor, product: Tensor, seed: int
) -> tuple[float | None, Tensor | None, str]:
    """|<Jv, w> - <v, J'w>| / |Jv| and J'w, or the reason why there is no J'; `product` is J v."""
    w = seeded_noise(product, (seed + 1) % 2**64) + ALIGNED * product / product.norm()
    try:
        back = jacobian.rmatvec(w)
    except FAILURES as failure:
        _pass_on(failure)
        return None, None, _in_words(failure)
    # summed up in float64, for both sums hold far larger parts than their difference
    gap = (in_float64(product) * in_float64(w)).sum() - (in_float64(v) * in_float64(back)).sum()
    return abs(float(gap)) / float(product.norm()), back, ""


def _pass_on(failure: Exception) -> None:
    """Raise again what is no failure of a derivative.

    That is an error of the host or of this package that says so itself, and a bug: an error that this package's own
    code has raised, and not torch, or the model's code, or a function of the model that this package called.
    """
    if isinstance(failure, DerivativeError):
        return
    *_, (innermost, _) = traceback.walk_tb(failure.__traceback__)
    inside = f"{innermost.f_globals.get('__name__')}.".startswith(f"{PACKAGE}.")
    if isinstance(failure, LatentDirectionsError) or (inside and not isinstance(failure, RuntimeError)):
        raise failure


def _in_words(failure: Exception) -> str:
    """An exception's message, shortened to whole words, or its kind."""
    return textwrap.shorten(str(failure) or type(failure).__name__, 160, placeholder=" ...")
