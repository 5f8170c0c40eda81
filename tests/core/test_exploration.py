"""Exploring against the same construction in dense float64 linear algebra, and the rotation's own properties."""

from dataclasses import replace

import pytest
import torch
from analytic import EYE, SHAPE, SIZE, analytic, box, cosine, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_directions.core import exploration
from latent_directions.core.anchor import ReferenceCache
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import EverythingRuledOutError, NothingInsideError
from latent_directions.core.exploration import (
    FARTHEST,
    FORWARD_EVALUATIONS,
    PAIRS,
    SAME,
    STEP,
    WEAK,
    explore,
    largest_first,
    own_mask,
    place_of,
    products_by_cell,
    sparsity,
    varimax_by_cell,
)
from latent_directions.core.search import Search, Settings
from latent_directions.core.words import COARSE, soft_mask

WHOLE = SIZE  # so many directions ask for a space of all moves of the analytic model


def dense_sparsity(effects: torch.Tensor, rotation: torch.Tensor) -> float:
    """The sum over the rotated effects of the variance over the cells of their energy."""
    mixed = torch.stack([sum(r * effect for r, effect in zip(column, effects, strict=True)) for column in rotation.T])
    energy = mixed.square().sum(1)  # k H W
    return sum(float((e - e.mean()).square().mean()) for e in energy)


@st.composite
def effects_of(draw) -> torch.Tensor:
    """Random effects (k, C, H, W), some of them zero."""
    k, channels, height, width = (draw(st.integers(1, most)) for most in (6, 3, 5, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = torch.tensor([draw(st.sampled_from([0.0, 0.1, 1.0, 30.0])) for _ in range(k)])
    return sizes.view(-1, 1, 1, 1) * torch.randn(k, channels, height, width, generator=generator).double()


class TestRotation:
    @given(effects_of())
    @settings(deadline=None, max_examples=60)
    def test_orthonormal_and_never_less_sparse(self, effects):
        rotation = varimax_by_cell(effects)
        k = len(effects)
        assert torch.allclose(rotation.T @ rotation, torch.eye(k, dtype=torch.float64), atol=1e-9)
        before, after = (dense_sparsity(effects, r) for r in (torch.eye(k).double(), rotation))
        assert after >= before * (1 - 1e-9)
        assert sparsity(products_by_cell(effects), rotation) == pytest.approx(after, rel=1e-9, abs=1e-12)

    def test_no_loss_where_the_iteration_does_not_rise(self):
        generator = torch.Generator().manual_seed(1415735010)
        sizes = torch.tensor([1.0, 1.0, 0.1, 1.0]).view(-1, 1, 1, 1)
        effects = sizes * torch.randn(4, 2, 1, 2, generator=generator).double()
        before, after = (dense_sparsity(effects, r) for r in (torch.eye(4).double(), varimax_by_cell(effects)))
        assert after >= before

    @given(effects_of())
    @settings(deadline=None, max_examples=30)
    def test_spans_the_same(self, effects):
        rotation = varimax_by_cell(effects)
        flat = effects.flatten(1)
        mixed = rotation.T @ flat
        assert torch.allclose(mixed.T @ mixed, flat.T @ flat, atol=1e-8 * float(flat.norm()) ** 2 + 1e-300)

    @given(effects_of(), st.floats(-0.5, 0.5))
    @settings(deadline=None, max_examples=30)
    def test_no_turn_in_a_plane_is_much_sparser(self, effects, angle):
        rotation = varimax_by_cell(effects, tolerance=1e-13, iterations=5000)
        best = dense_sparsity(effects, rotation)
        if len(effects) > 1:
            turn = torch.eye(len(effects)).double()
            c, s = torch.tensor(angle * 0.02).double().cos(), torch.tensor(angle * 0.02).double().sin()
            turn[0, 0], turn[0, 1], turn[1, 0], turn[1, 1] = c, -s, s, c
            assert dense_sparsity(effects, rotation @ turn) <= best * (1 + 1e-5) + 1e-12

    @pytest.mark.parametrize("seed", range(4))
    def test_finds_effects_that_lie_in_cells_of_their_own(self, seed):
        generator = torch.Generator().manual_seed(seed)
        apart = torch.zeros(4, 3, 4, 4).double()
        for number in range(4):
            apart[number, :, number] = (1 + number) * torch.randn(3, 4, generator=generator).double()
        mix = torch.linalg.qr(torch.randn(4, 4, generator=generator).double())[0]
        mixed = torch.einsum("ij,jchw->ichw", mix, apart)
        rotation = varimax_by_cell(mixed)
        found = torch.einsum("ij,ichw->jchw", rotation, mixed)
        for effect in apart:
            assert max(abs(cosine(effect, other)) for other in found) > 1 - 1e-3

    def test_cells_of_a_large_latent_are_parts_of_it(self):
        effects = torch.randn(2, 3, 4 * COARSE, 2 * COARSE, generator=torch.Generator().manual_seed(0))
        products = products_by_cell(effects)
        assert products.shape == (COARSE * COARSE, 2, 2)
        part = effects[:, :, 4:8, 2:4].double().flatten(1)  # the second in both directions
        assert torch.allclose(products[COARSE + 1], part @ part.T / 8)

    def test_effects_of_five_dimensions(self):
        effects = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
        assert torch.equal(varimax_by_cell(effects[:, :, None]), varimax_by_cell(effects))


class TestExplore:
    @pytest.mark.parametrize(("derivatives", "error"), [("automatic", 1e-5), ("forward only", 2e-2)])
    @pytest.mark.parametrize("null_rank", [0, 4])
    def test_rotated_singular_vectors_off_the_null_space(self, model, mask, null_rank, derivatives, error):
        moves = explore(model.search(mask, count=WHOLE, null_rank=null_rank, derivatives=derivatives))
        jacobian, rows = model.jacobian(), rows_of(mask)
        off = EYE
        if mask is not None:
            null = torch.linalg.svd((EYE - rows) @ jacobian)[2][:null_rank].T
            off = EYE - null @ null.T
        values, right = torch.linalg.svd(rows @ jacobian @ off)[1:]
        right = right[values > WEAK * values[0]]
        vectors = torch.stack([move.vector.flatten() for move in moves])
        assert len(moves) == len(right) > 3
        assert torch.allclose(vectors @ vectors.T, torch.eye(len(moves)).double(), atol=1e-6)
        assert torch.allclose(vectors.T @ vectors, right.T @ right, atol=error)
        effects = (vectors @ jacobian.T).view(-1, *SHAPE[1:])
        for move, effect in zip(moves, effects, strict=True):
            assert torch.allclose(move.effect[0], effect, atol=error)
        seen = effects if mask is None else mask * effects
        svd = (right @ jacobian.T).view(seen.shape) if mask is None else mask * (right @ jacobian.T).view(seen.shape)
        one = torch.eye(len(moves)).double()
        assert dense_sparsity(seen, one) == pytest.approx(dense_sparsity(svd, varimax_by_cell(svd)), rel=error)
        sizes = seen.flatten(1).norm(dim=1)
        assert (sizes.diff() <= error).all()
        exact = effects.flatten(1).norm(dim=1).tolist()
        assert [move.notes["effect"] for move in moves] == pytest.approx(exact, rel=error)

    def test_mask_sign_and_step(self, model, mask):
        a, b = model.denoiser.scale(model.sigma)
        deviation = float(model.exact().std())
        for move in explore(model.search(mask, count=5)):
            effect = (model.jacobian() @ move.vector.flatten()).view(SHAPE)
            acts = mask if mask is not None else soft_mask(effect.square().mean(1, keepdim=True))
            assert torch.allclose(move.mask, acts, atol=1e-5)
            assert float((acts * effect).sum()) > 0
            inside = ((acts * effect.square()).sum() / (acts.sum() * SHAPE[1])).sqrt()
            largest = max(float(inside), float(effect.square().mean().sqrt()))
            assert move.step == pytest.approx(min(STEP * deviation / largest, FARTHEST * b * SIZE**0.5), rel=1e-5)

    def test_the_step_is_bounded(self):
        """A model that answers everywhere, hardly at all but with one part of the latent."""
        weights = torch.linspace(1, 0.2, SIZE).double()
        weights[1:] *= 0.7

        def predict(x, sigma):
            return 1e3 + 30 * x.flatten(1).mul(weights).view_as(x)

        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()
        for scale, bounded in ((1.0, False), (1e-3, True)):
            denoiser = Denoiser(predict, lambda sigma, scale=scale: (1.0, scale * sigma))
            steps = [move.step for move in explore(Search(denoiser, x, 1.0, None, Settings(count=3)))]
            assert (max(steps) == pytest.approx(FARTHEST * scale * SIZE**0.5)) == bounded

    @pytest.mark.parametrize(("derivatives", "most"), [("automatic", 140), ("forward only", 60)])
    def test_costs_at_most(self, derivatives, most):
        """On a model that no search gets through: 1,024 singular values close to each other."""
        generator = torch.Generator().manual_seed(1)
        left = torch.linalg.qr(torch.randn(1024, 1024, generator=generator))[0].double()
        matrix = (left * torch.linspace(0.8, 1.0, 1024).double()) @ left.T
        denoiser = Denoiser(lambda x, sigma: (x.flatten(1) @ matrix.T).view_as(x), lambda sigma: (1.0, sigma))
        x = torch.randn(1, 4, 16, 16, generator=generator).double()
        search = Search(denoiser, x, 1.0, None, Settings(count=12, derivatives=derivatives))
        assert len(explore(search)) == 12
        check = search.notes["self_check"]["evaluations"]
        products = 4 * search.notes["pairs"] if derivatives == "automatic" else search.notes["products"]
        assert denoiser.counter.evaluations == check + products <= most
        assert search.notes.get("pairs", PAIRS) == PAIRS
        assert derivatives == "automatic" or denoiser.counter.evaluations == FORWARD_EVALUATIONS

    def test_the_products_of_a_picture_serve_every_later_search(self, model, mask):
        cache = ReferenceCache()

        def found(cache=cache, key=(), **changes):
            search = replace(model.search(**{"mask": mask, "count": 3, **changes}), cache=cache, key=key)
            before = model.denoiser.counter.evaluations
            moves = explore(search)
            return moves, model.denoiser.counter.evaluations - before

        assert found()[1] > 0
        for changes in ({}, {"mask": 1 - box()}, {"mask": None}, {"count": 5}, {"null_rank": 1}):
            moves, cost = found(**changes)
            assert cost == 0
            for move, fresh in zip(moves, found(ReferenceCache(), **changes)[0], strict=True):
                assert torch.equal(move.vector, fresh.vector)
                assert move.step == fresh.step
        for changes in ({"seed": 1}, {"derivatives": "forward only"}, {"key": "another model"}, {"count": 17}):
            assert found(**changes)[1] > 0

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_asking_for_more_takes_only_what_is_missing(self, derivatives):
        """On a model with 144 falling singular values, which neither search gets through."""
        generator = torch.Generator().manual_seed(1)
        left = torch.linalg.qr(torch.randn(144, 144, generator=generator))[0].double()
        matrix = (left * torch.linspace(1.0, 0.3, 144).double()) @ left.T
        denoiser = Denoiser(lambda x, sigma: (x.flatten(1) @ matrix.T).view_as(x), lambda sigma: (1.0, sigma))
        x = torch.randn(1, 4, 6, 6, generator=generator).double()
        cache = ReferenceCache()

        def found(count, cache):
            before = denoiser.counter.evaluations
            search = Search(denoiser, x, 1.0, None, Settings(count=count, derivatives=derivatives), cache=cache)
            return explore(search), denoiser.counter.evaluations - before, search.notes

        _, first, _ = found(12, cache)
        moves, second, notes = found(40, cache)
        fresh, at_once, _ = found(40, ReferenceCache())
        assert [torch.allclose(a.vector, b.vector) for a, b in zip(moves, fresh, strict=True)] == [True] * len(fresh)
        check = notes["self_check"]["evaluations"]
        assert first + second == at_once + check  # the graphs of the first check are gone
        assert second < at_once
        assert found(40, cache)[1] == found(12, cache)[1] == 0
        # what the space spans is that of one longer search
        vectors = torch.stack([move.vector.flatten() for move in moves])
        assert torch.allclose(vectors @ vectors.T, torch.eye(len(moves)).double(), atol=1e-8)
        effects = vectors @ matrix.T
        assert torch.allclose(effects, torch.stack([move.effect.flatten() for move in moves]), atol=3e-2)
        assert len(moves) > 16

    @pytest.mark.parametrize("room", [0, 300, 1000, 5000])
    def test_a_cache_that_holds_a_part_of_the_products(self, model, mask, room):
        cache = ReferenceCache(max_bytes=room)
        first, again = (
            explore(replace(model.search(mask, count=3, derivatives="forward only"), cache=cache)) for _ in range(2)
        )
        assert cache.full
        assert [torch.equal(one.vector, other.vector) for one, other in zip(first, again, strict=True)] == [True] * 3

    def test_a_later_search_says_too_that_j_is_asymmetric(self, model, mask, monkeypatch):
        monkeypatch.setattr(exploration, "ASYMMETRIC", 0.0)
        cache = ReferenceCache()
        searches = [
            replace(model.search(mask, count=2, derivatives="forward only"), cache=cache, remarks=[]) for _ in range(2)
        ]
        for search in searches:
            explore(search)
        assert searches[0].remarks == searches[1].remarks != []
        assert searches[0].notes["asymmetry"] == searches[1].notes["asymmetry"]
        assert "products_reused" in searches[1].notes

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_a_mask_inside_which_nothing_changes(self, model, derivatives):
        def flat(x, sigma):
            d = model.denoiser(x, sigma)
            return torch.cat([d[..., :2], torch.ones_like(d[..., 2:])], dim=-1)

        mask = torch.zeros(1, 1, *SHAPE[2:]).double()
        mask[..., 2:] = 1
        search = replace(model.search(mask, derivatives=derivatives), denoiser=Denoiser(flat, model.denoiser.scale))
        with pytest.raises(NothingInsideError, match="Nothing moves inside the mask"):
            explore(search)

    def test_all_moves_ruled_out(self, model):
        """Inside and outside follow one and the same number."""

        def predict(x, sigma):
            return x.sum((1, 2, 3), keepdim=True) * torch.ones_like(x)

        search = replace(model.search(box(), null_rank=3), denoiser=Denoiser(predict, model.denoiser.scale))
        with pytest.raises(EverythingRuledOutError, match="ruled out"):
            explore(search)

    def test_fewer_than_asked_for(self):
        model = analytic()
        mask = torch.zeros(1, 1, *SHAPE[2:]).double()
        mask[..., 0, 0] = 1  # of two channels
        search = model.search(mask, count=8, null_rank=0)
        moves = explore(search)
        assert 1 <= len(moves) <= 2
        assert search.remarks == [
            f"Only {len(moves)} directions with a clear effect of their own were found, in place of the 8 that were"
            " asked for."
        ]
        enough = replace(search, settings=Settings(count=len(moves), null_rank=0), remarks=[])
        assert len(explore(enough)) == len(moves)
        assert enough.remarks == []


def test_largest_first_without_those_that_are_the_same():
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 3, 4, 4, generator=generator).double()
    alike = -0.5 * (one / one.norm() + 0.2 * two / two.norm())
    assert cosine(one, -alike) > SAME
    effects = torch.stack([0.1 * two / two.norm(), alike, one / one.norm()])
    assert largest_first(effects) == [2, 0]


def test_own_mask_is_where_the_effect_is():
    effect = torch.zeros(1, 2, 8, 8)
    effect[..., 1:3, 5:7] = 1
    mask = own_mask(effect)
    assert mask.shape == (1, 1, 8, 8)
    assert float(mask[0, 0, 1:3, 5:7].min()) == 1
    assert float(mask[0, 0, 5:].max()) == 0
    assert own_mask(effect[:, :, None]).shape == (1, 1, 1, 8, 8)


@pytest.mark.parametrize(
    ("rows", "columns", "place"),
    [
        ((0, 3), (0, 3), "upper left"),
        ((6, 9), (6, 9), "lower right"),
        ((0, 2), (0, 9), "upper"),
        ((6, 9), (3, 6), "lower"),
        ((3, 6), (0, 3), "left"),
        ((4, 6), (6, 9), "right"),
        ((3, 6), (3, 6), "middle"),
        ((0, 9), (0, 7), "everywhere"),
    ],
)
def test_place_of_an_effect(rows, columns, place):
    energy = torch.zeros(9, 9)
    energy[slice(*rows), slice(*columns)] = 3
    assert place_of(energy) == place


def test_place_of_a_frame():
    energy = torch.zeros(8, 8)
    energy[0], energy[-1], energy[:, 0], energy[:, -1] = 1, 1, 1, 1
    assert place_of(energy) == "edges"
