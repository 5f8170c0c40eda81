"""LOCO, T-LOCO and Hessian score distillation against the same constructions in dense float64 linear algebra."""

import pytest
import torch
from analytic import SCALES, SHAPE, SIZE, analytic, box, planted, rows_of
from planted import Identity

from latent_directions.core.errors import DerivativeError, InputError
from latent_directions.core.find import METHODS, Settings, find_moves
from latent_directions.core.hessian_directions import (
    delta_score,
    low_pass,
    move_by,
    newton,
    newton_forward,
    score_difference,
)
from latent_directions.core.jacobian_directions import loco, t_loco
from latent_directions.core.operators import Jacobian
from latent_directions.core.self_check import self_check

EYE = torch.eye(SIZE, dtype=torch.float64)


@pytest.fixture(params=SCALES)
def model(request):
    return analytic(request.param)


@pytest.fixture(params=["everywhere", "box"])
def mask(request):
    return None if request.param == "everywhere" else box()


def jacobian_of(model, prompt="source") -> Jacobian:
    return Jacobian(model.denoiser, model.x, model.sigma, prompt)


def probed(model, seed=0) -> tuple:
    """The Jacobian and the products of its self-check."""
    jacobian = jacobian_of(model)
    return jacobian, self_check(jacobian, seed).probe


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def difference(model) -> torch.Tensor:
    return model.exact("target") - model.exact("source")


def dense_null_space(model, mask, rank: int) -> torch.Tensor:
    """Columns: leading right singular vectors of the rows of J outside the mask."""
    return torch.linalg.svd((EYE - rows_of(mask)) @ model.jacobian())[2][:rank].T


class TestLoco:
    @pytest.mark.parametrize("null_rank", [0, 4])
    def test_right_singular_vectors_off_the_null_space(self, model, mask, null_rank):
        moves = loco(*probed(model), mask, 3, null_rank)
        held = dense_null_space(model, mask, 0 if mask is None else null_rank)
        values, vectors = torch.linalg.svd(rows_of(mask) @ model.jacobian() @ (EYE - held @ held.T))[1:]
        for move, s, v in zip(moves, values, vectors, strict=False):
            assert abs(cosine(move.vector, v)) > 1 - 1e-4
            assert float(move.vector.norm()) == pytest.approx(1)
            assert float((held.T @ move.vector.flatten()).norm()) < 5e-3
            assert move.notes["singular_value"] == pytest.approx(float(s), rel=2e-3)
            assert move.notes["converged"]

    def test_singular_values_are_reported(self, model, mask):
        moves = loco(*probed(model), mask, 3, 0)
        expected = torch.linalg.svdvals(rows_of(mask) @ model.jacobian())[:3]
        assert [m.notes["singular_value"] for m in moves] == pytest.approx(expected.tolist(), rel=1e-4)

    def test_step_is_a_quarter_of_the_deviation_inside_the_mask(self, model, mask):
        for move in loco(*probed(model), mask, 2, 3):
            effect = (model.jacobian() @ move.vector.flatten() * move.step).view(SHAPE)
            inside = effect if mask is None else effect[mask.expand(SHAPE).bool()]
            assert float(inside.square().mean().sqrt()) == pytest.approx(0.25 * float(model.exact().std()))

    def test_sign_the_mean_effect_inside_is_positive(self, model, mask):
        for seed in range(4):
            for move in loco(*probed(model, seed), mask, 2, 3):
                effect = rows_of(mask) @ model.jacobian() @ move.vector.flatten()
                assert float(effect.sum()) > 0

    def test_forward_only_finds_the_same(self, model, mask):
        """The exact J is symmetric, and the bank is nearly the whole space here."""
        both = loco(*probed(model), mask, 1, 2)
        forward = loco(*probed(model), mask, 1, 2, products=16)
        assert cosine(both[0].vector, forward[0].vector) > (0.999 if mask is None else 0.99)
        assert forward[0].step == pytest.approx(both[0].step, rel=2e-2)
        assert forward[0].notes["asymmetry"] < 1e-3  # of one-sided differences
        assert forward[0].notes["residual"] is None

    def test_costs_are_those_of_the_searches_alone(self, model, mask):
        """2 evaluations a product, and none for D(x), steps and signs; the check has had a start without a mask."""
        counter = model.denoiser.counter
        jacobian, probe = probed(model)
        before = counter.evaluations
        (move, *_) = loco(jacobian, probe, mask, 2, 3)
        assert counter.evaluations - before == 4 * move.notes["pairs"] + (0 if mask is None else 4)
        before = counter.evaluations
        (move, *_) = loco(jacobian, probe, mask, 2, 3, products=16)
        assert counter.evaluations - before == move.notes["products"] == 16
        assert move.notes["products_by"] == "one-sided differences"
        jacobian.one_sided_step = None  # as where they are too rough
        before = counter.evaluations
        (move, *_) = loco(jacobian, probe, mask, 2, 3, products=16)
        assert counter.evaluations - before == 2 * move.notes["products"] == 32
        assert move.notes["products_by"] == "forward AD"

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_a_mask_inside_which_nothing_changes(self, model, derivatives):
        flat = planted(model, lambda x, d: torch.cat([d[..., :2], torch.ones_like(d[..., 2:])], dim=-1))
        mask = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64)
        mask[..., 2:] = 1
        with pytest.raises(InputError, match="nothing that moves inside the mask"):
            find_moves(flat, model.x, model.sigma, mask, Settings("LOCO", derivatives=derivatives))

    @pytest.mark.parametrize("products", [0, 23])
    def test_no_more_directions_than_the_mask_has_numbers(self, model, products):
        mask = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64)
        mask[..., 0, 0] = 1  # of two channels
        moves = loco(*probed(model), mask, 8, 0, products=products)
        assert len(moves) == 2
        assert all(move.step < 1e3 for move in moves)

    def test_less_changes_outside_than_with_the_raw_direction(self, model):
        outside = EYE - rows_of(box())

        def leak(move):
            return float((outside @ model.jacobian() @ move.vector.flatten()).norm() * move.step)

        (raw,), (held,), (all_held,) = (loco(*probed(model), box(), 1, rank) for rank in (0, 4, 12))
        assert leak(held) < 0.6 * leak(raw)
        assert leak(all_held) < 1e-10  # there are 12 values outside the box


class TestTLoco:
    @pytest.mark.parametrize("null_rank", [0, 4])
    def test_pulled_back_difference_off_the_null_space(self, model, mask, null_rank):
        jacobian, probe = probed(model)
        move = t_loco(model.denoiser, jacobian, jacobian_of(model, "target"), probe, mask, null_rank)
        p = rows_of(mask)
        q = p @ difference(model).flatten()
        v = model.jacobian("target").T @ q
        if mask is not None:
            outside = dense_null_space(model, mask, null_rank)
            v = v - outside @ (outside.T @ v)
        v = v / v.norm()
        assert cosine(move.vector, v) > 1 - 1e-4
        effect = p @ model.jacobian("target") @ move.vector.flatten()
        assert move.step == pytest.approx(float(q.norm() / effect.norm()))

    @pytest.mark.parametrize(("tangent", "gradient"), [(0.5, 1.0), (1.0, 0.5), (0.9, 1.0)])
    def test_products_that_are_wrong_under_the_target_alone(self, model, tangent, gradient):
        exact = model.denoiser.predict

        def predict(x, sigma, prompt, guidance):
            value = exact(x, sigma, prompt, guidance)
            return Identity.apply(value, tangent, gradient) if prompt == "target" else value

        model.denoiser.predict = predict
        with pytest.raises(DerivativeError, match="under 'target' do not agree"):
            find_moves(model.denoiser, model.x, model.sigma, None, Settings("T-LOCO"))

    def test_guidance(self, model):
        probe = probed(model)[1]
        plain, guided = (
            t_loco(model.denoiser, jacobian_of(model), jacobian_of(model, "target"), probe, None, 0, guidance=g)
            for g in (1.0, 2.0)
        )
        # both prompts share the negative, so q is twice as long and points the same way
        assert cosine(plain.vector, guided.vector) > 1 - 1e-9
        assert guided.step == pytest.approx(2 * plain.step)


class TestHessian:
    def scaled(self, model, mask, prompt="source"):
        """P K, K = a J."""
        return rows_of(mask) @ (model.a * model.jacobian(prompt))

    def test_score_difference(self, model, mask):
        q, notes = score_difference(model.denoiser, jacobian_of(model), 0, mask, 1.0)
        assert torch.allclose(q.flatten(), rows_of(mask) @ difference(model).flatten())
        assert notes == {}

    def test_keep_takes_off_its_difference_and_nothing_else(self, model):
        q, notes = score_difference(model.denoiser, jacobian_of(model), 1, None, 1.0)
        kept = (model.exact("keep 0 present") - model.exact("keep 0 absent")).flatten()
        raw = difference(model).flatten()
        assert torch.allclose(q.flatten(), raw - kept * (kept @ raw) / (kept @ kept))
        assert notes["keep_cosines"] == pytest.approx([cosine(raw, kept)])
        assert 0.1 < notes["keep_cosines"][0] < 0.99

    def test_keep_that_leaves_nothing(self, model):
        model.prompts["keep 0 present"], model.prompts["keep 0 absent"] = (
            model.prompts["target"],
            model.prompts["source"],
        )
        with pytest.raises(InputError, match="'keep' holds still all"):
            score_difference(model.denoiser, jacobian_of(model), 1, None, 1.0)

    @pytest.mark.parametrize("damping", [0.01, 0.3])
    def test_newton_solves_the_normal_equations(self, model, mask, damping):
        k, q = self.scaled(model, mask), difference(model)
        q = q if mask is None else mask * q
        d, notes = newton(jacobian_of(model), q, mask, damping, 40)
        normal = k.T @ k + damping * EYE
        gradient = (normal @ d.flatten() - k.T @ q.flatten()).norm() / (k.T @ q.flatten()).norm()
        assert notes["least_squares_residual"] == pytest.approx(float(gradient), rel=1e-6)
        assert gradient <= 1e-2
        exact = torch.linalg.solve(normal, k.T @ q.flatten())
        assert (d.flatten() - exact).norm() < 0.15 * exact.norm()
        assert cosine(d, exact) > 0.99

    def test_newton_without_a_backward_pass(self, model, mask):
        k, q = self.scaled(model, mask), difference(model)
        q = q if mask is None else mask * q
        d, notes = newton_forward(jacobian_of(model), q, mask, 0.01, SIZE)
        exact = torch.linalg.solve(k.T @ k + 0.01 * EYE, k.T @ q.flatten())
        assert torch.allclose(d.flatten(), exact, atol=1e-6)
        assert notes["relative_misfit"] == pytest.approx(float((k @ exact - q.flatten()).norm() / q.norm()), rel=1e-4)
        assert notes["asymmetry"] < 1e-8

    def test_low_pass_and_delta_score(self, model):
        q = difference(model)
        k = self.scaled(model, None, "free")
        assert torch.allclose(low_pass(jacobian_of(model, "free"), q).flatten(), k @ q.flatten())
        assert torch.equal(delta_score(q), q)

    def test_step_makes_the_linear_effect_as_large_as_the_signal(self, model, mask):
        q = difference(model) if mask is None else mask * difference(model)
        d = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        move = move_by(jacobian_of(model), d, q, mask, {})
        assert cosine(move.vector, d) == pytest.approx(1)
        effect = rows_of(mask) @ model.jacobian() @ move.vector.flatten() * move.step
        assert float(effect.norm()) == pytest.approx(float(q.norm()))

    def test_newton_hits_the_signal_where_the_model_is_linear(self, model):
        """Small damping, no mask: J v step = q, so strength 1 changes the prediction by what the words change."""
        q = difference(model)
        d, _ = newton_forward(jacobian_of(model), q, None, 1e-12, SIZE)
        move = move_by(jacobian_of(model), d, q, None, {})
        assert torch.allclose(model.jacobian() @ move.vector.flatten() * move.step, q.flatten(), atol=1e-5)


class TestFindMoves:
    @pytest.mark.parametrize("method", ["HSDS", "T-LOCO", "DDS", "HSDS low-pass"])
    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_words_that_change_nothing_inside_the_mask(self, model, method, derivatives):
        mask, predict = box(), model.denoiser.predict
        model.denoiser.predict = lambda x, sigma, prompt, guidance: torch.where(
            mask > 0, predict(x, sigma, "source", guidance), predict(x, sigma, prompt, guidance)
        )
        with pytest.raises(InputError, match="say the same to this model"):
            find_moves(model.denoiser, model.x, model.sigma, mask, Settings(method, derivatives=derivatives))

    @pytest.mark.parametrize("method", [m for m in METHODS if m != "text"])
    @pytest.mark.parametrize("derivatives", ["automatic", "forward only", "central differences"])
    def test_all_methods(self, model, mask, method, derivatives):
        settings = Settings(method, count=2, null_rank=2, keep=1, derivatives=derivatives)
        if method == "T-LOCO":
            settings = Settings(method, count=2, null_rank=2, keep=1)
        moves, notes = find_moves(model.denoiser, model.x, model.sigma, mask, settings)
        assert len(moves) == (2 if method == "LOCO" else 1)
        for move in moves:
            assert move.vector.shape == SHAPE
            assert float(move.vector.norm()) == pytest.approx(1)
            assert move.step > 0
        ways = {"central differences": "central differences"}
        assert notes["self_check"]["way"] == ways.get(settings.derivatives, "forward AD")

    @pytest.mark.parametrize("method", ["HSDS", "LOCO"])
    def test_ways_agree(self, model, method):
        found = [
            find_moves(model.denoiser, model.x, model.sigma, None, Settings(method, max_pairs=24, derivatives=way))[0][
                0
            ]
            for way in ("automatic", "forward only", "central differences")
        ]
        for other in found[1:]:
            assert cosine(found[0].vector, other.vector) > 0.98
            assert other.step == pytest.approx(found[0].step, rel=0.1)

    def test_a_target_that_says_the_same(self, model):
        model.prompts["target"] = model.prompts["source"]
        for method in ("DDS", "HSDS low-pass", "HSDS", "T-LOCO"):
            with pytest.raises(InputError, match="came out empty"):
                find_moves(model.denoiser, model.x, model.sigma, None, Settings(method))

    def test_seeds(self, model):
        a, b, other = (
            find_moves(model.denoiser, model.x, model.sigma, box(), Settings("LOCO", seed=seed))[0][0]
            for seed in (3, 3, 4)
        )
        assert torch.equal(a.vector, b.vector)
        assert cosine(a.vector, other.vector) > 0.999
