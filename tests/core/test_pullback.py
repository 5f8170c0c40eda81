"""The pullback method against dense float64 linear algebra and independent loops along its paths."""

import math
from dataclasses import replace

import pytest
import torch
from analytic import MIX, SHAPE, SIZE, analytic, box, cosine
from planted import Identity

from latent_directions.core import pullback as module
from latent_directions.core.denoiser import Denoiser, EvaluationCounter, Features
from latent_directions.core.errors import (
    FeaturesShapeError,
    NoBackwardError,
    NoFeaturesError,
    NothingInCommonError,
    NothingToMoveError,
    ShapeError,
)
from latent_directions.core.local_basis import features_jacobian, local_basis
from latent_directions.core.pullback import carry_over, guided_path, pullback
from latent_directions.core.search import GEODESIC, GUIDED, STRAIGHT, Search, Settings


def dense_features_jacobian(model, x: torch.Tensor) -> torch.Tensor:
    """J_h (10, N) at any point, by the mixtures' own formulas."""
    return replace(model, x=x).features_jacobian()


def with_features(model, read, **settings) -> Search:
    """A search of the same prediction, with other features."""
    inner = model.denoiser
    return replace(
        model.search(**settings),
        denoiser=Denoiser(inner.predict, inner.scale, inner.counter, features=Features(read, "planted")),
    )


def dense_step(model, vector: torch.Tensor) -> float:
    effect = model.jacobian() @ vector.flatten()
    return 0.25 * float(model.exact().std()) / float(effect.square().mean().sqrt())


class TestLocalBasis:
    def test_is_the_dense_svd(self, model):
        basis = local_basis(model.search(), 4)
        left, values, right = torch.linalg.svd(model.features_jacobian(), full_matrices=False)
        assert torch.allclose(basis.values, values[:4], rtol=1e-5)
        for i in range(4):
            assert abs(cosine(basis.moves[i], right[i])) > 1 - 1e-6
            assert abs(cosine(basis.changes[i], left[:, i])) > 1 - 1e-6
        assert basis.converged
        assert (basis.residuals <= 1e-3).all()
        assert (basis.moves.shape, basis.changes.shape) == ((4, *SHAPE[1:]), (4, 5, 2))

    def test_changes_are_those_that_the_moves_make(self, model):
        basis = local_basis(model.search(), 3)
        images = (model.features_jacobian() @ basis.moves.flatten(1).T).T
        assert torch.allclose(images / basis.values[:, None], basis.changes.flatten(1), atol=1e-9)
        for vectors in (basis.moves.flatten(1), basis.changes.flatten(1)):
            assert torch.allclose(vectors @ vectors.T, torch.eye(3, dtype=torch.float64), atol=1e-9)

    def test_signs_do_not_depend_on_the_seed(self, model):
        bases = [local_basis(model.search(seed=seed), 3) for seed in range(4)]
        for basis in bases:
            flat = basis.moves.flatten(1)
            assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()
            assert torch.allclose(basis.moves, bases[0].moves, atol=1e-3)
            assert torch.allclose(basis.changes, bases[0].changes, atol=1e-3)

    def test_no_more_than_the_features_have(self, model):
        basis = local_basis(model.search(), 15)
        assert len(basis) == 10
        assert torch.allclose(basis.values, torch.linalg.svdvals(model.features_jacobian()), rtol=1e-6)

    def test_singular_values_of_rounding_are_left_out(self):
        model = analytic()

        def read(x, sigma, prompt):
            model.denoiser.counter.forward(len(x))
            h = (x.flatten(1)[:, :2]).sin()
            return torch.cat([h, h], dim=1)

        assert len(local_basis(with_features(model, read), 4)) == 2

    def test_of_another_prompt(self, model):
        basis = local_basis(model.search(), 2, prompt="target")
        expected = torch.linalg.svdvals(model.features_jacobian("target"))
        assert torch.allclose(basis.values, expected[:2], rtol=1e-5)
        assert not torch.allclose(basis.values, torch.linalg.svdvals(model.features_jacobian())[:2], rtol=1e-3)

    def test_costs_are_those_of_the_check_and_the_pairs(self, model):
        search = model.search()
        basis = local_basis(search, 3)
        assert model.denoiser.counter.evaluations == search.notes["self_check"]["evaluations"] + 4 * basis.pairs

    def test_a_video_latent_and_features_in_half_precision(self):
        """As a network in bfloat16 gives them; the solver works in the type of the latent."""
        mix = MIX.float()

        def read(x, sigma, prompt):
            return (x.flatten(1) @ mix.T).tanh().bfloat16()

        x = torch.randn(1, 2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
        denoiser = Denoiser(lambda x, sigma: x.tanh(), lambda sigma: (1.0, sigma), features=Features(read, "planted"))
        basis = local_basis(Search(denoiser, x, 1.0), 2)
        h = (x.flatten(1) @ mix.T).tanh()
        exact = torch.linalg.svdvals((1 - h.square()).T * mix)
        assert (basis.moves.shape, basis.changes.dtype) == ((2, 2, 1, 3, 4), torch.float32)
        assert torch.allclose(basis.values.float(), exact[:2], rtol=2e-2)
        assert torch.allclose(basis.changes @ basis.changes.T, torch.eye(2), atol=1e-5)

    def test_it_gets_the_models_own_context_for_derivatives(self):
        entered = []

        def differentiable(backward):
            entered.append(backward)
            return torch.enable_grad()

        model = analytic()
        search = replace(model.search(), denoiser=replace(model.denoiser, differentiable=differentiable))
        local_basis(search, 1)
        assert set(entered) == {True, False}


class TestStraight:
    def test_moves_steps_and_signs(self, model):
        search = model.search(count=3)
        moves = pullback(search)
        left, values, right = torch.linalg.svd(model.features_jacobian(), full_matrices=False)
        assert len(moves) == 3
        for i, move in enumerate(moves):
            assert abs(cosine(move.vector, right[i])) > 1 - 1e-6
            assert float((model.jacobian() @ move.vector.flatten()).sum()) > 0
            assert move.step == pytest.approx(dense_step(model, move.vector), rel=1e-6)
            assert move.notes["singular_value"] == pytest.approx(float(values[i]), rel=1e-5)
            assert move.notes["path"] == STRAIGHT
            # the sign of the feature is that of the move
            image = model.features_jacobian() @ move.vector.flatten()
            assert cosine(image, move.feature) > 1 - 1e-6
            assert float(move.feature.norm()) == pytest.approx(1)
            assert move.feature.shape == (1, 5, 2)

    def test_a_mask_changes_nothing(self, model):
        (plain,), (masked,) = pullback(model.search()), pullback(model.search(box()))
        assert torch.equal(plain.vector, masked.vector)
        assert plain.step == masked.step

    def test_costs(self, model):
        search = model.search(count=2)
        moves = pullback(search)
        checks = search.notes["self_check"]["evaluations"] + search.notes["prediction_check"]["evaluations"]
        assert model.denoiser.counter.evaluations == checks + 4 * moves[0].notes["pairs"] + 2 * 2

    def test_a_bound_on_the_pairs(self, model):
        search = model.search(count=2)
        moves = pullback(search, max_pairs=3)
        assert moves[0].notes["pairs"] == 3
        assert not moves[0].notes["converged"]
        assert ["stopped after 3 pairs" in remark for remark in search.remarks] == [True]


class TestGuided:
    @pytest.mark.parametrize("steps", [1, 5])
    def test_the_path_is_that_of_a_plain_loop(self, model, steps):
        """In the papers' own terms: a latent z = x / c of variance 1, and the noise that the model predicts for it."""
        v = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        v = v / v.norm()
        c = math.sqrt(model.a**2 + model.b**2)

        def predicted_noise(z):
            x = c * z
            return (x - model.a * replace(model, x=x).exact()) / model.b

        z = model.x / c
        for _ in range(steps):
            z = z + 0.5 * (predicted_noise(z + 0.7 * v) - predicted_noise(z))
        found = guided_path(model.search(), v, steps=steps, delta=0.7, gamma=0.5)
        assert torch.allclose(found, c * z - model.x, atol=1e-9)
        assert model.denoiser.counter.evaluations == 2 * steps
        assert model.denoiser.counter.forwards == steps

    def test_the_move_leads_to_the_end_of_the_path(self, model):
        search = model.search(count=2, path=GUIDED, path_steps=3)
        straight = pullback(model.search(count=2))
        for move, before in zip(pullback(search), straight, strict=True):
            end = guided_path(model.search(), before.vector, steps=3, delta=1.0, gamma=1.0)
            assert torch.allclose(move.notes["path_strength"] * move.step * move.vector, end, atol=1e-9)
            assert move.notes["path_cosine"] == pytest.approx(cosine(move.vector, before.vector))
            assert move.step == pytest.approx(dense_step(model, move.vector), rel=1e-6)
            assert float((model.jacobian() @ move.vector.flatten()).sum()) > 0
            assert move.notes["path_delta"] == 1.0
            # the part of the move along v_i changes the features along the feature
            image = model.features_jacobian() @ move.vector.flatten()
            assert float(image @ move.feature.flatten()) > 0

    def test_costs(self, model):
        search = model.search(count=2, path=GUIDED, path_steps=3)
        moves = pullback(search)
        checks = search.notes["self_check"]["evaluations"] + search.notes["prediction_check"]["evaluations"]
        assert model.denoiser.counter.evaluations == checks + 4 * moves[0].notes["pairs"] + 2 * (2 + 2 * 3 + 2)

    def test_a_longer_probe_where_the_model_rounds(self):
        """In bfloat16 the difference of two predictions so near each other is lost."""
        mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) / 8
        x = 30 * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))

        def predict(x, sigma, rounded=True):
            inner = (x.flatten(1) @ mix.T / 30).tanh() * 3
            return (inner.bfloat16().float() if rounded else inner).view_as(x)

        def search(rounded):
            denoiser = Denoiser(
                lambda x, sigma: predict(x, sigma, rounded),
                lambda sigma: (1.0, sigma),
                features=Features(lambda x, sigma, prompt: (x.flatten(1) @ mix[:8].T / 30).tanh(), "planted"),
            )
            return Search(denoiser, x, 30.0, None, Settings(path=GUIDED, path_steps=2))

        (rounded,), (exact,) = (
            pullback(replace(search(which), settings=replace(search(which).settings, path_delta=0.05)))
            for which in (True, False)
        )
        assert exact.notes["path_delta"] == 0.05
        assert rounded.notes["path_delta"] == pytest.approx(0.08 * float(x.norm()) / math.sqrt(901))
        assert cosine(rounded.vector, exact.vector) > 0.99


class TestGeodesic:
    @pytest.mark.parametrize("steps", [1, 3])
    def test_against_dense_bases(self, model, steps):
        search = model.search(count=2, path=GEODESIC, path_steps=steps)
        straight = pullback(model.search(count=2))
        for move, before in zip(pullback(search), straight, strict=True):
            x, v, u, cosines = model.x, before.vector, before.feature.flatten(), []
            for number in range(steps):
                if number:
                    left, _, right = torch.linalg.svd(dense_features_jacobian(model, x), full_matrices=False)
                    coefficients = left[:, :5].T @ u
                    cosines.append(float(coefficients.norm() / u.norm()))
                    v = (right[:5].T @ coefficients / coefficients.norm()).view(SHAPE)
                    u = left[:, :5] @ coefficients / coefficients.norm()
                x = x + before.step / steps * v
            end = x - model.x
            assert abs(cosine(move.vector, end)) > 1 - 1e-5
            assert abs(move.notes["path_strength"]) * move.step == pytest.approx(float(end.norm()), rel=1e-4)
            assert move.notes["path_cosines"] == pytest.approx(cosines, abs=1e-3)
            assert move.step == pytest.approx(dense_step(model, move.vector), rel=1e-6)

    def test_one_step_is_the_straight_move(self, model):
        (move,) = pullback(model.search(path=GEODESIC, path_steps=1))
        (straight,) = pullback(model.search())
        assert torch.allclose(move.vector, straight.vector, atol=1e-9)
        assert move.notes["path_strength"] == pytest.approx(1)
        assert move.notes["path_cosine"] == pytest.approx(1)

    def test_no_more_steps_than_shots(self, model):
        (move,) = pullback(model.search(path=GEODESIC, path_steps=16))
        assert move.notes["path_steps"] == module.SHOTS
        assert len(move.notes["path_cosines"]) == module.SHOTS - 1
        (longer,) = pullback(model.search(path=GEODESIC, path_steps=16), shots=6)
        assert longer.notes["path_steps"] == 6

    def test_the_record_expects_a_basis_a_step(self):
        settings = Settings(count=2, path=GEODESIC, path_steps=16)
        one = module.PULLBACK.evaluations(replace(settings, path_steps=1), False)
        two = module.PULLBACK.evaluations(replace(settings, path_steps=2), False)
        assert module.PULLBACK.evaluations(settings, False) == pytest.approx(one + (module.SHOTS - 1) * (two - one))


class TestCarryOver:
    def test_dense(self, model):
        change = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        search = model.search()
        found = carry_over(search, change, rank=4)
        left, _, right = torch.linalg.svd(model.features_jacobian(), full_matrices=False)
        coefficients = left[:, :4].T @ change.flatten()
        assert cosine(found.vector, right[:4].T @ coefficients) > 1 - 1e-6
        assert cosine(found.feature, left[:, :4] @ coefficients) > 1 - 1e-6
        assert found.notes["cosine"] == pytest.approx(float(coefficients.norm() / change.norm()), rel=1e-4)
        assert found.step == pytest.approx(dense_step(model, found.vector), rel=1e-6)
        checks = search.notes["self_check"]["evaluations"] + search.notes["prediction_check"]["evaluations"]
        assert model.denoiser.counter.evaluations == checks + 2 + 4 * found.notes["pairs"] + 2

    def test_to_its_own_picture_it_is_the_same(self, model):
        for move in pullback(model.search(count=2)):
            again = carry_over(model.search(), move.feature)
            assert cosine(again.vector, move.vector) > 1 - 1e-5
            assert again.step == pytest.approx(move.step, rel=1e-3)
            assert again.notes["cosine"] == pytest.approx(1)

    def test_its_sign_is_that_of_the_change(self, model):
        (move,) = pullback(model.search())
        forth, back = (carry_over(model.search(), sign * move.feature) for sign in (1, -1))
        assert torch.allclose(forth.vector, -back.vector, atol=1e-9)
        assert torch.allclose(forth.feature, -back.feature, atol=1e-9)

    def test_features_of_another_size(self, model):
        with pytest.raises(ShapeError, match="features of the size 2 x 5, but those of this picture are 5 x 2"):
            carry_over(model.search(), torch.ones(1, 2, 5, dtype=torch.float64))

    def test_a_change_that_no_move_makes(self):
        model = analytic()

        def read(x, sigma, prompt):
            h = x.flatten(1)[:, :3].sin()
            return torch.cat([h, 1 + 0 * h], dim=1)

        change = torch.zeros(1, 6, dtype=torch.float64)
        change[0, 5] = 1
        with pytest.raises(NothingInCommonError, match="no part that this picture can make"):
            carry_over(with_features(model, read), change)


class TestRefusals:
    def test_a_host_that_reads_no_features(self, model):
        search = replace(model.search(), denoiser=Denoiser(model.denoiser.predict, model.denoiser.scale))
        for call in (pullback, lambda s: local_basis(s, 1), lambda s: carry_over(s, torch.ones(1, 5, 2))):
            with pytest.raises(NoFeaturesError, match="none can be read of this model"):
                call(search)

    def test_without_a_backward_pass(self, model):
        features = model.denoiser.features

        def read(x, sigma, prompt):
            return Identity.apply(features.read(x, sigma, prompt), 1.0, 0.5)

        with pytest.raises(NoBackwardError, match="needs a backward pass.*Backward products failed"):
            pullback(with_features(model, read))

    @pytest.mark.parametrize(
        ("read", "shape"),
        [(lambda x: torch.cat([x, x]), r"\(2, 2, 3, 4\)"), (lambda x: x.flatten(1).sum(1), r"\(1,\)")],
    )
    def test_features_that_are_not_one_set_for_each_latent(self, model, read, shape):
        """As of a network that runs two prompts at once."""
        search = with_features(model, lambda x, sigma, prompt: read(x))
        with pytest.raises(FeaturesShapeError, match=f"at layer 'planted' have the shape {shape} for 1 latents"):
            pullback(search)

    @pytest.mark.parametrize("derivatives", ["automatic", "central differences"])
    @pytest.mark.parametrize("rounding", [0.0, 1e-9])
    def test_features_that_the_prediction_does_not_use(self, rounding, derivatives):
        counter = EvaluationCounter()

        def predict(x, sigma):
            counter.forward(len(x))
            return torch.cat([x[:, :1].tanh(), 1 + rounding * x[:, 1:]], dim=1)

        def read(x, sigma, prompt):
            return x[:, 1:].sin()

        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        denoiser = Denoiser(predict, lambda sigma: (1.0, sigma), counter, features=Features(read, "planted"))
        with pytest.raises(NothingToMoveError, match="do not change its prediction"):
            pullback(Search(denoiser, x, 1.0, None, Settings(count=2, derivatives=derivatives)))

    def test_forward_only_still_takes_a_backward_pass(self, model):
        """It cannot do without, as T-LOCO."""
        exact, *_ = pullback(model.search())
        for derivatives in ("forward only", "central differences", "double backward"):
            search = model.search(derivatives=derivatives)
            (move,) = pullback(search)
            assert search.notes["self_check"]["backward"]
            assert cosine(move.vector, exact.vector) > 1 - 1e-4


def test_the_features_jacobian_counts_and_batches(model):
    jacobian = features_jacobian(model.search())
    vectors = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changes = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = model.features_jacobian()
    assert dense.shape == (10, SIZE)
    assert torch.allclose(jacobian.matvec(vectors).flatten(1), vectors.flatten(1) @ dense.T)
    assert torch.allclose(jacobian.rmatvec(changes).flatten(1), changes.flatten(1) @ dense)
    assert model.denoiser.counter.evaluations == 2 * 3 + 3 * 3


@pytest.mark.parametrize("path", [STRAIGHT, GUIDED, GEODESIC])
@pytest.mark.parametrize("count", [1, 3])
def test_the_record_expects_what_it_takes(model, path, count):
    search = model.search(path=path, path_steps=4, count=count)
    pullback(search)
    ratio = module.PULLBACK.evaluations(search.settings, False) / model.denoiser.counter.evaluations
    assert 0.6 < ratio < 3
