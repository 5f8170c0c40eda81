"""Partial SVD and least squares from one Golub-Kahan bidiagonalisation.

A is given by its products only: `matvec(v) = A v` and `rmatvec(u) = A' u`, on tensors of any fixed shape. One *pair* is
one product with A and one with A'. Full reorthogonalisation keeps both bases orthonormal to rounding, which plain
Lanczos does not (Golub and Van Loan, Matrix Computations, 4th ed., sections 10.4.1 and 11.4; Paige and Saunders 1982).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SingularTriplets:
    """Leading singular triplets.

    Attributes:
        left: u_i, stacked along a new first dimension, orthonormal.
        values: s_i, descending.
        right: v_i, stacked along a new first dimension, orthonormal.
        residuals: |A'u_i - s_i v_i| / s_1; A v_i = s_i u_i holds to rounding by construction.
        pairs: products with A and A' that were spent.
        converged: whether all residuals are within the tolerance.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    residuals: Tensor
    pairs: int
    converged: bool


class Bidiagonalisation:
    """A V_k = U_{k+1} B_k with B_k lower bidiagonal, grown one pair at a time from the left start vector.

    `alphas[i]` is B[i, i], `betas[i]` is B[i, i - 1], and `betas[0]` is the norm of the start vector.
    """

    def __init__(self, matvec: Product, rmatvec: Product, start: Tensor):
        self._matvec, self._rmatvec = matvec, rmatvec
        self._left_shape = start.shape
        norm = start.norm()
        if not torch.isfinite(norm) or norm == 0:
            msg = "the start vector of a bidiagonalisation must be finite and not zero"
            raise ValueError(msg)
        self.left = [start.flatten() / norm]
        self.right: list[Tensor] = []
        self.alphas: list[float] = []
        self.betas = [float(norm)]
        self.pairs = 0
        self.exhausted = False
        self._right_shape: torch.Size | None = None
        self._next_alpha, self._next_right = self._apply_transpose()

    def _apply_transpose(self) -> tuple[float, Tensor]:
        """alpha v = A' u_last, orthogonal to all earlier v."""
        product = self._rmatvec(self.left[-1].view(self._left_shape))
        self._right_shape = product.shape
        vector = _orthogonalise(product.flatten(), self.right)
        alpha = float(vector.norm())
        return alpha, vector / alpha if alpha > 0 else vector

    def grow(self) -> None:
        """Take one more pair; sets `exhausted` where the Krylov space has become invariant."""
        scale = max([*self.alphas, self._next_alpha])
        if self._next_alpha <= 1e-7 * scale or len(self.right) >= self._next_right.numel():
            self.exhausted = True
            return
        self.alphas.append(self._next_alpha)
        self.right.append(self._next_right)
        vector = _orthogonalise(self._matvec(self.right[-1].view(self._right_shape)).flatten(), self.left)
        beta = float(vector.norm())
        self.pairs += 1
        if beta <= 1e-7 * scale or len(self.left) >= vector.numel():
            # A V = U B is exact: pad with a zero row, which leaves no residual
            self.betas.append(0.0)
            self._next_alpha, self.exhausted = 0.0, True
            return
        self.betas.append(beta)
        self.left.append(vector / beta)
        self._next_alpha, self._next_right = self._apply_transpose()

    def matrix(self) -> Tensor:
        """B_k, (k + 1, k) in float64."""
        k = len(self.right)
        b = torch.zeros(k + 1, k, dtype=torch.float64)
        for i in range(k):
            b[i, i], b[i + 1, i] = self.alphas[i], self.betas[i + 1]
        return b

    def triplets(self, k: int, tol: float) -> SingularTriplets:
        """The k leading triplets that this space holds."""
        p, s, qh = torch.linalg.svd(self.matrix(), full_matrices=False)
        k = min(k, len(s))
        # A'u - s v = alpha_{k+1} v_{k+1} P[k+1, i]: the residual costs no product
        residuals = self._next_alpha * p[-1, :k].abs() / s[0].clamp_min(1e-300)
        left, right = torch.stack(self.left), torch.stack(self.right)
        coefficients = p[: len(self.left), :k].to(left)
        return SingularTriplets(
            left=(coefficients.T @ left).view(k, *self._left_shape),
            values=s[:k],
            right=(qh[:k].to(right) @ right).view(k, *self._right_shape),
            residuals=residuals,
            pairs=self.pairs,
            converged=bool((residuals <= tol).all()),
        )

    def least_squares(self, damping: float) -> tuple[Tensor, float]:
        """Solve min |A v - start|^2 + damping |v|^2 in this space; returns v and the relative gradient."""
        b = self.matrix()
        k = b.shape[1]
        rhs = torch.zeros(k + 1, dtype=torch.float64)
        rhs[0] = self.betas[0]
        normal = b.T @ b + damping * torch.eye(k, dtype=torch.float64)
        y = torch.linalg.solve(normal, b.T @ rhs)
        # A'(A v - start) + damping v = alpha_{k+1} v_{k+1} (B y - rhs)[k]
        gradient = self._next_alpha * abs(float((b @ y - rhs)[-1]))
        start_gradient = self.alphas[0] * self.betas[0]
        right = torch.stack(self.right)
        return (y.to(right) @ right).view(self._right_shape), gradient / start_gradient


def partial_svd(
    matvec: Product, rmatvec: Product, start: Tensor, k: int, *, tol: float = 1e-3, max_pairs: int = 60
) -> SingularTriplets:
    """Leading k singular triplets of A.

    Args:
        matvec: v -> A v.
        rmatvec: u -> A' u.
        start: left start vector (any vector with a part in the range of A; a seeded random one makes runs repeat).
        k: how many triplets.
        tol: bound on |A'u - s v| / s_1 for every triplet.
        max_pairs: where to stop without convergence, which the result then says.

    Source: Golub-Kahan-Lanczos with full reorthogonalisation; the stop test is the exact residual, which the
    bidiagonal matrix gives without a product.
    """
    space = Bidiagonalisation(matvec, rmatvec, start)
    while not space.exhausted and space.pairs < max_pairs:
        space.grow()
        if space.pairs >= k:
            result = space.triplets(k, tol)
            if result.converged:
                return result
    if not space.right:
        msg = "the operator sent the start vector to zero, so it has no singular directions there"
        raise ValueError(msg)
    return space.triplets(k, tol)


def least_squares(
    matvec: Product, rmatvec: Product, target: Tensor, *, damping: float, tol: float = 1e-2, max_pairs: int = 25
) -> tuple[Tensor, int, float]:
    """The smallest v with A v near `target`: min |A v - target|^2 + damping |v|^2.

    Returns:
        v, the pairs spent, and the relative residual of the normal equations that was reached.

    Source: LSQR (Paige and Saunders 1982), here with full reorthogonalisation and the small problem solved in float64.
    """
    space = Bidiagonalisation(matvec, rmatvec, target)
    while True:
        space.grow()
        if not space.right:
            msg = "the operator sends the wanted change to zero, so no move can make it"
            raise ValueError(msg)
        solution, residual = space.least_squares(damping)
        if residual <= tol or space.exhausted or space.pairs >= max_pairs:
            return solution, space.pairs, residual


def _orthogonalise(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Vector minus its projection on an orthonormal basis, twice (Kahan: twice is enough)."""
    if not basis:
        return vector
    stacked = torch.stack(basis)
    for _ in range(2):
        vector = vector - stacked.T @ (stacked @ vector)
    return vector
