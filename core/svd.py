"""Partial SVD and least squares from one block Golub-Kahan bidiagonalisation.

A is given by its products only, on blocks of vectors stacked along the first dimension: `matvec` maps (p, ...) to
(p, ...) and so does `rmatvec` for A'. One *pair* is one vector's product with A and one with A'. Full
reorthogonalisation keeps both bases orthonormal to rounding, which plain Lanczos does not (Golub and Van Loan, Matrix
Computations, 4th ed., sections 10.4.1 and 11.4; Paige and Saunders, ACM TOMS 8, 1982; Golub, Luk and Overton, ACM TOMS
7, 1981, for blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import NotFiniteError, ZeroOperatorError
from .linalg import KrylovBasis, damped_least_squares

Product = Callable[[Tensor], Tensor]
# The fewest further pairs that are taken after all residuals are within the tolerance.
GUARD = 3


@dataclass(frozen=True)
class SingularTriplets:
    """Leading singular triplets.

    Attributes:
        left: u_i, stacked along the first dimension, orthonormal.
        values: s_i, descending.
        right: v_i, stacked along the first dimension, orthonormal.
        residuals: |A'u_i - s_i v_i| / s_1; A v_i = s_i u_i holds to rounding by construction.
        pairs: pairs of products with A and A' that were spent.
        converged: whether all k residuals that were asked for are within the tolerance.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    residuals: Tensor
    pairs: int
    converged: bool


class Bidiagonalisation:
    """A V = U B with orthonormal U and V, grown a block at a time from start vectors (p, ...).

    From right start vectors B is upper bidiagonal; from left ones it is lower bidiagonal, at the price of one more
    product with A'. With p > 1 it is so in blocks, and each product runs p vectors at once, which is faster on a GPU.
    """

    def __init__(self, matvec: Product, rmatvec: Product, start: Tensor, *, left: bool = False):
        self._matvec, self._rmatvec = matvec, rmatvec
        self.left, self.right = KrylovBasis(), KrylovBasis()
        _, first, coefficients = (self.left if left else self.right).split(start)
        if not torch.isfinite(start).all():
            msg = "The start vector of the solver holds NaN or infinite values."
            raise NotFiniteError(msg)
        if not len(first):
            msg = "The start vector of the solver is zero."
            raise ZeroOperatorError(msg)
        self.matrix = torch.zeros(0, 0, dtype=torch.float64)
        self.pairs, self._last = 0, 0
        self._next, self._next_coefficients = first, self.matrix
        if left:
            self.start = coefficients  # start = left @ self.start
            self.left.append(first)
            self.matrix = torch.zeros(len(first), 0, dtype=torch.float64)
            self._last = len(first)
            self._next, self._next_coefficients = self._transpose_of(first)

    @property
    def exhausted(self) -> bool:
        """Whether the space is invariant, so that growing it adds nothing."""
        return len(self._next) == 0

    def _transpose_of(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """A' of the last left block, as new right vectors and their coefficients."""
        if not len(block):
            return block, torch.zeros(0, 0, dtype=torch.float64)
        products = self._rmatvec(block.view(-1, *self.left.shape))
        _, new, outside = self.right.split(products)
        scale = self.matrix.norm() if self.matrix.numel() else outside.norm()
        if not outside.numel() or outside.norm() <= 1e-7 * scale:
            return new[:0], outside[:0]
        return new, outside

    def grow(self) -> None:
        """Take one more block of pairs."""
        if self.exhausted:
            return
        self.right.append(self._next)
        products = self._matvec(self._next.view(-1, *self.right.shape))
        self.pairs += len(self._next)
        inside, new, outside = self.left.split(products)
        if outside.numel() and outside.norm() <= 1e-7 * max(float(self.matrix.norm()), float(inside.norm())):
            new, outside = new[:0], outside[:0]
        self.left.append(new)
        rows = self.matrix.new_zeros(len(new), self.matrix.shape[1])
        self.matrix = torch.cat([torch.cat([self.matrix, rows]), torch.cat([inside, outside])], dim=1)
        self._last = len(new)
        self._next, self._next_coefficients = self._transpose_of(new)

    def triplets(self, k: int, tol: float) -> SingularTriplets:
        """The k leading triplets that this space contains, or all of them where it has fewer."""
        p, s, qh = torch.linalg.svd(self.matrix, full_matrices=False)
        count = min(k, len(s))
        residuals = self._along_next(p[:, :count]).norm(dim=0) / s[0].clamp_min(1e-300)
        return SingularTriplets(
            left=self.left.combine(p[:, :count]),
            values=s[:count],
            right=self.right.combine(qh[:count].T),
            residuals=residuals,
            pairs=self.pairs,
            converged=count == k and bool((residuals <= tol).all()),
        )

    def least_squares(self, damping: float) -> tuple[Tensor, float]:
        """Solve min |A v - start|^2 + damping |v|^2 from a left start; returns v (1, ...) and the relative gradient."""
        b = self.matrix
        rhs = b.new_zeros(len(b))
        rhs[: len(self.start)] = self.start[:, 0]
        y = damped_least_squares(b, rhs, damping)
        # the gradient A'(A v - start) + damping v lies along the next right vectors
        gradient = float(self._along_next(b @ y - rhs).norm())
        return self.right.combine(y[:, None]), gradient / float((b.T @ rhs).norm())

    def _along_next(self, coefficients: Tensor) -> Tensor:
        """The part of A' U c along the next right vectors, where A' U c leaves the space; c (m,) or (m, k).

        It takes no product: only A' of the last left block has such a part, and its coefficients are known.
        """
        if not len(self._next_coefficients):
            return coefficients.new_zeros(1, *coefficients.shape[1:])
        return self._next_coefficients @ coefficients[len(coefficients) - self._last :]


@torch.no_grad()
def partial_svd(
    matvec: Product, rmatvec: Product, start: Tensor, k: int, *, tol: float = 1e-3, max_pairs: int = 60
) -> SingularTriplets:
    """Leading k singular triplets of A.

    Args:
        matvec: V (p, ...) -> A V.
        rmatvec: U (p, ...) -> A' U.
        start: right start vectors (p, ...), best in the range of A'; seeded ones make runs repeat. p is the block size:
            1 needs the fewest products, more runs them together.
        k: how many triplets.
        tol: bound on |A'u - s v| / s_1 for every triplet.
        max_pairs: where to stop without convergence, which the result then says.

    The start vector may hold little of the larger of two close singular values, so that the residuals are small before
    that one appears. So after all residuals are within the tolerance k // 3 more pairs are taken, and at least three.

    Source: Golub-Kahan-Lanczos with full reorthogonalisation; the stop test is the exact residual, which the
    bidiagonal matrix gives without a product.

    Raises:
        ZeroOperatorError: A sends the start vectors to zero.
    """
    space = Bidiagonalisation(matvec, rmatvec, start)
    enough = None
    while not space.exhausted and space.pairs < max_pairs:
        space.grow()
        if not len(space.left):
            msg = "The operator maps the start vector to zero, so it has no singular vectors there."
            raise ZeroOperatorError(msg)
        if space.pairs >= k and space.triplets(k, tol).converged:
            enough = enough or space.pairs + max(GUARD, k // 3)
            if space.pairs >= enough:
                break
    return space.triplets(k, tol)


@torch.no_grad()
def least_squares(
    matvec: Product, rmatvec: Product, target: Tensor, *, damping: float, tol: float = 1e-2, max_pairs: int = 25
) -> tuple[Tensor, int, float]:
    """The smallest v (1, ...) with A v near `target` (1, ...): min |A v - target|^2 + damping |v|^2.

    Returns:
        v, the pairs spent, and the relative gradient |A'(A v - target) + damping v| / |A' target| that was reached.

    Source: LSQR (Paige and Saunders 1982), here with full reorthogonalisation and the small problem solved in float64.

    Raises:
        ZeroOperatorError: A' sends the target to zero, so that no v brings A v nearer to it.
    """
    space = Bidiagonalisation(matvec, rmatvec, target, left=True)
    if space.exhausted:
        msg = "The operator's transpose maps the target to zero, so nothing brings A v nearer to it."
        raise ZeroOperatorError(msg)
    while True:
        space.grow()
        solution, gradient = space.least_squares(damping)
        if gradient <= tol or space.exhausted or space.pairs >= max_pairs:
            return solution, space.pairs, gradient
