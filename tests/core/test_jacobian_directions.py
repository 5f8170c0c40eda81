"""LOCO and T-LOCO against the same constructions in dense float64 linear algebra."""

from dataclasses import replace

import pytest
import torch
from analytic import EYE, SHAPE, SIZE, Analytic, analytic, box, cosine, rows_of
from planted import Identity

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import (
    DecodedBackwardError,
    EqualPredictionsError,
    EverythingRuledOutError,
    NoBackwardError,
    NothingInsideError,
    TargetDerivativeError,
)
from latent_directions.core.jacobian_directions import forward_products, has_outside, loco, t_loco
from latent_directions.core.methods import METHODS
from latent_directions.core.search import FEWER, PROJECT_AFTER, PROJECTIONS, RESTRICT_FIRST, Search, Settings

PICTURE = (1, 3, 6, 8)  # two pixels a cell on each side


def dense_null_space(model, mask, rank: int) -> torch.Tensor:
    """Columns: leading right singular vectors of the rows of J outside the mask."""
    return torch.linalg.svd((EYE - rows_of(mask)) @ model.jacobian())[2][:rank].T


class Picture:
    """A decode D (p, C, H, W) -> (p, 3, H', W') with a known Jacobian: linear, or bent by tanh."""

    def __init__(self, bent: bool):
        self.bent, numbers = bent, PICTURE[1] * PICTURE[2] * PICTURE[3]
        generator = torch.Generator().manual_seed(7)
        self.matrix = torch.randn(numbers, SIZE, generator=generator).double() / SIZE**0.5
        mask = torch.zeros(1, 1, *PICTURE[2:]).double()
        mask[..., 1:4, 2:7] = 1
        mask[..., 4, :] = 0.5  # a soft edge
        self.mask = mask
        self.rows = torch.diag(mask.expand(PICTURE).flatten())

    def __call__(self, latents):
        flat = latents.flatten(1) @ self.matrix.T
        return (torch.tanh(flat) if self.bent else flat).view(-1, *PICTURE[1:])

    def jacobian(self, latents) -> torch.Tensor:
        flat = latents.flatten() @ self.matrix.T
        return (1 - torch.tanh(flat) ** 2)[:, None] * self.matrix if self.bent else self.matrix


def guided_by(model: Analytic, guidance: float, prompt: str = "source") -> tuple[torch.Tensor, torch.Tensor]:
    """The prediction under guidance, and its Jacobian."""
    away, away_j = model.exact("negative"), model.jacobian("negative")
    jacobian = away_j + guidance * (model.jacobian(prompt) - away_j)
    return away + guidance * (model.exact(prompt) - away), jacobian


def dense_loco(jacobian, rows, count: int, null_rank: int, projection: str):
    """Singular values, unit moves (count, N), and what a projection after the search has left of them."""
    outside = torch.eye(len(rows)).double() - rows
    null = torch.linalg.svd(outside @ jacobian)[2][:null_rank].T
    off = EYE - null @ null.T
    values, right = torch.linalg.svd(rows @ jacobian @ (EYE if projection == PROJECT_AFTER else off))[1:]
    moves = right[:count] @ off
    left = moves.norm(dim=1)
    return values[:count], moves / left[:, None], left


def hard_search(symmetric: bool = False, **settings) -> Search:
    """A mask on a linear model with 1,024 singular values close to each other, more than a search gets through."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(1024, 1024, generator=generator))[0].double() for _ in range(2))
    matrix = (left * torch.linspace(0.8, 1.0, 1024).double()) @ (left if symmetric else right).T

    def predict(x, sigma, prompt="source", guidance=1.0):
        return (x.flatten(1) @ matrix.T).view_as(x) + (0.3 * x.sin() if prompt == "target" else 0.0)

    x = torch.randn(1, 4, 16, 16, generator=generator).double()
    mask = torch.zeros(1, 1, 16, 16).double()
    mask[..., :8] = 1
    return Search(Denoiser(predict, lambda sigma: (1.0, sigma)), x, 1.0, mask, Settings(**settings))


class TestLoco:
    @pytest.mark.parametrize("null_rank", [0, 4])
    def test_right_singular_vectors_off_the_null_space(self, model, mask, null_rank):
        moves = loco(model.search(mask, count=3, null_rank=null_rank))
        null = dense_null_space(model, mask, 0 if mask is None else null_rank)
        values, vectors = torch.linalg.svd(rows_of(mask) @ model.jacobian() @ (EYE - null @ null.T))[1:]
        assert len(moves) == 3
        for move, s, v in zip(moves, values, vectors, strict=False):
            assert abs(cosine(move.vector, v)) > 1 - 1e-4
            assert float(move.vector.norm()) == pytest.approx(1)
            assert float((null.T @ move.vector.flatten()).norm()) < 5e-3
            assert move.notes["singular_value"] == pytest.approx(float(s), rel=2e-3)
            assert move.notes["converged"]

    def test_singular_values_are_reported(self, model, mask):
        moves = loco(model.search(mask, count=3, null_rank=0))
        expected = torch.linalg.svdvals(rows_of(mask) @ model.jacobian())[:3]
        assert [m.notes["singular_value"] for m in moves] == pytest.approx(expected.tolist(), rel=1e-4)

    def test_step_is_a_quarter_of_the_deviation_inside_the_mask(self, model, mask):
        for move in loco(model.search(mask, count=2, null_rank=3)):
            effect = (model.jacobian() @ move.vector.flatten() * move.step).view(SHAPE)
            inside = effect if mask is None else effect[mask.expand(SHAPE).bool()]
            assert float(inside.square().mean().sqrt()) == pytest.approx(0.25 * float(model.exact().std()))

    def test_a_mask_of_one_half_everywhere_changes_no_step(self, model):
        (plain,) = loco(model.search(None, count=1))
        half = torch.full((1, 1, *SHAPE[2:]), 0.5, dtype=torch.float64)
        (soft,) = loco(model.search(half, count=1, null_rank=0))
        assert abs(cosine(plain.vector, soft.vector)) > 1 - 1e-4
        assert soft.step == pytest.approx(plain.step, rel=1e-3)

    def test_sign_the_mean_effect_inside_is_positive(self, model, mask):
        for seed in range(4):
            for move in loco(model.search(mask, count=2, null_rank=3, seed=seed)):
                effect = rows_of(mask) @ model.jacobian() @ move.vector.flatten()
                assert float(effect.sum()) > 0

    def test_forward_only_finds_the_same(self, model, mask):
        """The exact J is symmetric, and the Krylov space is the whole space here."""
        (both,) = loco(model.search(mask, null_rank=2))
        (forward,) = loco(model.search(mask, null_rank=2, derivatives="forward only"))
        assert cosine(both.vector, forward.vector) > (0.999 if mask is None else 0.99)
        assert forward.step == pytest.approx(both.step, rel=2e-2)
        assert forward.notes["asymmetry"] < 1e-3  # of one-sided differences
        assert forward.notes["residual"] is None
        assert both.notes["residual"] <= 1e-3

    def test_the_report_says_where_it_did_not_converge(self):
        search = hard_search(count=3)
        moves = loco(search)
        assert not any(move.notes["converged"] for move in moves)
        assert ["pairs of products before it converged" in remark for remark in search.remarks] == [True]

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_forward_only_says_where_the_jacobian_is_far_from_symmetric(self, symmetric):
        search = hard_search(symmetric, count=1, derivatives="forward only")
        (move,) = loco(search)
        assert (move.notes["asymmetry"] > 0.3) is not symmetric
        assert ["far from symmetric" in remark for remark in search.remarks] == [True] * (not symmetric)

    def test_costs_are_those_of_check_and_products_alone(self, model, mask):
        """2 evaluations a product, and none for D(x), steps and signs; the check has had a start without a mask."""
        counter, search = model.denoiser.counter, model.search(mask, count=2, null_rank=3)
        (move, *_) = loco(search)
        check = search.notes["self_check"]["evaluations"]
        assert counter.evaluations == check + 4 * move.notes["pairs"] + (0 if mask is None else 4)

    def test_costs_forward_only(self, model, mask):
        counter, search = model.denoiser.counter, model.search(mask, null_rank=3, derivatives="forward only")
        (move,) = loco(search)
        check = search.notes["self_check"]["evaluations"]
        assert counter.evaluations == check + move.notes["products"]
        assert move.notes["products_by"] == "one-sided differences"
        # as where these are not precise enough
        bent = Denoiser(lambda x, sigma: model.denoiser(x, sigma) + 30 * (x - model.x) ** 2, model.denoiser.scale)
        search = replace(search, denoiser=bent, notes={})
        (move,) = loco(search)
        check = search.notes["self_check"]["evaluations"]
        assert bent.counter.evaluations == check + 2 * move.notes["products"]
        assert move.notes["products_by"] == "forward AD"

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_a_mask_inside_which_nothing_changes(self, model, derivatives):
        def flat(x, sigma):
            d = model.denoiser(x, sigma)
            return torch.cat([d[..., :2], torch.ones_like(d[..., 2:])], dim=-1)

        mask = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64)
        mask[..., 2:] = 1
        search = replace(model.search(mask, derivatives=derivatives), denoiser=Denoiser(flat, model.denoiser.scale))
        with pytest.raises(NothingInsideError, match="Nothing moves inside the mask"):
            loco(search)

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_no_more_directions_than_the_mask_has_numbers(self, model, derivatives):
        mask = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64)
        mask[..., 0, 0] = 1  # of two channels
        search = model.search(mask, count=8, null_rank=0, derivatives=derivatives)
        moves = loco(search)
        assert len(moves) == 2
        assert search.remarks == [FEWER.format(2, 8)]  # these are all there are: nothing was stopped
        assert all(move.step < 1e3 for move in moves)

    def test_less_changes_outside_than_with_the_raw_direction(self, model):
        outside = EYE - rows_of(box())

        def leak(rank):
            (move,) = loco(model.search(box(), null_rank=rank))
            return float((outside @ model.jacobian() @ move.vector.flatten()).norm() * move.step)

        assert leak(4) < 0.6 * leak(0)
        assert leak(12) < 1e-10  # there are 12 values outside the box

    def test_singular_values_fall(self, model, mask):
        for projection in PROJECTIONS:
            moves = loco(model.search(mask, count=6, null_rank=3, projection=projection))
            values = [move.notes["singular_value"] for move in moves]
            assert len(values) == 6
            assert values == sorted(values, reverse=True)
            assert [move.notes["share_of_largest"] for move in moves] == pytest.approx([v / values[0] for v in values])

    def test_seeds(self, model):
        (a,), (b,), (other,) = (loco(model.search(box(), seed=seed)) for seed in (3, 3, 4))
        assert torch.equal(a.vector, b.vector)
        assert cosine(a.vector, other.vector) > 0.999

    def test_a_bound_on_the_pairs(self, model):
        (move,) = loco(model.search(null_rank=0), max_pairs=2)
        assert move.notes["pairs"] == 2
        assert not move.notes["converged"]

    def test_more_directions_than_there_are(self, model, mask):
        search = model.search(mask, count=SIZE + 6, null_rank=2)
        moves = loco(search)
        assert 0 < len(moves) <= SIZE
        assert search.remarks[-1].startswith(f"Only {len(moves)} directions were found in place of the {SIZE + 6}")


class TestOrderOfProjection:
    """The paper's: singular vectors first, then off the null space."""

    @pytest.mark.parametrize(("derivatives", "error"), [("automatic", 2e-3), ("forward only", 3e-2)])
    @pytest.mark.parametrize("null_rank", [1, 4])
    def test_singular_vectors_and_then_off_the_null_space(self, model, null_rank, derivatives, error):
        search = model.search(box(), count=3, null_rank=null_rank, projection=PROJECT_AFTER, derivatives=derivatives)
        moves = loco(search)
        values, expected, left = dense_loco(model.jacobian(), rows_of(box()), 3, null_rank, PROJECT_AFTER)
        assert len(moves) == 3
        for move, s, v, share in zip(moves, values, expected, left, strict=True):
            assert abs(cosine(move.vector, v)) > 1 - error
            assert float(move.vector.norm()) == pytest.approx(1)
            assert move.notes["singular_value"] == pytest.approx(float(s), rel=error)
            assert move.notes["share_left_by_null_space"] == pytest.approx(float(share), rel=3 * error)
            effect = (model.jacobian() @ move.vector.flatten() * move.step).view(SHAPE)[box().expand(SHAPE).bool()]
            assert float(effect.square().mean().sqrt()) == pytest.approx(0.25 * float(model.exact().std()), rel=error)
            assert float(effect.sum()) > 0

    def test_no_product_is_taken_for_the_projection(self, model):
        counter, search = model.denoiser.counter, model.search(box(), count=2, null_rank=3, projection=PROJECT_AFTER)
        (move, *_) = loco(search)
        check = search.notes["self_check"]["evaluations"]
        assert counter.evaluations == check + 4 * move.notes["pairs"] + 4

    def test_ours_changes_the_inside_more_for_what_it_changes_outside(self, model):
        """Restricted, the first direction is the strongest of all off the null space; the projected one is weaker."""

        def effect(projection):
            (move,) = loco(model.search(box(), null_rank=4, projection=projection))
            return float((rows_of(box()) @ model.jacobian() @ move.vector.flatten()).norm())

        assert effect(RESTRICT_FIRST) > 1.001 * effect(PROJECT_AFTER)

    def test_the_same_without_a_null_space(self, model):
        for mask, null_rank in ((None, 4), (box(), 0)):
            ours, papers = (
                loco(model.search(mask, count=2, null_rank=null_rank, projection=projection))
                for projection in PROJECTIONS
            )
            assert [torch.equal(a.vector, b.vector) for a, b in zip(ours, papers, strict=True)] == [True, True]
            assert "share_left_by_null_space" not in papers[0].notes

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_nothing_is_left(self, derivatives):
        """Inside and outside follow one and the same number."""
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()

        def predict(x, sigma):
            return x.sum((1, 2, 3), keepdim=True) * torch.ones_like(x)

        settings = Settings(null_rank=3, projection=PROJECT_AFTER, derivatives=derivatives)
        with pytest.raises(EverythingRuledOutError, match="ruled out"):
            loco(Search(Denoiser(predict, lambda sigma: (1.0, sigma)), x, 1.0, box(), settings))

    def test_only_the_directions_of_which_something_is_left(self):
        """The first singular vector inside is the one outside too; the second changes the inside alone."""
        generator = torch.Generator().manual_seed(0)
        common, own = torch.linalg.qr(torch.randn(SIZE, 2, generator=generator).double())[0].T
        pattern = box() * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
        x = torch.randn(SHAPE, generator=generator).double()

        def predict(x, sigma):
            flat = x.flatten(1)
            return (flat @ common).view(-1, 1, 1, 1) + 0.5 * (flat @ own).view(-1, 1, 1, 1) * pattern + 0 * x

        denoiser = Denoiser(predict, lambda sigma: (1.0, sigma))
        settings = Settings(count=2, null_rank=1, projection=PROJECT_AFTER)
        moves = loco(Search(denoiser, x, 1.0, box(), settings))
        assert len(moves) == 1
        assert abs(cosine(moves[0].vector, own)) > 0.99


class TestGuided:
    """The Jacobian of the prediction under guidance."""

    @pytest.mark.parametrize("projection", PROJECTIONS)
    @pytest.mark.parametrize("derivatives", ["automatic", "double backward"])
    def test_loco(self, model, mask, projection, derivatives):
        predicted, jacobian = guided_by(model, 3.0)
        search = model.search(
            mask, count=2, null_rank=3, guidance=3.0, guided=True, projection=projection, derivatives=derivatives
        )
        moves = loco(search)
        null_rank = 0 if mask is None else 3
        values, expected, _ = dense_loco(jacobian, rows_of(mask), 2, null_rank, projection)
        for move, s, v in zip(moves, values, expected, strict=True):
            assert abs(cosine(move.vector, v)) > 1 - 1e-3
            assert move.notes["singular_value"] == pytest.approx(float(s), rel=2e-3)
            effect = (jacobian @ move.vector.flatten() * move.step).view(SHAPE)
            inside = effect if mask is None else effect[mask.expand(SHAPE).bool()]
            assert float(inside.square().mean().sqrt()) == pytest.approx(0.25 * float(predicted.std()), rel=1e-3)

    def test_forward_only(self, model, mask):
        """As many products as without guidance, at twice the evaluations; guided J is as symmetric here."""
        both, forward = (
            loco(model.search(mask, null_rank=2, guidance=3.0, guided=True, derivatives=derivatives))[0]
            for derivatives in ("automatic", "forward only")
        )
        assert cosine(both.vector, forward.vector) > 0.99
        plain = loco(model.search(mask, null_rank=2, derivatives="forward only"))[0]
        assert forward.notes["products"] == plain.notes["products"]

    @pytest.mark.parametrize("null_rank", [0, 4])
    def test_t_loco(self, model, mask, null_rank):
        search = model.search(mask, null_rank=null_rank, guidance=3.0, guided=True)
        (move,) = t_loco(search)
        source, jacobian = guided_by(model, 3.0)
        target, target_jacobian = guided_by(model, 3.0, "target")
        rows = rows_of(mask)
        q = rows @ (target - source).flatten()
        v = target_jacobian.T @ q
        if mask is not None:
            null = torch.linalg.svd((EYE - rows) @ jacobian)[2][:null_rank].T
            v = v - null @ (null.T @ v)
        assert cosine(move.vector, v) > 1 - 1e-4
        effect = rows @ target_jacobian @ move.vector.flatten()
        assert move.step == pytest.approx(float(q.norm() / effect.norm()), rel=1e-4)

    @pytest.mark.parametrize("words_source", ["source", "free"])
    def test_the_difference_of_words_has_one_guidance(self, model, words_source):
        """What the self-check knows under guidance is used where it is the prompt compared with, and else is not."""
        (move,) = t_loco(model.search(guidance=3.0, guided=True, words_source=words_source))
        q = guided_by(model, 3.0, "target")[0] - guided_by(model, 3.0, words_source)[0]
        v = guided_by(model, 3.0, "target")[1].T @ q.flatten()
        assert cosine(move.vector, v) > 1 - 1e-6

    def test_without_guidance_it_is_the_plain_one(self, model, mask):
        for method in (loco, t_loco):
            (plain,), (guided,) = (method(model.search(mask, guided=guided)) for guided in (False, True))
            assert torch.equal(plain.vector, guided.vector)
            assert plain.step == guided.step


@pytest.mark.parametrize("bent", [False, True])
class TestDecoded:
    """Jacobian and mask of the decoded prediction."""

    @pytest.mark.parametrize("projection", PROJECTIONS)
    @pytest.mark.parametrize("masked", [True, False])
    def test_loco(self, model, bent, projection, masked):
        picture = Picture(bent)
        mask, rows = (picture.mask, picture.rows) if masked else (None, torch.eye(len(picture.rows)).double())
        search = model.search(mask, count=3, null_rank=3, projection=projection)
        moves = loco(replace(search, decode=picture))
        jacobian = picture.jacobian(model.exact()) @ model.jacobian()
        values, expected, left = dense_loco(jacobian, rows, 3, 3 if masked else 0, projection)
        weights = torch.ones(PICTURE).double() if mask is None else mask.expand(PICTURE)
        for move, s, v, share in zip(moves, values, expected, left, strict=True):
            assert move.vector.shape == SHAPE
            assert abs(cosine(move.vector, v)) > 1 - 1e-3
            assert move.notes["singular_value"] == pytest.approx(float(s), rel=2e-3)
            assert move.notes.get("share_left_by_null_space", 1.0) == pytest.approx(
                float(share) if projection == PROJECT_AFTER else 1.0, rel=5e-3
            )
            effect = (jacobian @ move.vector.flatten() * move.step).view(PICTURE)
            rms = ((effect.square() * weights).sum() / weights.sum()).sqrt()
            assert float(rms) == pytest.approx(0.25 * float(picture(model.exact()).std()), rel=1e-3)
            assert float((weights * effect).sum()) > 0

    @pytest.mark.parametrize("null_rank", [0, 3])
    def test_t_loco(self, model, bent, null_rank):
        picture = Picture(bent)
        (move,) = t_loco(replace(model.search(picture.mask, null_rank=null_rank), decode=picture))
        source, target = model.exact(), model.exact("target")
        q = picture.rows @ (picture(target) - picture(source)).flatten()
        jacobian = picture.jacobian(target) @ model.jacobian("target")
        v = raw = jacobian.T @ q
        outside = torch.eye(len(picture.rows)).double() - picture.rows
        null = torch.linalg.svd(outside @ picture.jacobian(source) @ model.jacobian())[2][:null_rank].T
        v = v - null @ (null.T @ v)
        assert cosine(move.vector, v) > 1 - 1e-4
        assert move.notes["share_left_by_null_space"] == pytest.approx(float(v.norm() / raw.norm()), rel=1e-3)
        effect = picture.rows @ jacobian @ move.vector.flatten()
        assert move.step == pytest.approx(float(q.norm() / effect.norm()), rel=1e-4)

    def test_under_guidance(self, model, bent):
        picture = Picture(bent)
        search = replace(model.search(picture.mask, guidance=3.0, guided=True, null_rank=2), decode=picture)
        (move,) = loco(search)
        predicted, jacobian = guided_by(model, 3.0)
        _, expected, _ = dense_loco(picture.jacobian(predicted) @ jacobian, picture.rows, 1, 2, RESTRICT_FIRST)
        assert abs(cosine(move.vector, expected[0])) > 1 - 1e-3

    def test_decoding_counts_no_evaluations(self, model, bent):
        picture = Picture(bent)
        counter, search = model.denoiser.counter, replace(model.search(picture.mask), decode=picture)
        (move,) = loco(search)
        assert counter.evaluations == search.notes["self_check"]["evaluations"] + 4 * move.notes["pairs"] + 4

    @pytest.mark.parametrize("derivatives", ["forward only", "central differences"])
    def test_loco_needs_a_backward_pass(self, model, bent, derivatives):
        picture = Picture(bent)
        search = replace(model.search(picture.mask, derivatives=derivatives), decode=picture)
        with pytest.raises(DecodedBackwardError, match="need a backward pass"):
            loco(search)
        assert model.denoiser.counter.evaluations == 0
        # T-LOCO takes one in any case
        usual = replace(model.search(picture.mask), decode=picture)
        assert cosine(t_loco(search)[0].vector, t_loco(usual)[0].vector) > 0.999

    def test_a_backward_pass_that_cannot_be_trusted(self, model, bent):
        picture = Picture(bent)
        search = replace(model.search(picture.mask), decode=lambda d: picture(Identity.apply(d, 1.0, 0.5)))
        with pytest.raises(DecodedBackwardError, match="none that can be trusted.*Backward products failed"):
            loco(search)

    @pytest.mark.parametrize("derivatives", ["automatic", "double backward"])
    def test_modes(self, model, bent, derivatives):
        picture = Picture(bent)
        search = replace(model.search(picture.mask, derivatives=derivatives), decode=picture)
        (move,) = loco(search)
        assert search.notes["self_check"]["mode"] == search.settings.mode
        jacobian = picture.jacobian(model.exact()) @ model.jacobian()
        _, expected, _ = dense_loco(jacobian, picture.rows, 1, 5, RESTRICT_FIRST)
        assert abs(cosine(move.vector, expected[0])) > 1 - 1e-3


def test_a_picture_does_not_matter_where_it_is_not_looked_at():
    """Exploring and the methods of words look at the latent, whatever decode there is."""
    for name in ("explore", "HSDS"):
        plain, other = (
            METHODS[name].run(replace(analytic().search(box()), decode=decode)) for decode in (None, Picture(True))
        )
        assert [torch.equal(a.vector, b.vector) for a, b in zip(plain, other, strict=True)] == [True]


class TestTLoco:
    @pytest.mark.parametrize("null_rank", [0, 4])
    def test_pulled_back_difference_off_the_null_space(self, model, mask, null_rank):
        (move,) = t_loco(model.search(mask, null_rank=null_rank))
        p = rows_of(mask)
        q = p @ (model.exact("target") - model.exact("source")).flatten()
        raw = v = model.jacobian("target").T @ q
        if mask is not None:
            outside = dense_null_space(model, mask, null_rank)
            v = v - outside @ (outside.T @ v)
        assert move.notes["share_left_by_null_space"] == pytest.approx(float(v.norm() / raw.norm()), rel=1e-3)
        v = v / v.norm()
        assert cosine(move.vector, v) > 1 - 1e-4
        effect = p @ model.jacobian("target") @ move.vector.flatten()
        assert move.step == pytest.approx(float(q.norm() / effect.norm()))

    @pytest.mark.parametrize(("tangent", "gradient"), [(0.5, 1.0), (1.0, 0.5), (0.9, 1.0)])
    def test_products_that_are_wrong_under_the_target_alone(self, model, tangent, gradient):
        def predict(x, sigma, prompt="source", guidance=1.0):
            value = model.denoiser(x, sigma, prompt, guidance)
            return Identity.apply(value, tangent, gradient) if prompt == "target" else value

        search = replace(model.search(), denoiser=Denoiser(predict, model.denoiser.scale))
        with pytest.raises(TargetDerivativeError, match="under 'target' disagree"):
            t_loco(search)

    def test_without_a_backward_pass(self, model):
        def predict(x, sigma, prompt="source", guidance=1.0):
            return Identity.apply(model.denoiser(x, sigma, prompt, guidance), 1.0, 0.5)

        search = replace(model.search(), denoiser=Denoiser(predict, model.denoiser.scale))
        with pytest.raises(NoBackwardError, match="needs a backward pass.*Backward products failed"):
            t_loco(search)

    def test_the_report_says_whether_the_null_space_converged(self, model):
        search = model.search(box(), null_rank=2)
        (move,) = t_loco(search)
        assert move.notes["converged"]
        assert search.remarks == []
        search = hard_search(null_rank=5)
        (move,) = t_loco(search)
        assert not move.notes["converged"]
        (remark,) = search.remarks
        assert "stopped after 60 pairs of products before it converged" in remark

    def test_guidance(self, model):
        (plain,), (guided,) = (t_loco(model.search(null_rank=0, guidance=g)) for g in (1.0, 2.0))
        # both prompts share the negative, so q is twice as long and points the same way
        assert cosine(plain.vector, guided.vector) > 1 - 1e-9
        assert guided.step == pytest.approx(2 * plain.step)

    def test_a_null_space_of_all_that_lies_outside(self, model):
        """There are 12 values outside the box, and none of them moves."""
        (move,) = t_loco(model.search(box(), null_rank=12))
        outside = (EYE - rows_of(box())) @ model.jacobian() @ move.vector.flatten()
        assert float(outside.norm()) < 1e-10
        assert 0 < move.notes["share_left_by_null_space"] < 1

    def test_a_target_that_says_the_same(self, model):
        model.prompts["target"] = model.prompts["source"]
        with pytest.raises(EqualPredictionsError, match="no direction between them"):
            t_loco(model.search())


@pytest.mark.parametrize(
    ("checked", "cost", "count", "null_rank", "products"),
    [(7, 1, 1, 5, 33), (7, 2, 1, 5, 16), (9, 2, 1, 0, 15), (7, 1, 20, 5, 44), (39, 1, 1, 5, 6)],
)
def test_forward_products(checked, cost, count, null_rank, products):
    """What is left of 40 evaluations, and at least twice the count beside the null space, the known one included."""
    assert forward_products(checked, cost, count, null_rank) == products


def test_has_outside():
    assert has_outside(box())
    assert has_outside(0.5 * torch.ones(1, 1, 3, 4))
    assert not has_outside(torch.ones(1, 1, 3, 4))
    assert not has_outside(None)


class TestNothingOutside:
    """Where nothing changes outside of the mask there is nothing to rule out there, and no error."""

    def test_loco_needs_no_null_space(self, model):
        denoiser = Denoiser(lambda x, sigma, *prompt: box() * model.denoiser(x, sigma, *prompt), model.denoiser.scale)
        search = Search(denoiser, model.x, model.sigma, box(), Settings(count=2, null_rank=3))
        found = METHODS["LOCO"].run(search)
        exact = torch.linalg.svdvals(rows_of(box()) @ model.jacobian())
        assert [move.notes["singular_value"] for move in found] == pytest.approx(exact[:2].tolist(), rel=1e-3)

    def test_t_loco_needs_no_null_space(self, model):
        denoiser = Denoiser(lambda x, sigma, *prompt: box() * model.denoiser(x, sigma, *prompt), model.denoiser.scale)
        search = Search(denoiser, model.x, model.sigma, box(), Settings(null_rank=3))
        (move,) = METHODS["T-LOCO"].run(search)
        q = (rows_of(box()) @ (model.exact("target") - model.exact()).flatten()).view(SHAPE)
        expected = model.jacobian("target").T @ q.flatten()
        assert torch.allclose(move.vector.flatten(), expected / expected.norm(), atol=1e-6)
        assert move.notes["pairs"] == 0
