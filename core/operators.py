"""The Jacobian of the denoised prediction as a matrix-free operator, with a self-check before it is trusted.

J = dD/dx at one point. K = a J = I + b^2 Hessian of log p(x) = (a^2 / b^2) Cov[x0 | x] (Tweedie's formula, second
order): one operator behind the Jacobian methods and the Hessian methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .denoiser import Denoiser
from .errors import DerivativeError

# Largest relative disagreement that still counts as the same product: float32 through a deep network.
AGREEMENT = 2e-2


@dataclass(frozen=True)
class SelfCheck:
    """What the self-check measured: relative errors, and the way that forward products are taken from here on."""

    repeat: float
    difference: float
    adjoint: float
    way: str
    sentence: str


class Jacobian:
    """J = dD/dx at (x, sigma, prompt), x of shape (1, C, H, W) or (1, C, T, H, W).

    `matvec` costs 2 evaluations, `rmatvec` 2 once the graph is kept (1 for the forward that builds it).
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, sigma: float, prompt: str = "source", guidance: float = 1.0):
        self.denoiser, self.x, self.sigma = denoiser, x.detach(), sigma
        self.prompt, self.guidance = prompt, guidance
        self.way = "forward AD"
        self._graph: tuple[Tensor, Tensor] | None = None

    def _predict(self, x: Tensor) -> Tensor:
        return self.denoiser(x, self.sigma, self.prompt, self.guidance)

    def matvec(self, v: Tensor) -> Tensor:
        """J v, same shape as x, by forward AD or, after a failed self-check, by a central difference."""
        return self._forward_ad(v) if self.way == "forward AD" else self._central_difference(v)

    def rmatvec(self, u: Tensor) -> Tensor:
        """J' u by reverse mode on a graph that is built once and kept."""
        with self.denoiser.derivative(True), torch.enable_grad():
            if self._graph is None:
                x = self.x.clone().requires_grad_(True)
                self._graph = (x, self._predict(x))
            x, value = self._graph
            (product,) = torch.autograd.grad(value, x, u.to(value), retain_graph=True)
        self.denoiser.counter.backward(self.x.shape[0] * (1 if self.guidance == 1.0 else 2))
        return _nonzero(product.detach(), u, "backward")

    def release(self) -> None:
        """Free the kept graph."""
        self._graph = None

    def _forward_ad(self, v: Tensor) -> Tensor:
        with self.denoiser.derivative(False), self.denoiser.counter.forward_ad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(self.x, v.to(self.x).contiguous())
            product = forward_ad.unpack_dual(self._predict(dual)).tangent
        if product is None:  # the tangent got lost on the way
            product = torch.zeros_like(self.x)
        return _nonzero(product.detach(), v, "forward")

    def _central_difference(self, v: Tensor) -> Tensor:
        # error h^2 |D'''| + eps |D| / h is smallest near the cube root of eps
        h = torch.finfo(self.x.dtype).eps ** (1 / 3) * self.x.norm() / v.norm()
        v = v.to(self.x)
        return (self._predict(self.x + h * v) - self._predict(self.x - h * v)) / (2 * h)

    def check(self, seed: int = 0) -> SelfCheck:
        """Three tests before the operator is trusted; about 10 evaluations.

        Two equal calls, forward AD against a central difference, and <Jv, u> = <v, J'u>. Where only forward AD fails,
        later products are central differences and the sentence says so.

        Raises:
            DerivativeError: the model is not repeatable, does not run, or its backward pass is wrong.
        """
        generator = torch.Generator().manual_seed(seed)
        v, u = (torch.randn(self.x.shape, generator=generator).to(self.x) for _ in range(2))
        before = self.denoiser.counter.forwards
        first, second = self._predict(self.x), self._predict(self.x)
        if self.denoiser.counter.forwards < before + 2:
            msg = (
                "The model answered without running its network: a cache node (such as EasyCache or LazyCache) sits on "
                "the MODEL. Connect the model from before that node."
            )
            raise DerivativeError(msg)
        repeat = _relative(first, second)
        if repeat > 1e-5:
            msg = (
                f"The model gives different answers to the same question (relative difference {repeat:.1e}), so its "
                "derivatives mean nothing. Remove nodes that add randomness to the MODEL."
            )
            raise DerivativeError(msg)
        reference = self._central_difference(v)
        difference, sentence = self._check_forward_ad(v, reference)
        forward = reference if self.way != "forward AD" else self._forward_ad(v)
        transposed = self.rmatvec(u)
        adjoint = abs(float((forward * u).sum() - (v * transposed).sum())) / float(
            (forward.norm() * u.norm()).clamp_min(1e-30)
        )
        if adjoint > AGREEMENT:
            msg = (
                f"Backward derivatives through this model are wrong (adjoint error {adjoint:.1e}), so this method"
                " cannot be used on it. Use the method 'text', which needs none."
            )
            raise DerivativeError(msg)
        return SelfCheck(repeat, difference, adjoint, self.way, sentence)

    def _check_forward_ad(self, v: Tensor, reference: Tensor) -> tuple[float, str]:
        try:
            difference = _relative(self._forward_ad(v), reference)
            reason = f"forward AD disagreed with a central difference by {difference:.1e}"
        except (RuntimeError, NotImplementedError, DerivativeError) as error:
            difference, reason = float("inf"), f"forward AD failed ({str(error).splitlines()[0][:120]})"
        if difference <= AGREEMENT:
            return difference, "Derivatives passed their self-check."
        self.way = "central differences"
        return difference, f"Forward products are taken by central differences, because {reason}."


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
