"""Banks: vectors and their products with an operator A, kept, so that more can be asked of A without new products."""

from __future__ import annotations

import torch
from torch import Tensor

from .svd import Basis, Product, SingularTriplets


class Bank:
    """Orthonormal vectors V and their images W = A V, from which any weighting P of A's rows can be searched for free.

    Attributes:
        basis: V.
        images: W, (m, N).
    """

    def __init__(self, basis: Basis, images: Tensor):
        self.basis, self.images = basis, images

    def triplets(self, k: int, weight: Tensor | None = None) -> SingularTriplets:
        """The k leading singular triplets of P A inside the bank, P the weighting of rows by `weight`.

        Their residuals are not known: A' would have to be applied.
        """
        y, s, uh = torch.linalg.svd(_in_float64(self._weighted(self.images, weight)), full_matrices=False)
        held = min(k, len(s))  # y (m, m), s (m,), uh (m, N)
        return SingularTriplets(
            left=uh[:held].to(self.images).view(-1, *self.basis.shape),
            values=s[:held],
            right=self.basis.combine(y[:, :held]),
            residuals=torch.full((held,), float("nan"), dtype=torch.float64),
            pairs=len(self.images),
            converged=False,
        )

    def off(self, vectors: Tensor) -> Bank:
        """The part of the bank that is orthogonal to orthonormal vectors (r, ...) of it."""
        inside = _in_float64(self.basis.rows @ vectors.flatten(1).T)  # m r
        complement = torch.linalg.qr(inside, mode="complete")[0][:, inside.shape[1] :]  # m (m - r)
        return Bank(Basis(self.basis.combine(complement)), complement.T.to(self.images) @ self.images)

    def __len__(self) -> int:
        return len(self.images)

    def apply(self, v: Tensor) -> Tensor:
        """A v of vectors (k, ...) that lie in the bank, from the images alone."""
        return (v.flatten(1) @ self.basis.rows.T @ self.images).view_as(v)

    def _weighted(self, rows: Tensor, weight: Tensor | None) -> Tensor:
        return rows if weight is None else rows * weight.expand(1, *self.basis.shape).flatten()


class RememberedProducts:
    """The products of an operator with the orthonormal vectors of one search, kept as a bank."""

    def __init__(self, operator):
        """Stand in for `operator`, which has `matvec` and `rmatvec`."""
        self._operator, self.rmatvec = operator, operator.rmatvec
        self._vectors: list[Tensor] = []
        self._images: list[Tensor] = []

    def matvec(self, v: Tensor) -> Tensor:
        """A v (p, ...)."""
        image = self._operator.matvec(v)
        self._vectors.append(v)
        self._images.append(image)
        return image

    def bank(self) -> Bank:
        """All vectors so far with their images."""
        return Bank(Basis(torch.cat(self._vectors)), torch.cat(self._images).flatten(1))


class ForwardBank(Bank):
    """A Krylov bank of a nearly symmetric operator, from products with it alone.

    Because A is nearly symmetric, its powers span about the same space as those of A'A, and the SVD of W (or of its
    masked rows) inside the bank gives the singular directions of A (or of P A) without a backward pass (ours; compare
    posterior principal components, arXiv 2309.13598). One bank serves any number of masks.

    For one mask it is better when grown by A P A in place of A A, every other product being of a masked image (ours):
    the right singular vectors of P A are the eigenvectors of A'P A, which is nearly A P A.

    Attributes:
        products: products with A that the bank has cost.
    """

    def __init__(
        self, matvec: Product, start: Tensor, size: int, *, image: Tensor | None = None, weight: Tensor | None = None
    ):
        """Grow the bank to `size` vectors from start vectors (p, ...), p of them at a time.

        The image A v of one start vector v, where it is known already, saves the first product. `weight` is the mask
        that the bank is grown for.
        """
        basis, images, self.products = Basis(), [], 0
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
            _, block, _ = basis.split(products if weight is None or len(images) % 2 == 0 else weight * products)
            if not len(block):  # what the mask leaves is in the bank already
                _, block, _ = basis.split(products)
        super().__init__(basis, torch.cat(images))

    @property
    def asymmetry(self) -> float:
        """|T - T'| / |T + T'| of T = V'A V: 0 for a symmetric operator, 1 where both parts are as large."""
        t = self.basis.rows @ self.images.T
        return float((t - t.T).norm() / (t + t.T).norm())

    def least_squares(self, target: Tensor, damping: float, weight: Tensor | None = None) -> tuple[Tensor, float]:
        """The smallest v (1, ...) in the bank with P A v near P target, and the relative misfit |P (A v - target)|.

        Started at `target`, this is GMRES (Saad and Schultz 1986) with damping.
        """
        images = _in_float64(self._weighted(self.images, weight))
        wanted = _in_float64(self._weighted(target.flatten(1), weight))
        normal = images @ images.T
        damped = normal + damping * torch.eye(len(normal), dtype=normal.dtype)
        y = torch.linalg.solve(damped, images @ wanted.T)
        return self.basis.combine(y), float((images.T @ y - wanted.T).norm() / wanted.norm())


def _in_float64(rows: Tensor) -> Tensor:
    """On the CPU, for some GPUs have no float64."""
    return rows.cpu().double()
