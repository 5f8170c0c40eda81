"""Krylov spaces against dense float64 linear algebra."""

import pytest
import torch

from latent_directions.core.krylov import ForwardKrylovSpace, KrylovSpace
from latent_directions.core.operators import RestrictedOperator
from latent_directions.core.svd import partial_svd


def nearly_symmetric(asymmetry=0.0):
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    noise = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    return (q * 0.6 ** torch.arange(20.0, dtype=torch.float64)) @ q.T + asymmetry * (noise - noise.T)


def residuals(dense, result):
    """|A'u - s v| / s1."""
    u, v = result.left.flatten(1), result.right.flatten(1)
    return (u @ dense - result.values[:, None] * v).norm(dim=1) / result.values[0]


def gram(vectors):
    return vectors.flatten(1) @ vectors.flatten(1).T


class TestForwardKrylovSpace:
    def space(self, dense, products=20, block=1):
        start = torch.randn(block, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return ForwardKrylovSpace(lambda v: (v.flatten(1) @ dense.T).view(-1, 4, 5), start, products)

    def test_symmetric_operator(self):
        dense = nearly_symmetric()
        result = self.space(dense, products=12).triplets(3)
        s = torch.linalg.svdvals(dense)
        assert torch.allclose(result.values, s[:3], rtol=1e-6)
        assert residuals(dense, result).max() < 1e-4
        assert torch.allclose(gram(result.right), torch.eye(3, dtype=torch.float64), atol=1e-12)

    def test_whole_space_is_the_dense_answer_also_masked_and_asymmetric(self):
        dense = nearly_symmetric(asymmetry=0.05)
        mask = (torch.arange(20).view(1, 4, 5) % 3 == 0).double()
        space = self.space(dense)
        rows = mask.flatten()[:, None] * dense
        u, s, vh = torch.linalg.svd(rows)
        result = space.triplets(3, mask)
        assert torch.allclose(result.values, s[:3])
        for mine, exact in ((result.right.flatten(1), vh[:3]), (result.left.flatten(1), u.T[:3])):
            assert torch.allclose((mine * exact).sum(1).abs(), torch.ones(3, dtype=torch.float64), atol=1e-9)
        target = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        v, misfit = space.least_squares(target, 0.01, mask)
        wanted = mask.flatten() * target.flatten()
        exact = torch.linalg.solve(rows.T @ rows + 0.01 * torch.eye(20, dtype=torch.float64), rows.T @ wanted)
        assert torch.allclose(v.flatten(), exact, atol=1e-9)
        assert misfit == pytest.approx(float((rows @ exact - wanted).norm() / wanted.norm()))

    def test_least_squares_of_an_ill_conditioned_operator(self):
        """Singular values and damping below what the normal equations resolve in float64."""
        q = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
        dense, damping = (q * torch.logspace(0, -9, 20, dtype=torch.float64)) @ q.T, 1e-16
        u, s, vh = torch.linalg.svd(dense)
        target = dense @ vh.T @ torch.ones(20, dtype=torch.float64)
        v, misfit = self.space(dense).least_squares(target.view(1, 4, 5), damping)
        exact = vh.T @ ((s * (u.T @ target)) / (s**2 + damping))
        assert (v.flatten() - exact).norm() < 1e-4 * exact.norm()
        assert misfit < 1e-8

    def test_asymmetry(self):
        assert self.space(nearly_symmetric()).asymmetry < 1e-12
        dense = nearly_symmetric(asymmetry=0.05)
        expected = float((dense - dense.T).norm() / (dense + dense.T).norm())
        assert self.space(dense).asymmetry == pytest.approx(expected)

    @pytest.mark.parametrize("block", [1, 4])
    def test_products(self, block):
        space = self.space(nearly_symmetric(), products=8, block=block)
        assert space.products == len(space.basis) == 8

    @pytest.mark.parametrize("seed", range(4))
    def test_grown_for_a_mask_it_holds_more_of_what_moves_the_inside(self, seed):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
        dense = (q * torch.arange(20.0, 0, -1, dtype=torch.float64)) @ q.T  # slowly falling, so that 10 are few
        mask = (torch.arange(20).view(1, 4, 5) < 3).double()
        exact = torch.linalg.svdvals(mask.flatten()[:, None] * dense)[:1]
        start = torch.randn(1, 4, 5, generator=generator, dtype=torch.float64)
        plain, grown = (
            ForwardKrylovSpace(Dense(dense).matvec, start, 10, mask=grown_for).triplets(1, mask).values
            for grown_for in (None, mask)
        )
        assert exact - grown < 0.5 * (exact - plain)

    def test_a_known_image_saves_the_first_product(self):
        dense = nearly_symmetric()
        start = 3 * torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        known = ForwardKrylovSpace(Dense(dense).matvec, start, 5, image=Dense(dense).matvec(start))
        assert known.products == 4
        assert torch.allclose(known.images, ForwardKrylovSpace(Dense(dense).matvec, start, 5).images)

    def test_the_part_off_some_vectors(self):
        space = self.space(nearly_symmetric(asymmetry=0.05), products=9)
        taken = space.triplets(3).right
        rest = space.off(taken)
        assert len(rest) == 6
        vectors = rest.basis.rows
        assert not ((vectors @ taken.flatten(1).T).abs() > 1e-12).any()
        assert torch.allclose(gram(vectors), torch.eye(6, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(rest.images, space.apply(vectors.view(-1, 4, 5)).flatten(1))

    def test_small_invariant_space(self):
        dense = torch.diag(torch.tensor([2.0, 1.0] + [0] * 18, dtype=torch.float64))
        space = self.space(dense)
        assert space.products <= 4
        assert torch.allclose(space.triplets(2).values, torch.tensor([2.0, 1.0], dtype=torch.float64))


class Dense:
    """A matrix as an operator."""

    def __init__(self, matrix):
        self.matrix = matrix

    def matvec(self, v):
        return (v.flatten(1) @ self.matrix.T).view(-1, 4, 5)

    def rmatvec(self, u):
        return (u.flatten(1) @ self.matrix).view(-1, 4, 5)


class TestRecordedProducts:
    """The space of the vectors that a search has multiplied with the operator."""

    def search(self, start: torch.Tensor):
        dense = nearly_symmetric(asymmetry=0.05)
        mask = (torch.arange(20).view(1, 4, 5) < 6).double()
        recorded = RestrictedOperator(Dense(dense), mask, record=True)
        found = partial_svd(recorded.matvec, recorded.rmatvec, mask * start, 3, tol=1e-8)
        return dense, mask, found, KrylovSpace.of(recorded)

    def test_images_of_what_a_masked_search_found(self):
        start = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        dense, mask, found, space = self.search(start)
        assert len(space) == len(space.images) == found.pairs
        assert torch.allclose(space.apply(found.right).flatten(1), found.right.flatten(1) @ dense.T, atol=1e-12)
        # inside the space the search's own answer is the best one
        assert torch.allclose(space.triplets(3, mask).values, found.values, atol=1e-12)

    def test_other_rows_are_approached_from_below(self):
        dense, mask, _, space = self.search(torch.ones(1, 4, 5, dtype=torch.float64))
        guess = space.triplets(3, 1 - mask)
        exact = torch.linalg.svdvals((1 - mask).flatten()[:, None] * dense)[:3]
        assert (guess.values <= exact + 1e-12).all()
        assert not ((mask * guess.left).abs() > 1e-12).any()

    def test_no_residuals_are_claimed(self):
        result = self.search(torch.ones(1, 4, 5, dtype=torch.float64))[3].triplets(2)
        assert result.residuals.isnan().all()
        assert not result.converged
