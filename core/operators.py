"""The Jacobian of the denoised prediction as a matrix-free operator; core/self_check.py says whether to trust it.

J = dD/dx at one point. K = a J = I + b^2 Hessian of log p(x) = (a^2 / b^2) Cov[x0 | x] (Tweedie's formula, second
order): one operator behind the Jacobian methods and the Hessian methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .anchor import project_off
from .denoiser import Denoiser
from .errors import DerivativeError

# Relative step of central differences. The error is h^2 |D'''| + eps |D| / h: smallest near the cube root of eps, which
# is 5e-3 in float32; the self-check chooses a longer one where the model rounds more.
DIFFERENCE_STEP = 5e-3
FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES = "forward AD", "double backward", "central differences"
ONE_SIDED = "one-sided differences"


class Jacobian:
    """J = dD/dx at (x, sigma, prompt), x of shape (1, C, H, W) or (1, C, T, H, W).

    Products take blocks of p vectors, (p, C, H, W), at once. A vector costs `matvec` 2 evaluations and `rmatvec` 2,
    with one more for the forward that builds the graph, which is kept for blocks of the same size. By double backward
    the graph of J' is built and kept too, for another 2.

    Attributes:
        way: how `matvec` is taken: FORWARD_AD, DOUBLE_BACKWARD or DIFFERENCES.
        difference_step: of central differences, relative to the norm of x.
        one_sided_step: the same of one-sided ones; None where they are too rough.
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
        self.difference_step = DIFFERENCE_STEP
        self.one_sided_step: float | None = None
        self._graph: tuple[Tensor, Tensor] | None = None  # x, D(x)
        self._graph_cost = 0  # evaluations: guidance and prompts of several parts take more than one a vector
        self._transposed: tuple[Tensor, Tensor] | None = None  # w, J'w

    def predict(self, x: Tensor) -> Tensor:
        """D at other points x (p, C, H, W), everything else as here."""
        return self.denoiser(x, self.sigma, self.prompt, self.guidance)

    @cached_property
    def value(self) -> Tensor:
        """D(x), evaluated once."""
        return self.predict(self.x)

    def matvec(self, v: Tensor) -> Tensor:
        """J v, same shape as v, in the way that `way` names."""
        if self.way == FORWARD_AD:
            return self._forward_ad(v)
        return self._double_backward(v) if self.way == DOUBLE_BACKWARD else self.central_difference(v)

    def rmatvec(self, u: Tensor) -> Tensor:
        """J' u by reverse mode on a graph that is built once and kept."""
        with self.denoiser.derivative(True), torch.enable_grad():
            x, value = self._kept_graph(len(u))
            (product,) = torch.autograd.grad(value, x, u.to(value), retain_graph=True)
        self.denoiser.counter.backward(self._graph_cost)
        return _nonzero(product.detach(), u, "backward")

    def _kept_graph(self, block: int) -> tuple[Tensor, Tensor]:
        """x, once for every vector of a block, and D(x) with its graph."""
        if self._graph is None or len(self._graph[0]) != block:
            self.release()
            x = self.x.repeat(block, *[1] * (self.x.ndim - 1)).requires_grad_(True)
            before = self.denoiser.counter.evaluations
            self._graph = (x, self.predict(x))
            self._graph_cost = self.denoiser.counter.evaluations - before
        return self._graph

    def _double_backward(self, v: Tensor) -> Tensor:
        """J v as the transpose of w -> J'w, which is linear in w."""
        with self.denoiser.derivative(True), torch.enable_grad():
            x, value = self._kept_graph(len(v))
            if self._transposed is None:
                w = torch.zeros_like(value, requires_grad=True)
                (transposed,) = torch.autograd.grad(value, x, w, create_graph=True)
                self._transposed = (w, transposed)
                self.denoiser.counter.backward(self._graph_cost)
            w, transposed = self._transposed
            (product,) = torch.autograd.grad(transposed, w, v.to(transposed), retain_graph=True)
        self.denoiser.counter.backward(self._graph_cost)
        return _nonzero(product.detach(), v, "double backward")

    def under(self, prompt: str) -> Jacobian:
        """The Jacobian at the same point under another prompt, its products taken the same way."""
        other = Jacobian(self.denoiser, self.x, self.sigma, prompt, self.guidance, self.way)
        other.difference_step = self.difference_step
        return other

    def release(self) -> None:
        """Free the kept graphs."""
        self._graph = self._transposed = None

    def _forward_ad(self, v: Tensor) -> Tensor:
        with self.denoiser.derivative(False), self.denoiser.counter.forward_ad(), forward_ad.dual_level():
            # a dual number needs memory of its own, and GroupNorm a contiguous tangent
            dual = forward_ad.make_dual(self.x.expand_as(v).contiguous(), v.to(self.x).contiguous())
            product = forward_ad.unpack_dual(self.predict(dual)).tangent
        if product is None:  # the tangent got lost on the way
            product = torch.zeros_like(v)
        return _nonzero(product.detach(), v, "forward")

    def central_difference(self, v: Tensor) -> Tensor:
        """J v as (D(x + h v) - D(x - h v)) / 2h, h from `difference_step`: one evaluation at a time."""
        return self.difference(v, self.difference_step)[0]

    def difference(self, v: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
        """J v (p, ...) by a central difference with |h v| = step |x|, and D(x + h v) and h that it took."""
        v, h = self._scaled(v, step)
        ahead, behind = self.predict(self.x + h * v), self.predict(self.x - h * v)
        return _nonzero((ahead - behind) / (2 * h), v, "measured"), ahead, h

    def rough_matvec(self, v: Tensor) -> Tensor:
        """J v (p, ...) as (D(x + h v) - D(x)) / h, h from `one_sided_step`, or `matvec` where that is too rough."""
        if self.one_sided_step is None:
            return self.matvec(v)
        v, h = self._scaled(v, self.one_sided_step)
        return _nonzero((self.predict(self.x + h * v) - self.value) / h, v, "measured")

    @property
    def rough_way(self) -> str:
        """How `rough_matvec` is taken."""
        return self.way if self.one_sided_step is None else ONE_SIDED

    @property
    def rough_cost(self) -> int:
        """Evaluations of `rough_matvec` a vector."""
        return 1 if self.rough_way == ONE_SIDED else 2

    def _scaled(self, v: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """v, and for each of its vectors the h with |h v| = step |x|."""
        v = v.to(self.x)
        return v, step * self.x.norm() / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))


@dataclass(frozen=True)
class Probe:
    """A random vector with its products, taken to check an operator, from which searches start at no cost.

    Attributes:
        vector: v (1, ...).
        image: J v.
        back: J'J v; None where no backward pass was taken that can be trusted.
        tolerance: largest relative disagreement of two products that the model's precision explains.
    """

    vector: Tensor
    image: Tensor
    back: Tensor | None
    tolerance: float


def masked(
    operator, mask: Tensor | None, held: Tensor | None = None
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(matvec, rmatvec) of P A Q.

    P is the weighting of A's rows by `mask` (broadcast over channels), None for all of them, and Q = I - N N' the
    projection off the orthonormal columns N, `held` (1, N, r), None for none.
    """

    def matvec(v: Tensor) -> Tensor:
        image = operator.matvec(v if held is None else project_off(v, held))
        return image if mask is None else mask * image

    def rmatvec(u: Tensor) -> Tensor:
        product = operator.rmatvec(u if mask is None else mask * u)
        return product if held is None else project_off(product, held)

    return matvec, rmatvec


def scaled_hessian(jacobian: Jacobian, *, rough: bool = False) -> Callable[[Tensor], Tensor]:
    """v -> K v = a J v, the scaled Hessian I + b^2 Hess log p (Tweedie, second order); by rough products or exact."""
    a, _ = jacobian.denoiser.scale(jacobian.sigma)
    matvec = jacobian.rough_matvec if rough else jacobian.matvec
    return lambda v: a * matvec(v)


def _nonzero(product: Tensor, vector: Tensor, kind: str) -> Tensor:
    """Inside inference mode products silently come out as zeros, so a zero is an error."""
    if not torch.isfinite(product).all():
        msg = f"The {kind} derivative through this model is not a finite number. Try a higher precision for the model."
        raise DerivativeError(msg)
    if not product.any() and vector.any():
        msg = (
            f"The {kind} derivative through this model came out as zero: its code cannot be differentiated as it is set"
            " up, or its prediction does not depend on the latent. Use the method 'text', which needs no derivative."
        )
        raise DerivativeError(msg)
    return product
