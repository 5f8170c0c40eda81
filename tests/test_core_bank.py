"""Banks of products against dense float64 linear algebra."""

import pytest
import torch

from latent_directions.core.bank import ForwardBank, RememberedProducts
from latent_directions.core.operators import masked
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


class TestForwardBank:
    def bank(self, dense, products=20, block=1):
        start = torch.randn(block, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return ForwardBank(lambda v: (v.flatten(1) @ dense.T).view(-1, 4, 5), start, products)

    def test_symmetric_operator(self):
        dense = nearly_symmetric()
        result = self.bank(dense, products=12).triplets(3)
        s = torch.linalg.svdvals(dense)
        assert torch.allclose(result.values, s[:3], rtol=1e-6)
        assert residuals(dense, result).max() < 1e-4
        assert torch.allclose(gram(result.right), torch.eye(3, dtype=torch.float64), atol=1e-12)

    def test_whole_space_is_the_dense_answer_also_masked_and_asymmetric(self):
        dense = nearly_symmetric(asymmetry=0.05)
        weight = (torch.arange(20).view(1, 4, 5) % 3 == 0).double()
        bank = self.bank(dense)
        rows = weight.flatten()[:, None] * dense
        u, s, vh = torch.linalg.svd(rows)
        result = bank.triplets(3, weight)
        assert torch.allclose(result.values, s[:3])
        for mine, exact in ((result.right.flatten(1), vh[:3]), (result.left.flatten(1), u.T[:3])):
            assert torch.allclose((mine * exact).sum(1).abs(), torch.ones(3, dtype=torch.float64), atol=1e-9)
        target = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        v, misfit = bank.least_squares(target, 0.01, weight)
        wanted = weight.flatten() * target.flatten()
        exact = torch.linalg.solve(rows.T @ rows + 0.01 * torch.eye(20, dtype=torch.float64), rows.T @ wanted)
        assert torch.allclose(v.flatten(), exact, atol=1e-9)
        assert misfit == pytest.approx(float((rows @ exact - wanted).norm() / wanted.norm()))

    def test_asymmetry(self):
        assert self.bank(nearly_symmetric()).asymmetry < 1e-12
        dense = nearly_symmetric(asymmetry=0.05)
        expected = float((dense - dense.T).norm() / (dense + dense.T).norm())
        assert self.bank(dense).asymmetry == pytest.approx(expected)

    @pytest.mark.parametrize("block", [1, 4])
    def test_products(self, block):
        bank = self.bank(nearly_symmetric(), products=8, block=block)
        assert bank.products == len(bank.basis) == 8

    @pytest.mark.parametrize("seed", range(4))
    def test_grown_for_a_mask_it_holds_more_of_what_moves_the_inside(self, seed):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
        dense = (q * torch.arange(20.0, 0, -1, dtype=torch.float64)) @ q.T  # slowly falling, so that 10 are few
        weight = (torch.arange(20).view(1, 4, 5) < 3).double()
        exact = torch.linalg.svdvals(weight.flatten()[:, None] * dense)[:1]
        start = torch.randn(1, 4, 5, generator=generator, dtype=torch.float64)
        plain, grown = (
            ForwardBank(Dense(dense).matvec, start, 10, weight=mask).triplets(1, weight).values
            for mask in (None, weight)
        )
        assert exact - grown < 0.5 * (exact - plain)

    def test_a_known_image_saves_the_first_product(self):
        dense = nearly_symmetric()
        start = 3 * torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        known = ForwardBank(Dense(dense).matvec, start, 5, image=Dense(dense).matvec(start))
        assert known.products == 4
        assert torch.allclose(known.images, ForwardBank(Dense(dense).matvec, start, 5).images)

    def test_the_part_off_some_vectors(self):
        bank = self.bank(nearly_symmetric(asymmetry=0.05), products=9)
        held = bank.triplets(3).right
        rest = bank.off(held)
        assert len(rest) == 6
        vectors = rest.basis.rows
        assert not ((vectors @ held.flatten(1).T).abs() > 1e-12).any()
        assert torch.allclose(gram(vectors), torch.eye(6, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(rest.images, bank.apply(vectors.view(-1, 4, 5)).flatten(1))

    def test_small_invariant_space(self):
        dense = torch.diag(torch.tensor([2.0, 1.0] + [0] * 18, dtype=torch.float64))
        bank = self.bank(dense)
        assert bank.products <= 4
        assert torch.allclose(bank.triplets(2).values, torch.tensor([2.0, 1.0], dtype=torch.float64))


class Dense:
    """A matrix as an operator."""

    def __init__(self, matrix):
        self.matrix = matrix

    def matvec(self, v):
        return (v.flatten(1) @ self.matrix.T).view(-1, 4, 5)

    def rmatvec(self, u):
        return (u.flatten(1) @ self.matrix).view(-1, 4, 5)


class TestRememberedProducts:
    def test_images_of_what_a_masked_search_found(self):
        dense = nearly_symmetric(asymmetry=0.05)
        weight = (torch.arange(20).view(1, 4, 5) < 6).double()
        products = RememberedProducts(Dense(dense))
        start = weight * torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = partial_svd(*masked(products, weight), start, 3, tol=1e-8)
        bank = products.bank()
        assert len(bank.images) == found.pairs
        assert torch.allclose(bank.apply(found.right).flatten(1), found.right.flatten(1) @ dense.T, atol=1e-12)
        # inside the bank the search's own answer is the best one
        assert torch.allclose(bank.triplets(3, weight).values, found.values, atol=1e-12)

    def test_other_rows_are_approached_from_below(self):
        dense = nearly_symmetric(asymmetry=0.05)
        weight = (torch.arange(20).view(1, 4, 5) < 6).double()
        products = RememberedProducts(Dense(dense))
        partial_svd(*masked(products, weight), weight, 3, tol=1e-8)
        guess = products.bank().triplets(3, 1 - weight)
        exact = torch.linalg.svdvals((1 - weight).flatten()[:, None] * dense)[:3]
        assert (guess.values <= exact + 1e-12).all()
        assert not ((weight * guess.left).abs() > 1e-12).any()
