"""Krylov spaces of an operator A: orthonormal vectors kept with their images, for solvers that need no products."""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import KrylovBasis, damped_least_squares, in_float64
from .operators import RestrictedOperator
from .svd import Product, SingularTriplets


class KrylovSpace:
    """Orthonormal vectors V and their images W = A V: SVD of A, or of A with masked rows P A, restricted to span V.

    Attributes:
        basis: V.
        images: W, (m, M).
        image_shape: what the images stand for has this shape, with M numbers; by default that of the vectors.
    """

    def __init__(self, basis: KrylovBasis, images: Tensor, image_shape: torch.Size | None = None):
        self.basis, self.images = basis, images
        self.image_shape = basis.shape if image_shape is None else image_shape

    @classmethod
    def of(cls, recorded: RestrictedOperator) -> KrylovSpace:
        """The space of the vectors that a search has multiplied with A, which must be orthonormal."""
        images = torch.cat(recorded.images)
        return cls(KrylovBasis.of(torch.cat(recorded.vectors)), images.flatten(1), images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def triplets(self, k: int, mask: Tensor | None = None) -> SingularTriplets:
        """The k leading singular triplets of P A inside the space, P the weighting of rows by `mask`.

        Their residuals are not known: A' would have to be applied.
        """
        y, s, uh = torch.linalg.svd(in_float64(self.masked(self.images, mask)), full_matrices=False)
        count = min(k, len(s))  # y (m, m), s (m,), uh (m, M)
        return SingularTriplets(
            left=uh[:count].to(self.images).view(-1, *self.image_shape),
            values=s[:count],
            right=self.basis.combine(y[:, :count]),
            residuals=torch.full((count,), float("nan"), dtype=torch.float64),
            pairs=len(self.images),
            converged=False,
        )

    def off(self, vectors: Tensor) -> KrylovSpace:
        """The part of the space that is orthogonal to orthonormal vectors (r, ...) of it."""
        inside = in_float64(self.basis.rows @ vectors.flatten(1).T)  # m r
        complement = torch.linalg.qr(inside, mode="complete")[0][:, inside.shape[1] :]  # m (m - r)
        images = complement.T.to(self.images) @ self.images
        return KrylovSpace(KrylovBasis.of(self.basis.combine(complement)), images, self.image_shape)

    def apply(self, v: Tensor) -> Tensor:
        """A v of vectors (k, ...) that lie in the space, from the images alone."""
        return (v.flatten(1) @ self.basis.rows.T @ self.images).view(-1, *self.image_shape)

    def masked(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Images (m, M) with their rows weighted by a mask."""
        return rows if mask is None else rows * mask.expand(1, *self.image_shape).flatten()


class ForwardKrylovSpace(KrylovSpace):
    """The Krylov space of a nearly symmetric operator, from products with A alone.

    Because A is nearly symmetric, its powers span about the same space as those of A'A. The SVD of W (or of its masked
    rows) inside the space gives the strongest moves of that space without a backward pass, with their exact effects.
    They only approach the singular vectors of A, and less so the less symmetric A is (the table `forward_only` in
    benchmarks/README.md tells by how many degrees). Ours; compare posterior principal components, arXiv 2309.13598. One
    space serves any number of masks.

    For one mask it is better when grown by A P A in place of A A, every other product being of a masked image (ours):
    the right singular vectors of P A are the eigenvectors of A'P A, which is nearly A P A.

    Attributes:
        products: products with A that the space has cost.
    """

    @torch.no_grad()
    def __init__(
        self,
        matvec: Product,
        start: Tensor,
        size: int,
        *,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        smaller: KrylovSpace | None = None,
    ):
        """Grow the space to `size` vectors from start vectors (p, ...), p of them at a time.

        The image A v of one start vector v, where it is known already, saves the first product. `mask` is the one that
        the space is grown for. From a `smaller` space, grown from one vector without a mask, it goes on where that one
        ends; the start is then the last image of it.
        """
        basis, images, self.products = KrylovBasis(size), [], 0
        if smaller is not None:
            basis.append(smaller.basis.rows)
            images.append(smaller.images)
        _, block, scale = basis.split(start)
        known = None if image is None else image / float(scale)
        while len(block) and len(basis) < size:
            basis.append(block)
            if known is None:
                products = matvec(block.view(-1, *basis.shape))
                self.products += len(block)
            else:
                products, known = known, None
            images.append(products.flatten(1))
            _, block, _ = basis.split(products if mask is None or len(images) % 2 == 0 else mask * products)
            if not len(block):  # what the mask leaves is in the space already
                _, block, _ = basis.split(products)
        super().__init__(basis, torch.cat(images))

    @property
    def asymmetry(self) -> float:
        """|T - T'| / |T + T'| of T = V'A V: 0 for a symmetric operator, 1 where both parts are as large."""
        t = self.basis.rows @ self.images.T
        return float((t - t.T).norm() / (t + t.T).norm())

    def least_squares(self, target: Tensor, damping: float, mask: Tensor | None = None) -> tuple[Tensor, float]:
        """The v (1, ...) in the space that minimises |P (A v - target)|^2 + damping |v|^2.

        Started at `target`, this is GMRES (Saad and Schultz 1986) with damping.

        Returns:
            v, and the relative misfit |P (A v - target)| / |P target|.
        """
        images = in_float64(self.masked(self.images, mask)).T  # N m
        wanted = in_float64(self.masked(target.flatten(1), mask))[0]
        q, r = torch.linalg.qr(images)  # the small problem, so that the solver sees m rows in place of N
        y = damped_least_squares(r, q.T @ wanted, damping)
        return self.basis.combine(y[:, None]), float((images @ y - wanted).norm() / wanted.norm())
