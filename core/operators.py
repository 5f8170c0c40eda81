"""Jacobians as matrix-free operators; core/self_check.py says whether to trust one.

A `Jacobian` belongs to a differentiable function and a point. For the denoised prediction D at noise level sigma,
J = dD/dx and K = a J = I + b^2 Hessian of log p(x) = (a^2 / b^2) Cov[x0 | x] (Tweedie's formula, second order): one
operator behind the Jacobian methods and the Hessian methods.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .attention import differentiable_attention
from .denoiser import SOURCE, Denoiser, EvaluationCounter
from .errors import NotFiniteDerivativeError, ShapeError, ZeroDerivativeError
from .linalg import project_off

# Relative step of central differences. The error is h^2 |D'''| + eps |D| / h: smallest near the cube root of eps, which
# is 5e-3 in float32; the self-check chooses a longer one where the model rounds more.
DIFFERENCE_STEP = 5e-3
# The modes in which J v can be computed.
FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES = "forward AD", "double backward", "central differences"
ONE_SIDED = "one-sided differences"
# Singular values below this share of the largest |J v| are rounding: of exact products, and of differences.
EXACT, APPROXIMATE = 1e-5, 1e-3


@dataclass
class _Kept:
    """What products with one function at one point share: the value there, and graphs that `release` frees."""

    function: Callable[[Tensor], Tensor]
    x: Tensor
    value: Tensor | None = None
    graph: tuple[Tensor, Tensor] | None = None  # x, f(x)
    graph_cost: int = 0  # evaluations: guidance and prompts of several parts take more than one a vector
    transposed: tuple[Tensor, Tensor] | None = None  # w, J'w

    def release(self) -> None:
        self.graph = self.transposed = None


@dataclass(frozen=True, eq=False)
class Jacobian:
    """J = df/dx at x (1, ...); f maps (p, ...) to (p, ...), and its output may have another shape than its input.

    Products take blocks of p vectors, (p, ...), at once. For each vector `matvec` costs 2 evaluations and `rmatvec` 2,
    with one more for the forward that builds the graph, which is kept for blocks of the same size. By double backward
    the graph of J' is built and kept too, for another 2.

    The fields never change. `dataclasses.replace` gives another operator; of the same function and point it shares the
    kept graphs.

    Attributes:
        function: f.
        x: the point.
        mode: how `matvec` is computed: FORWARD_AD, DOUBLE_BACKWARD or DIFFERENCES.
        difference_step: length of the step of central differences, relative to the norm of x.
        one_sided_step: that of one-sided differences; None where they are not precise enough.
        counter: counts the evaluations that f causes. Without one, every call counts its batch.
        checked: whether the operator has passed its self-check; until then a product that is zero is an error.
        differentiable: called with whether a backward pass will be taken; gives a context inside which f can be
            differentiated. The default suits plain torch code with torch's fused attention.
    """

    function: Callable[[Tensor], Tensor]
    x: Tensor
    mode: str = FORWARD_AD
    difference_step: float = DIFFERENCE_STEP
    one_sided_step: float | None = None
    counter: EvaluationCounter | None = None
    differentiable: Callable[[bool], AbstractContextManager] = differentiable_attention
    checked: bool = False
    _kept: _Kept | None = field(default=None, repr=False)

    def __post_init__(self):
        if len(self.x) != 1:
            msg = f"A Jacobian belongs to one point, but x is a batch of {len(self.x)}."
            raise ShapeError(msg)
        if self.counter is None:
            counter = EvaluationCounter()
            object.__setattr__(self, "counter", counter)
            object.__setattr__(self, "function", counter.counting(self.function))
        if self.x.requires_grad:
            object.__setattr__(self, "x", self.x.detach())
        kept = self._kept
        if kept is None or kept.function is not self.function or kept.x is not self.x:
            object.__setattr__(self, "_kept", _Kept(self.function, self.x))

    @property
    def value(self) -> Tensor:
        """f(x), evaluated once."""
        if self._kept.value is None:
            with torch.no_grad():
                self._kept.value = self.function(self.x)
        return self._kept.value

    def matvec(self, v: Tensor) -> Tensor:
        """J v for vectors v (p, ...) shaped as x, in the mode that `mode` names; shaped as f's output."""
        if self.mode == FORWARD_AD:
            return self._forward_ad(v)
        return self._double_backward(v) if self.mode == DOUBLE_BACKWARD else self.central_difference(v)

    def rmatvec(self, u: Tensor) -> Tensor:
        """J' u for u (p, ...) shaped as f's output, by a backward pass on a graph that is built once and kept."""
        with self.differentiable(True), torch.enable_grad():
            x, value = self._graph(len(u))
            (product,) = torch.autograd.grad(value, x, u.to(value), retain_graph=True)
        self.counter.backward(self._kept.graph_cost)
        return self._valid(product.detach(), u, "backward")

    def release(self) -> None:
        """Free the kept graphs."""
        self._kept.release()

    def central_difference(self, v: Tensor) -> Tensor:
        """J v as (f(x + h v) - f(x - h v)) / 2h with |h v| = `difference_step` |x|: 2 evaluations a vector."""
        return self.difference(v, self.difference_step)[0]

    @torch.no_grad()
    def difference(self, v: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
        """J v (p, ...) by a central difference with |h v| = step |x|; and f(x + h v), and h with as many dimensions."""
        v, h = self._scaled(v, step)
        ahead, behind = self.function(self.x + h * v), self.function(self.x - h * v)
        h = _like(h, ahead)
        return self._valid((ahead - behind) / (2 * h), v, "finite-difference"), ahead, h

    @torch.no_grad()
    def approximate_matvec(self, v: Tensor) -> Tensor:
        """J v (p, ...) as (f(x + h v) - f(x)) / h with h from `one_sided_step`; by `matvec` where that is None."""
        if self.one_sided_step is None:
            return self.matvec(v)
        v, h = self._scaled(v, self.one_sided_step)
        ahead = self.function(self.x + h * v)
        return self._valid((ahead - self.value) / _like(h, ahead), v, "finite-difference")

    @property
    def precision(self) -> float:
        """Share of the largest product below which those of `matvec` and `rmatvec` are rounding."""
        return APPROXIMATE if self.mode == DIFFERENCES else EXACT

    @property
    def approximate_mode(self) -> str:
        """The mode of `approximate_matvec`."""
        return self.mode if self.one_sided_step is None else ONE_SIDED

    @property
    def approximate_cost(self) -> int:
        """Evaluations of `approximate_matvec` a vector."""
        return 1 if self.approximate_mode == ONE_SIDED else 2

    def _graph(self, block: int) -> tuple[Tensor, Tensor]:
        """x, once for every vector of a block, and f(x) with its graph."""
        kept = self._kept
        if kept.graph is None or len(kept.graph[0]) != block:
            kept.release()
            x = self.x.repeat(block, *[1] * (self.x.ndim - 1)).requires_grad_(True)
            before = self.counter.evaluations
            kept.graph = (x, self.function(x))
            kept.graph_cost = self.counter.evaluations - before
        return kept.graph

    def _double_backward(self, v: Tensor) -> Tensor:
        """J v as the transpose of w -> J'w, which is linear in w."""
        kept = self._kept
        with self.differentiable(True), torch.enable_grad():
            x, value = self._graph(len(v))
            if kept.transposed is None:
                w = torch.zeros_like(value, requires_grad=True)
                (transposed,) = torch.autograd.grad(value, x, w, create_graph=True)
                kept.transposed = (w, transposed)
                self.counter.backward(kept.graph_cost)
            w, transposed = kept.transposed
            (product,) = torch.autograd.grad(transposed, w, v.to(transposed), retain_graph=True)
        self.counter.backward(kept.graph_cost)
        return self._valid(product.detach(), v, "double backward")

    @torch.no_grad()
    def _forward_ad(self, v: Tensor) -> Tensor:
        with self.differentiable(False), self.counter.forward_ad(), forward_ad.dual_level():
            # a dual number needs memory of its own, and GroupNorm a contiguous tangent
            dual = forward_ad.make_dual(self.x.expand_as(v).contiguous(), v.to(self.x).contiguous())
            value, product = forward_ad.unpack_dual(self.function(dual))
        if product is None:  # an operation on the way dropped the tangent
            product = torch.zeros_like(value)
        return self._valid(product.detach(), v, "forward")

    def _scaled(self, v: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """v, and for each of its vectors the h (p, 1, ...) with |h v| = step |x|."""
        v = v.to(self.x)
        length = self.x.norm() if self.x.any() else self.x.new_tensor(self.x.numel() ** 0.5)
        return v, step * length / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))

    def _valid(self, product: Tensor, vector: Tensor, kind: str) -> Tensor:
        """A product, or an error: inside inference mode products silently come out as zeros."""
        if not torch.isfinite(product).all():
            msg = f"The {kind} derivative through this model is not a finite number."
            raise NotFiniteDerivativeError(msg)
        if not self.checked and not product.any() and vector.any():
            msg = (
                f"The {kind} derivative through this model came out as zero: its code does not propagate derivatives,"
                " or its prediction does not depend on the latent."
            )
            raise ZeroDerivativeError(msg)
        return product


def prediction_jacobian(
    denoiser: Denoiser, x: Tensor, sigma: float, prompt: str = SOURCE, guidance: float = 1.0, *, mode: str = FORWARD_AD
) -> Jacobian:
    """J = dD/dx at (x, sigma, prompt, guidance), x of shape (1, C, H, W) or (1, C, T, H, W)."""
    return Jacobian(
        lambda points: denoiser(points, sigma, prompt, guidance),
        x,
        mode=mode,
        counter=denoiser.counter,
        differentiable=denoiser.differentiable,
    )


class RestrictedOperator:
    """The products of P A Q with an operator A.

    P weights A's rows by `mask` (broadcast over channels), None for all of them. Q = I - N N' projects off the
    orthonormal columns N, `null_space` (1, N, r), None for none.

    Attributes:
        vectors: with `record`, the Q v (p, ...) of all calls of `matvec`.
        images: with `record`, their images A Q v, not masked.
    """

    def __init__(self, operator, mask: Tensor | None, null_space: Tensor | None = None, *, record: bool = False):
        """Wrap `operator`, which has `matvec` and `rmatvec`."""
        self._operator, self._mask, self._null_space, self._record = operator, mask, null_space, record
        self.vectors: list[Tensor] = []
        self.images: list[Tensor] = []

    def matvec(self, v: Tensor) -> Tensor:
        """P A Q v."""
        v = v if self._null_space is None else project_off(v, self._null_space)
        image = self._operator.matvec(v)
        if self._record:
            self.vectors.append(v)
            self.images.append(image)
        return image if self._mask is None else self._mask * image

    def rmatvec(self, u: Tensor) -> Tensor:
        """Q A' P u."""
        product = self._operator.rmatvec(u if self._mask is None else self._mask * u)
        return product if self._null_space is None else project_off(product, self._null_space)


def scaled_hessian(
    jacobian: Jacobian, denoiser: Denoiser, sigma: float, *, approximate: bool = False
) -> Callable[[Tensor], Tensor]:
    """v -> K v with K = a J = I + b^2 Hessian of log p (Tweedie's formula, second order).

    With `approximate` the products are those of `approximate_matvec`.
    """
    a, _ = denoiser.scale(sigma)
    matvec = jacobian.approximate_matvec if approximate else jacobian.matvec
    return lambda v: a * matvec(v)


def _like(h: Tensor, output: Tensor) -> Tensor:
    """h (p, 1, ...) with as many dimensions as an output (p, ...) has."""
    return h.view(-1, *[1] * (output.ndim - 1))
