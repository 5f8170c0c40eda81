"""General linear algebra on tensors that stand for vectors: projections, orthonormal spans, growing bases."""

from __future__ import annotations

import torch
from torch import Tensor

# A vector counts as inside a space when this share of its norm, or less, is left after projection.
INSIDE = 1e-6
# Singular values below this share of the largest are taken for zero when a span is formed.
RANK_TOLERANCE = 1e-4


def orthonormal_span(vectors: list[Tensor]) -> Tensor:
    """Orthonormal basis (B, N, k) per sample of the span of k tensors (B, ...); a zero tensor adds a zero column."""
    stacked = torch.stack([v.flatten(1) for v in vectors], dim=-1)  # B N k
    stacked = stacked if stacked.dtype == torch.float64 else stacked.float()
    u, s, _ = torch.linalg.svd(stacked, full_matrices=False)
    return u * (s > RANK_TOLERANCE * s.amax(dim=-1, keepdim=True).clamp_min(1e-30)).unsqueeze(1)


def project_off(x: Tensor, basis: Tensor) -> Tensor:
    """The part of `x` (B, ...) that is orthogonal to the orthonormal columns of `basis` (B or 1, N, k)."""
    flat = x.flatten(1).unsqueeze(-1)  # B N 1
    return (flat - basis @ (basis.transpose(1, 2) @ flat)).view_as(x)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|, in the Euclidean norm of all entries."""
    return float((value - reference).norm() / reference.norm().clamp_min(1e-30))


def in_float64(rows: Tensor) -> Tensor:
    """The same numbers in float64, and on the CPU because some GPUs have no float64."""
    return rows.cpu().double()


def damped_least_squares(a: Tensor, b: Tensor, damping: float) -> Tensor:
    """The y (n,) that minimises |A y - b|^2 + damping |y|^2, A (m, n) and b (m,) in float64 on the CPU.

    Solved as the least-squares problem of A with sqrt(damping) I below it: the normal equations would square the
    condition number.
    """
    n = a.shape[1]
    stacked = torch.cat([a, damping**0.5 * torch.eye(n, dtype=a.dtype)])
    wanted = torch.cat([b, b.new_zeros(n)])
    return torch.linalg.lstsq(stacked, wanted[:, None], driver="gelsd").solution[:, 0]


class KrylovBasis:
    """Orthonormal vectors that grow; the tensors they stand for may have any fixed shape.

    Memory is reserved for `capacity` vectors at once, and twice as much whenever that is full.
    """

    def __init__(self, capacity: int = 16):
        self._capacity, self._length = max(1, capacity), 0
        self._memory: Tensor | None = None  # (capacity, N)
        self.shape: torch.Size | None = None

    @classmethod
    def of(cls, vectors: Tensor) -> KrylovBasis:
        """A basis of orthonormal vectors (m, ...)."""
        basis = cls(len(vectors))
        basis.shape, basis._memory, basis._length = vectors.shape[1:], vectors.flatten(1), len(vectors)
        return basis

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> Tensor:
        """The vectors so far, (m, N); m must not be 0."""
        return self._memory[: self._length]

    def split(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write (p, ...) vectors as basis @ inside + new @ outside, with new (q, N) orthonormal and off the basis.

        Returns:
            inside (m, p), new (q, N), outside (q, p); coefficients in float64.
        """
        self.shape = vectors.shape[1:]
        flat = vectors.flatten(1)
        inside = torch.zeros(len(self), len(flat), dtype=torch.float64)
        norms = flat.norm(dim=1)
        if len(self):
            for _ in range(2):  # one pass leaves rounding errors of the size of those it removes (Kahan)
                coefficients = flat @ self.rows.T  # (p, m)
                flat = flat - coefficients @ self.rows
                inside += coefficients.T.cpu().double()
        # Vector by vector: torch's QR keeps a column of rounding errors for a vector that depends on those before it.
        new: list[Tensor] = []
        outside = torch.zeros(len(flat), len(flat), dtype=torch.float64)
        for i, vector in enumerate(flat):
            for _ in range(2):
                for j, other in enumerate(new):
                    coefficient = other @ vector
                    vector = vector - coefficient * other
                    outside[j, i] += float(coefficient)
            norm = float(vector.norm())
            if norm > INSIDE * float(norms[i]):
                outside[len(new), i] = norm
                new.append(vector / norm)
        empty = flat.new_zeros(0, flat.shape[1])
        return inside, torch.stack(new) if new else empty, outside[: len(new)]

    def append(self, new: Tensor) -> None:
        """Add orthonormal rows (q, N) from `split`."""
        length = self._length + len(new)
        if self._memory is None or length > len(self._memory):
            while self._capacity < length:
                self._capacity *= 2
            memory = new.new_empty(self._capacity, new.shape[1])
            if self._length:
                memory[: self._length] = self.rows
            self._memory = memory
        self._memory[self._length : length] = new
        self._length = length

    def combine(self, coefficients: Tensor) -> Tensor:
        """The vectors with the given coefficients (m, k), stacked along the first dimension."""
        return (coefficients.T.to(self.rows) @ self.rows).view(-1, *self.shape)
