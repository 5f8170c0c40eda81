"""Partial SVD and least squares against dense float64 linear algebra, on matrices of prescribed spectra."""

import pytest
import torch

from latent_directions.core.errors import NotFiniteError, ZeroOperatorError
from latent_directions.core.svd import Bidiagonalisation, least_squares, partial_svd

SPECTRA = {
    "decaying": 0.6 ** torch.arange(20.0, dtype=torch.float64),
    "slow": 1 / torch.arange(1.0, 21, dtype=torch.float64),
    "clustered": torch.tensor([1, 0.999, 0.998, 0.997] + [0.1] * 16, dtype=torch.float64),
    "rank 4": torch.tensor([3.0, 2, 1, 0.5] + [0] * 16, dtype=torch.float64),
}
LEFTS, RIGHTS = (
    {"square": (2, 10), "tall": (2, 3, 5), "wide": (4, 5)},
    {"square": (4, 5), "tall": (20,), "wide": (6, 5)},
)


class Matrix:
    """A dense matrix of a given spectrum as products on blocks of tensors, which are counted."""

    def __init__(self, spectrum, shape="square", seed=0, dtype=torch.float64):
        self.left, self.right = LEFTS[shape], RIGHTS[shape]
        generator = torch.Generator().manual_seed(seed)
        m, n = torch.Size(self.left).numel(), torch.Size(self.right).numel()
        u, v = (
            torch.linalg.qr(torch.randn(size, len(spectrum), generator=generator, dtype=torch.float64))[0]
            for size in (m, n)
        )
        self.dense = ((u * spectrum) @ v.T).to(dtype)
        self.products = [0, 0]

    def matvec(self, v):
        assert v.shape[1:] == self.right
        self.products[0] += len(v)
        return (v.flatten(1) @ self.dense.T).view(-1, *self.left)

    def rmatvec(self, u):
        assert u.shape[1:] == self.left
        self.products[1] += len(u)
        return (u.flatten(1) @ self.dense).view(-1, *self.right)

    def start(self, block=1, seed=1):
        return torch.randn(block, *self.right, generator=torch.Generator().manual_seed(seed)).to(self.dense)

    def target(self):
        return torch.randn(1, *self.left, generator=torch.Generator().manual_seed(1)).to(self.dense)

    def svd(self, k, block=1, **options):
        return partial_svd(self.matvec, self.rmatvec, self.start(block), k, **options)


def true_residuals(matrix: Matrix, result) -> torch.Tensor:
    """|A'u - s v| / s1, from the dense matrix."""
    u, v = result.left.flatten(1), result.right.flatten(1)
    return (u @ matrix.dense - result.values[:, None] * v).norm(dim=1) / result.values[0]


def gram_error(vectors: torch.Tensor) -> float:
    flat = vectors.flatten(1)
    return float((flat @ flat.T - torch.eye(len(flat)).to(flat)).abs().max())


@pytest.mark.parametrize("shape", LEFTS)
@pytest.mark.parametrize("spectrum", ["decaying", "slow", "clustered"])
@pytest.mark.parametrize("block", [1, 3])
def test_leading_triplets(spectrum, shape, block):
    matrix, k = Matrix(SPECTRA[spectrum], shape), 4
    result = matrix.svd(k, block, tol=1e-10)
    u, s, vh = torch.linalg.svd(matrix.dense, full_matrices=False)
    assert result.converged
    assert torch.allclose(result.values, s[:k], rtol=1e-9)
    assert gram_error(result.left) < 1e-12
    assert gram_error(result.right) < 1e-12
    # vectors up to sign; u and v share it
    signs = (result.right.flatten(1) * vh[:k]).sum(1)
    assert torch.allclose(signs.abs(), torch.ones_like(signs), atol=1e-8)
    assert torch.allclose((result.left.flatten(1) * u[:, :k].T).sum(1), signs, atol=1e-8)
    assert torch.allclose(result.right.flatten(1) @ matrix.dense.T, result.values[:, None] * result.left.flatten(1))
    assert result.left.shape == (k, *matrix.left)
    assert result.right.shape == (k, *matrix.right)


@pytest.mark.parametrize("pairs", [5, 6, 8, 12])
@pytest.mark.parametrize("block", [1, 2])
def test_residuals_are_the_true_ones(pairs, block):
    """Also where it has not converged, which it says."""
    matrix = Matrix(SPECTRA["slow"])
    result = matrix.svd(5, block, tol=1e-12, max_pairs=pairs)
    assert torch.allclose(result.residuals, true_residuals(matrix, result), atol=1e-12)
    assert not result.converged
    assert result.residuals.max() > 1e-12
    assert len(result.values) == 5


def test_it_stops_at_the_tolerance_and_not_far_below():
    matrix = Matrix(SPECTRA["decaying"])
    loose, tight = matrix.svd(3, tol=1e-2), matrix.svd(3, tol=1e-8)
    assert loose.pairs < tight.pairs < 20
    for result, tol in ((loose, 1e-2), (tight, 1e-8)):
        assert result.converged
        assert true_residuals(matrix, result).max() <= tol * 1.001


@pytest.mark.parametrize("block", [1, 4])
def test_pairs_are_the_products_spent(block):
    matrix = Matrix(SPECTRA["slow"])
    result = matrix.svd(4, block, tol=1e-4)
    assert matrix.products[0] == result.pairs
    assert matrix.products[1] == result.pairs


def test_a_value_close_to_another_is_found_though_it_comes_late():
    """Residuals are within the tolerance a few pairs before the second of the two shows."""
    spectrum = torch.cat([0.8 ** torch.arange(10.0, dtype=torch.float64), torch.full((10,), 0.01, dtype=torch.float64)])
    spectrum[7] = spectrum[6] - 1e-4
    matrix = Matrix(spectrum)
    u, _, vh = torch.linalg.svd(matrix.dense)
    start = matrix.start().flatten() @ vh.T
    start[7] *= 1e-3  # next to nothing of the second
    result = partial_svd(*_products(matrix), (start @ vh).view(1, *matrix.right), 9, tol=1e-3)
    assert result.converged
    assert torch.allclose(result.values, spectrum.sort(descending=True).values[:9], atol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_larger_of_two_close_values_is_not_missed(k):
    """Values k and k + 1 are 2 % apart. Residuals alone miss the larger one in a few of 200 random matrices."""
    values = torch.cat([torch.linspace(1.4, 1.0, k), torch.tensor([0.98]), 0.9 * 0.9 ** torch.arange(1.0, 60)]).double()
    missed = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        rotated = torch.randn(60 + k, 60 + k, generator=generator, dtype=torch.float64)
        vh = torch.linalg.qr(rotated)[0]
        dense = values[:, None] * vh  # the left singular vectors do not matter
        start = torch.randn(1, 60 + k, generator=generator, dtype=torch.float64) @ dense.T @ dense
        result = partial_svd(lambda v, a=dense: v @ a.T, lambda u, a=dense: u @ a, start, k, tol=1e-3)
        missed += result.converged and abs(float(result.values[-1] - values[k - 1])) > 5e-3
    assert missed == 0


def test_same_start_same_result():
    first, again = (Matrix(SPECTRA["slow"]).svd(3) for _ in range(2))
    assert torch.equal(first.right, again.right)
    assert torch.equal(first.values, again.values)
    other = partial_svd(*_products(Matrix(SPECTRA["slow"])), Matrix(SPECTRA["slow"]).start(seed=9), 3, tol=1e-9)
    assert torch.allclose(other.values, first.values, rtol=1e-3)


def _products(matrix: Matrix):
    return matrix.matvec, matrix.rmatvec


@pytest.mark.parametrize("block", [1, 3])
def test_rank_deficient(block):
    """The space is exhausted after the rank; what it holds is exact, and asking for more is not converged."""
    matrix = Matrix(SPECTRA["rank 4"])
    result = matrix.svd(3, block, tol=1e-9)
    assert result.converged
    assert torch.allclose(result.values, SPECTRA["rank 4"][:3])
    more = matrix.svd(6, block, tol=1e-9)
    assert not more.converged
    assert 4 <= len(more.values) < 6
    assert torch.allclose(more.values[:4], SPECTRA["rank 4"][:4])
    assert (more.values[4:] < 1e-9).all()
    assert gram_error(more.left) < 1e-9
    assert gram_error(more.right) < 1e-9


def test_flat_spectrum():
    """From one start vector a flat spectrum shows one direction, and that is all that is claimed."""
    matrix = Matrix(torch.ones(20, dtype=torch.float64))
    alone = matrix.svd(3)
    assert not alone.converged
    assert torch.allclose(alone.values, torch.ones_like(alone.values))
    together = matrix.svd(3, block=3)
    assert together.converged
    assert torch.allclose(together.values, torch.ones(3, dtype=torch.float64))


def test_repeated_values_come_out_of_a_block():
    matrix = Matrix(torch.tensor([2.0, 2, 2] + [0.3] * 17, dtype=torch.float64))
    result = matrix.svd(3, block=3, tol=1e-9)
    assert result.converged
    assert torch.allclose(result.values, torch.full((3,), 2.0, dtype=torch.float64))
    assert gram_error(result.right) < 1e-10


def test_dependent_start_vectors_count_once():
    matrix = Matrix(SPECTRA["decaying"])
    start = matrix.start()
    doubled = partial_svd(*_products(matrix), torch.cat([start, 2 * start]), 3, tol=1e-9)
    assert torch.allclose(doubled.values, SPECTRA["decaying"][:3])


def test_single_precision_stays_orthonormal():
    """Plain Lanczos loses orthogonality long before this."""
    matrix = Matrix(SPECTRA["decaying"], dtype=torch.float32)
    result = matrix.svd(10, tol=1e-5)
    assert result.converged
    assert gram_error(result.left) < 1e-5
    assert gram_error(result.right) < 1e-5
    assert torch.allclose(result.values, SPECTRA["decaying"][:10], rtol=1e-3)


@pytest.mark.parametrize("k", [1, 20])
def test_one_and_all(k):
    matrix = Matrix(SPECTRA["slow"], "wide")
    result = matrix.svd(k, tol=1e-8)
    assert result.converged
    assert torch.allclose(result.values, SPECTRA["slow"][:k], rtol=1e-7)


def test_zero_operator_and_bad_starts():
    zero = Matrix(torch.zeros(20, dtype=torch.float64))
    with pytest.raises(ZeroOperatorError, match="maps the start vector to zero"):
        zero.svd(2)
    with pytest.raises(ZeroOperatorError, match="maps the target to zero"):
        least_squares(*_products(zero), zero.target(), damping=0.1)
    matrix = Matrix(SPECTRA["slow"])
    with pytest.raises(ZeroOperatorError, match="start vector of the solver is zero"):
        partial_svd(*_products(matrix), 0 * matrix.start(), 2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotFiniteError, match="NaN or infinite"):
            partial_svd(*_products(matrix), bad * matrix.start(), 2)


@pytest.mark.parametrize("shape", LEFTS)
@pytest.mark.parametrize("damping", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("spectrum", ["decaying", "slow", "rank 4"])
def test_least_squares(spectrum, shape, damping):
    matrix = Matrix(SPECTRA[spectrum], shape)
    target = matrix.target()
    v, pairs, residual = least_squares(*_products(matrix), target, damping=damping, tol=1e-11, max_pairs=60)
    a, t = matrix.dense, target.flatten()
    normal = a.T @ a + damping * torch.eye(a.shape[1], dtype=a.dtype)
    assert v.shape == (1, *matrix.right)
    assert torch.allclose(v.flatten(), torch.linalg.solve(normal, a.T @ t), atol=1e-8)
    assert residual <= 1e-11
    assert matrix.products[0] == pairs


@pytest.mark.parametrize("pairs", [1, 3, 6])
def test_least_squares_residual_is_the_true_one(pairs):
    matrix, damping = Matrix(SPECTRA["slow"]), 1e-3
    target = matrix.target()
    v, spent, residual = least_squares(*_products(matrix), target, damping=damping, tol=0.0, max_pairs=pairs)
    a, t, v = matrix.dense, target.flatten(), v.flatten()
    true = (a.T @ (a @ v - t) + damping * v).norm() / (a.T @ t).norm()
    assert spent == pairs
    assert residual == pytest.approx(float(true), rel=1e-8)


@pytest.mark.parametrize("left", [False, True])
def test_memory_is_reserved_once(left):
    """The vectors stay where they are while the space grows within its capacity."""
    matrix = Matrix(SPECTRA["slow"])
    start = matrix.target() if left else matrix.start()
    space = Bidiagonalisation(*_products(matrix), start, left=left)
    space.grow()
    addresses = space.left.rows.data_ptr(), space.right.rows.data_ptr()
    for _ in range(7):
        space.grow()
    assert (len(space.right), len(space.left)) == (8, 9 if left else 8)
    assert (space.left.rows.data_ptr(), space.right.rows.data_ptr()) == addresses


@pytest.mark.parametrize("left", [False, True])
def test_growing_an_exhausted_space_changes_nothing(left):
    matrix = Matrix(SPECTRA["rank 4"])
    space = Bidiagonalisation(*_products(matrix), matrix.target() if left else matrix.start(), left=left)
    for _ in range(8):
        space.grow()
    assert space.exhausted
    pairs = space.pairs
    space.grow()
    assert space.pairs == pairs <= 5
