"""The Jacobian of the denoised prediction as a matrix-free operator, with a self-check before it is trusted.

J = dD/dx at one point. K = a J = I + b^2 Hessian of log p(x) = (a^2 / b^2) Cov[x0 | x] (Tweedie's formula, second
order): one operator behind the Jacobian methods and the Hessian methods.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_pre_hook

from .denoiser import Denoiser
from .errors import DerivativeError

# Largest relative disagreement that still counts as the same product.
AGREEMENT = 1e-2
# The same where a model computes in half precision: its central differences resolve no more.
ROUNDED_AGREEMENT = 0.08
# Largest relative disagreement of two central differences that are used for want of a better product, and of a
# prediction without rounded layers to the sampled one.
ROUGH_AGREEMENT = 0.1
# Steps of central differences, relative to the norm of x. The error is h^2 |D'''| + eps |D| / h: smallest near the
# cube root of eps, which is 5e-3 in float32 and more in half precision.
DIFFERENCE_STEPS = (5e-3, 2e-2, 8e-2)
FORWARD_AD, DIFFERENCES = "forward AD", "central differences"
CACHED = (
    "The model answered without running its network: a cache node (such as EasyCache or LazyCache) sits on the MODEL. "
    "Connect the model from before that node."
)


@dataclass(frozen=True)
class SelfCheck:
    """What the self-check measured.

    Attributes:
        repeat: relative difference of two equal calls.
        difference: of forward AD to central differences, relative; infinite where forward AD failed.
        adjoint: |<Jv, Jv> - <v, J'Jv>| / |Jv|^2; None where no backward pass was asked for, infinite where it failed.
        way: how forward products are taken from here on.
        reverse: whether backward products can be trusted.
        sentence: the outcome in words.
    """

    repeat: float
    difference: float
    adjoint: float | None
    way: str
    reverse: bool
    sentence: str


class Jacobian:
    """J = dD/dx at (x, sigma, prompt), x of shape (1, C, H, W) or (1, C, T, H, W).

    Products take blocks of p vectors, (p, C, H, W), at once. A vector costs `matvec` 2 evaluations and `rmatvec` 2,
    with one more for the forward that builds the graph, which is kept for blocks of the same size.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigma: float,
        prompt: str = "source",
        guidance: float = 1.0,
        way: str = FORWARD_AD,
    ):
        self.denoiser, self.x, self.sigma = denoiser, x.detach(), sigma
        self.prompt, self.guidance = prompt, guidance
        self.way = way
        self.difference_step = DIFFERENCE_STEPS[0]
        self._graph: tuple[Tensor, Tensor] | None = None

    def _predict(self, x: Tensor) -> Tensor:
        return self.denoiser(x, self.sigma, self.prompt, self.guidance)

    def matvec(self, v: Tensor) -> Tensor:
        """J v, same shape as x, by forward AD or, after a failed self-check, by a central difference."""
        return self._forward_ad(v) if self.way == FORWARD_AD else self._central_difference(v)

    def rmatvec(self, u: Tensor) -> Tensor:
        """J' u by reverse mode on a graph that is built once and kept."""
        with self.denoiser.derivative(True), torch.enable_grad():
            if self._graph is None or len(self._graph[0]) != len(u):
                x = self._repeated(u).clone().requires_grad_(True)
                self._graph = (x, self._predict(x))
            x, value = self._graph
            (product,) = torch.autograd.grad(value, x, u.to(value), retain_graph=True)
        self.denoiser.counter.backward(len(u) * (1 if self.guidance == 1.0 else 2))
        return _nonzero(product.detach(), u, "backward")

    def under(self, prompt: str) -> Jacobian:
        """The Jacobian at the same point under another prompt, its products taken the same way."""
        other = Jacobian(self.denoiser, self.x, self.sigma, prompt, self.guidance, self.way)
        other.difference_step = self.difference_step
        return other

    def _repeated(self, vectors: Tensor) -> Tensor:
        """x, once for every vector of a block."""
        return self.x.expand(len(vectors), *self.x.shape[1:])

    def release(self) -> None:
        """Free the kept graph."""
        self._graph = None

    def _forward_ad(self, v: Tensor) -> Tensor:
        with self.denoiser.derivative(False), self.denoiser.counter.forward_ad(), forward_ad.dual_level():
            # a dual number needs memory of its own, and GroupNorm a contiguous tangent
            dual = forward_ad.make_dual(self._repeated(v).contiguous(), v.to(self.x).contiguous())
            product = forward_ad.unpack_dual(self._predict(dual)).tangent
        if product is None:  # the tangent got lost on the way
            product = torch.zeros_like(v)
        return _nonzero(product.detach(), v, "forward")

    def _central_difference(self, v: Tensor) -> Tensor:
        v = v.to(self.x)
        norms = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
        h = self.difference_step * self.x.norm() / norms
        return (self._predict(self.x + h * v) - self._predict(self.x - h * v)) / (2 * h)

    def check(self, seed: int = 0, reverse: bool = True) -> SelfCheck:
        """Test the operator before it is trusted; 10 evaluations where all is well.

        Calls that must be equal and run the whole network, forward AD against central differences, and, with
        `reverse`, the adjoint identity at u = Jv, where a wrong adjoint cannot hide behind a small inner product. Where
        forward AD fails, products are central differences from here on; where the backward pass fails, `reverse` of
        the result is False.

        Raises:
            DerivativeError: the model is not repeatable, or does not run its network when it is asked.
        """
        v = torch.randn(self.x.shape, generator=torch.Generator().manual_seed(seed)).to(self.x)
        repeat, layers = self._check_repeat()
        product, difference, sentence = self._check_forward(v)
        adjoint = self._check_adjoint(v, product) if reverse else None
        with _called_layers() as fresh:  # far from x, where a cache that goes by similarity runs the network
            self._predict(-self.x)
        if _skips_layers(fresh, layers):
            raise DerivativeError(CACHED)
        works = adjoint is not None and adjoint <= AGREEMENT
        if reverse and not works:
            sentence += f" Backward products failed their self-check (adjoint error {adjoint:.1e}) and are not used."
        return SelfCheck(repeat, difference, adjoint, self.way, works, sentence)

    def _check_repeat(self) -> tuple[float, Counter]:
        """Relative difference of two equal calls, and the layers that the second ran."""
        forwards, answers = [self.denoiser.counter.forwards], []
        for _ in range(2):
            with _called_layers() as called:
                answers.append(self._predict(self.x))
            forwards.append(self.denoiser.counter.forwards)
        if not forwards[0] < forwards[1] < forwards[2]:
            raise DerivativeError(CACHED)
        repeat = _relative(*answers)
        if not repeat <= 1e-5:
            msg = (
                f"The model gives different answers to the same question (relative difference {repeat:.1e}), so its "
                "derivatives mean nothing. Remove nodes that add randomness to the MODEL."
            )
            raise DerivativeError(msg)
        return repeat, called

    def _check_forward(self, v: Tensor) -> tuple[Tensor, float, str]:
        """A trusted J v, the relative difference of forward AD to it, and a sentence."""
        product, reason = None, "this was asked for"
        if self.way == FORWARD_AD:
            try:
                product, reason = self._forward_ad(v), ""
            except (RuntimeError, NotImplementedError, DerivativeError) as error:
                reason = f"forward AD failed ({str(error).splitlines()[0][:120]})"
        estimates, difference = self._differences(v, product)
        if difference <= AGREEMENT:
            return product, difference, "Derivatives passed their self-check."
        if product is not None:
            reason = f"forward AD disagreed with central differences by {difference:.1e}"
            if _is_rounded(estimates):
                difference = min(difference, _common_error(product, estimates))
                if difference <= ROUNDED_AGREEMENT:
                    passed = f"Derivatives passed their self-check to within {difference:.0e}, which is as far as the"
                    return product, difference, f"{passed} model's own rounding lets it see."
                exact, distance = self._check_unrounded(v, product)
                if exact <= ROUNDED_AGREEMENT and distance <= ROUGH_AGREEMENT:
                    passed = "Derivatives are those of the model in plain arithmetic, without the rounding of fast"
                    return (
                        product,
                        exact,
                        f"{passed} layers; its prediction is {distance:.0e} off the sampled one.",
                    )
        self.way = DIFFERENCES
        # the step whose result changes least to the next one
        changes = _changes(estimates)
        best = min(range(len(changes)), key=changes.__getitem__)
        if not changes[best] <= ROUGH_AGREEMENT:
            msg = (
                f"No derivative of this model can be trusted: {reason}, and central differences disagree among"
                f" themselves by {changes[best]:.1e}. Use the method 'text', which needs none."
            )
            raise DerivativeError(msg)
        best += _is_rounded(estimates)
        self.difference_step = DIFFERENCE_STEPS[best]
        return estimates[best], difference, f"Forward products are central differences, because {reason}."

    def _differences(self, v: Tensor, product: Tensor | None) -> tuple[list[Tensor], float]:
        """Central differences at growing steps up to the first that confirms `product`; its smallest error by them."""
        estimates, error = [], math.inf
        # a right product agrees with a difference at some step, whatever the model's curvature; a wrong one at none
        for self.difference_step in DIFFERENCE_STEPS:
            estimates.append(self._central_difference(v))
            if product is not None:
                error = min(error, _relative(product, estimates[-1]))
                if error <= AGREEMENT:
                    break
        return estimates, error

    def _check_unrounded(self, v: Tensor, product: Tensor) -> tuple[float, float]:
        """Errors of a product and of the prediction where layers that round their inputs (fp8, int8) do not."""
        value = self._predict(self.x)
        with self.denoiser.derivative(False):
            distance = _relative(self._predict(self.x), value)
            estimates, error = self._differences(v, product)
        if error > AGREEMENT and _is_rounded(estimates):
            error = min(error, _common_error(product, estimates))
        elif error > AGREEMENT:
            error = math.inf
        return error, distance

    def _check_adjoint(self, v: Tensor, product: Tensor) -> float:
        try:
            transposed = self.rmatvec(product)
        except (RuntimeError, NotImplementedError, DerivativeError):
            self.release()
            return math.inf
        norm = float(product.square().sum())
        return abs(norm - float((v * transposed).sum())) / norm


def masked(jacobian: Jacobian, mask: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(matvec, rmatvec) of P J, P the weighting by `mask` (broadcast over channels); None leaves J as it is."""
    if mask is None:
        return jacobian.matvec, jacobian.rmatvec
    return lambda v: mask * jacobian.matvec(v), lambda u: jacobian.rmatvec(mask * u)


def scaled_hessian(jacobian: Jacobian) -> Callable[[Tensor], Tensor]:
    """v -> K v = a J v, the scaled Hessian I + b^2 Hess log p (Tweedie, second order)."""
    a, _ = jacobian.denoiser.scale(jacobian.sigma)
    return lambda v: a * jacobian.matvec(v)


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm().clamp_min(1e-30))


@contextmanager
def _called_layers() -> Iterator[Counter]:
    """Counts the calls of every torch module while the block runs."""
    called = Counter()
    hook = register_module_forward_pre_hook(lambda module, _inputs: called.update((module,)))
    try:
        yield called
    finally:
        hook.remove()


def _skips_layers(fresh: Counter, again: Counter) -> bool:
    """Whether a network left out parts of itself, all of them or some that it ran for a fresh input: a cache in it."""
    inner = {part for network in again for part in list(network.modules())[1:]}
    whole = any(
        list(network.children()) and not any(part in again for part in list(network.modules())[1:])
        for network in again
        if network not in inner
    )
    return whole or any(part in inner for part in fresh - again)


def _changes(estimates: list[Tensor]) -> list[float]:
    """Relative changes of central differences from one step to the next."""
    return [_relative(a, b) for a, b in zip(estimates, estimates[1:], strict=False)]


def _is_rounded(estimates: list[Tensor]) -> bool:
    """Whether rounding dominates the error of central differences: it falls with the step, curvature's part grows."""
    small, large = _changes(estimates)
    return small > large


def _common_error(product: Tensor, estimates: list[Tensor]) -> float:
    """Relative error of a product by two noisy differences d = J v + n, whose rounding errors n are independent.

    <d1 - w, d2 - w> has the mean |J v - w|^2: the noise drops out of it, so far smaller errors of w can be seen.
    """
    first, second = (estimate - product for estimate in estimates[-2:])
    return float((first * second).sum().abs().sqrt() / product.norm())


def _nonzero(product: Tensor, vector: Tensor, kind: str) -> Tensor:
    """Inside inference mode products silently come out as zeros, so a zero is an error."""
    if not torch.isfinite(product).all():
        msg = f"The {kind} derivative through this model is not a finite number. Try a higher precision for the model."
        raise DerivativeError(msg)
    if not product.any() and vector.any():
        msg = (
            f"The {kind} derivative through this model came out as zero, which means that its code cannot be "
            "differentiated as it is set up. Use the method 'text', which needs no derivative."
        )
        raise DerivativeError(msg)
    return product
