"""The Jacobian as an operator against exact ones."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from analytic import SCALES, SHAPE, SIZE, box, dense, planted, rows_of
from planted import Identity

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import NotFiniteDerivativeError, ZeroDerivativeError
from latent_directions.core.operators import (
    DIFFERENCES,
    DOUBLE_BACKWARD,
    FORWARD_AD,
    ONE_SIDED,
    Jacobian,
    RestrictedOperator,
    prediction_jacobian,
    scaled_hessian,
)

MODES = (FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(counter, call) -> int:
    before = counter.evaluations
    call()
    return counter.evaluations - before


def test_the_analytic_model_obeys_tweedie(model):
    """a D - x = b^2 grad log p, and J from the posterior covariance is the derivative of D."""
    score = torch.func.grad(lambda x: model.prompts["source"].log_density(x, model.a, model.b))(model.x.flatten())
    assert torch.allclose(model.a * model.exact().flatten() - model.x.flatten(), model.b**2 * score, atol=1e-10)
    prediction = lambda x: model.prompts["source"].prediction(x[None], model.a, model.b)[0]  # noqa: E731
    assert torch.allclose(torch.func.jacrev(prediction)(model.x.flatten()), model.jacobian(), atol=1e-10)


class TestPredictionJacobian:
    @pytest.mark.parametrize("prompt", ["source", "target", "free"])
    @pytest.mark.parametrize("mode", [FORWARD_AD, DOUBLE_BACKWARD])
    def test_products_are_the_exact_jacobian(self, model, prompt, mode):
        jacobian = prediction_jacobian(model.denoiser, model.x, model.sigma, prompt, mode=mode)
        exact = model.jacobian(prompt)
        assert jacobian.mode == mode
        assert torch.allclose(dense(jacobian.matvec), exact, atol=1e-11)
        assert torch.allclose(dense(jacobian.rmatvec), exact.T, atol=1e-11)

    @pytest.mark.parametrize("mode", [FORWARD_AD, DOUBLE_BACKWARD])
    def test_guided_products(self, model, mode):
        jacobian = model.operator("target", guidance=3.0, mode=mode)
        exact = model.jacobian("negative") + 3 * (model.jacobian("target") - model.jacobian("negative"))
        assert torch.allclose(dense(jacobian.matvec), exact, atol=1e-10)
        assert torch.allclose(dense(jacobian.rmatvec), exact.T, atol=1e-10)

    def test_central_differences_are_near_the_exact_jacobian(self, model):
        error = (dense(model.operator(mode=DIFFERENCES).matvec) - model.jacobian()).norm() / model.jacobian().norm()
        assert 0 < error < 1e-2

    def test_value_is_evaluated_once(self, model):
        jacobian = model.operator()
        assert cost(model.denoiser.counter, lambda: jacobian.value) == 1
        assert cost(model.denoiser.counter, lambda: jacobian.value) == 0
        assert torch.allclose(jacobian.value, model.exact())

    def test_the_context_of_the_denoiser_is_entered(self, model):
        asked = []

        def differentiable(reverse):
            asked.append(reverse)
            return torch.enable_grad()

        jacobian = prediction_jacobian(replace(model.denoiser, differentiable=differentiable), model.x, model.sigma)
        jacobian.matvec(model.x)
        assert asked == [False]
        jacobian.rmatvec(model.x)
        assert asked == [False, True]
        jacobian.central_difference(model.x)  # plain calls
        assert asked == [False, True]

    def test_costs(self, model):
        jacobian, counter = model.operator(), model.denoiser.counter
        vectors = random(3, *SHAPE[1:])
        assert cost(counter, lambda: jacobian.matvec(vectors[:1])) == 2
        assert cost(counter, lambda: jacobian.matvec(vectors)) == 6
        assert cost(counter, lambda: jacobian.rmatvec(vectors[:1])) == 3  # builds the graph
        assert cost(counter, lambda: jacobian.rmatvec(vectors[:1])) == 2
        assert cost(counter, lambda: jacobian.rmatvec(vectors)) == 9
        jacobian.release()
        assert cost(counter, lambda: jacobian.rmatvec(vectors)) == 9
        assert counter.cost_per_forward == 1
        jacobian = model.operator(mode=DOUBLE_BACKWARD)
        assert cost(counter, lambda: jacobian.matvec(vectors[:1])) == 5  # builds both graphs
        assert cost(counter, lambda: jacobian.matvec(vectors[:1])) == 2
        assert cost(counter, lambda: jacobian.rmatvec(vectors[:1])) == 2
        jacobian = model.operator(mode=DIFFERENCES)
        assert cost(counter, lambda: jacobian.matvec(vectors)) == 6

    def test_costs_with_guidance(self, model):
        """Two evaluations a call, so each product is twice as expensive."""
        jacobian, counter = model.operator("target", guidance=3.0), model.denoiser.counter
        assert cost(counter, lambda: jacobian.matvec(model.x)) == 4
        assert cost(counter, lambda: jacobian.rmatvec(model.x)) == 6
        assert cost(counter, lambda: jacobian.rmatvec(model.x)) == 4


class TestPlainFunction:
    """A function that knows nothing of denoisers, with an output of another shape than its input."""

    MIX = random(5, SIZE, seed=7) / SIZE**0.5

    def function(self, x):
        return (torch.tanh(x.flatten(1) @ self.MIX.T) + 0.1 * x.flatten(1)[:, :5] ** 2).view(-1, 5, 1)

    def exact(self, x):
        return torch.func.jacrev(lambda flat: self.function(flat.view(SHAPE)).flatten())(x.flatten())  # 5 x 24

    @pytest.mark.parametrize(("mode", "tolerance"), list(zip(MODES, (1e-12, 1e-12, 1e-3), strict=True)))
    def test_products(self, mode, tolerance):
        x = random(*SHAPE)
        jacobian, exact = Jacobian(self.function, x, mode=mode), self.exact(x)
        columns = jacobian.matvec(torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE[1:]))
        assert columns.shape == (SIZE, 5, 1)
        assert (columns.flatten(1).T - exact).norm() < tolerance * exact.norm()
        rows = jacobian.rmatvec(torch.eye(5, dtype=torch.float64).view(5, 5, 1))
        assert rows.shape == (5, *SHAPE[1:])
        assert torch.allclose(rows.flatten(1), exact, atol=1e-12)

    def test_one_sided_differences(self):
        x = random(*SHAPE)
        jacobian, exact = Jacobian(self.function, x, one_sided_step=1e-6), self.exact(x)
        v = random(3, *SHAPE[1:], seed=1)
        product = jacobian.approximate_matvec(v)
        assert torch.allclose(product.flatten(1), v.flatten(1) @ exact.T, atol=1e-5)
        assert (jacobian.approximate_mode, jacobian.approximate_cost) == (ONE_SIDED, 1)
        exactly = replace(jacobian, one_sided_step=None)
        assert torch.allclose(exactly.approximate_matvec(v).flatten(1), v.flatten(1) @ exact.T, atol=1e-12)
        assert (exactly.approximate_mode, exactly.approximate_cost) == (FORWARD_AD, 2)

    def test_evaluations_are_the_batches_of_its_calls(self):
        jacobian = Jacobian(self.function, random(*SHAPE))
        v, u, counter = random(3, *SHAPE[1:]), random(3, 5, 1), jacobian.counter
        assert cost(counter, lambda: jacobian.value) == 1
        assert cost(counter, lambda: jacobian.matvec(v)) == 6
        assert cost(counter, lambda: jacobian.rmatvec(u)) == 9
        assert cost(counter, lambda: jacobian.rmatvec(u)) == 6
        assert cost(counter, lambda: jacobian.central_difference(v)) == 6
        other = replace(jacobian, mode=DOUBLE_BACKWARD)
        assert cost(other.counter, lambda: other.matvec(v)) == 12  # the graph of f is there; that of J' is built
        assert cost(other.counter, lambda: other.matvec(v)) == 6
        one_sided = replace(jacobian, one_sided_step=1e-4)
        assert cost(one_sided.counter, lambda: one_sided.approximate_matvec(v)) == 3
        assert other.counter is one_sided.counter is counter  # and nothing was counted twice
        assert counter.forwards == 1 + 1 + 1 + 2 + 1

    def test_a_counter_that_is_handed_in_is_left_to_the_function(self):
        denoiser = Denoiser(lambda x, sigma: sigma * x**2, SCALES["eps"])
        jacobian = Jacobian(lambda x: denoiser(x, 2.0), random(*SHAPE), counter=denoiser.counter)
        assert cost(denoiser.counter, lambda: jacobian.matvec(random(1, *SHAPE[1:], seed=1))) == 2
        assert denoiser.counter.forwards == 1

    def test_a_point_that_requires_gradients(self):
        x = random(*SHAPE).requires_grad_()
        jacobian = Jacobian(self.function, x)
        assert not jacobian.x.requires_grad
        assert not jacobian.rmatvec(random(1, 5, 1)).requires_grad
        assert not jacobian.matvec(random(*SHAPE, seed=1)).requires_grad

    @pytest.mark.parametrize("mode", MODES)
    def test_a_number_for_each_vector(self, mode):
        """An output (p,) without further dimensions."""
        x = random(*SHAPE)
        jacobian = Jacobian(lambda points: (points**2).flatten(1).sum(1), x, mode=mode)
        v = random(3, *SHAPE[1:], seed=1)
        assert torch.allclose(jacobian.matvec(v), 2 * v.flatten(1) @ x.flatten(), atol=1e-9)
        assert torch.allclose(jacobian.rmatvec(torch.ones(2)), 2 * x.expand(2, -1, -1, -1))


class TestFrozen:
    @pytest.mark.parametrize("name", ["function", "x", "mode", "difference_step", "one_sided_step", "counter"])
    def test_fields_cannot_be_assigned(self, name):
        jacobian = Jacobian(torch.sin, random(*SHAPE))
        before = getattr(jacobian, name)
        with pytest.raises(FrozenInstanceError):
            setattr(jacobian, name, None)
        assert getattr(jacobian, name) is before

    def test_variants_share_value_and_graphs(self, model):
        jacobian, counter = model.operator(), model.denoiser.counter
        variant = replace(jacobian, mode=DOUBLE_BACKWARD, difference_step=1e-3)
        assert (jacobian.mode, variant.mode) == (FORWARD_AD, DOUBLE_BACKWARD)
        assert variant.value is jacobian.value
        jacobian.rmatvec(model.x)
        assert cost(counter, lambda: variant.rmatvec(model.x)) == 2  # on the graph that is there
        assert cost(counter, lambda: variant.matvec(model.x)) == 4
        variant.release()
        assert cost(counter, lambda: jacobian.rmatvec(model.x)) == 3
        assert variant.value is jacobian.value  # which release keeps


class TestRestrictedOperator:
    def null_space(self, rank: int) -> torch.Tensor:
        return torch.linalg.qr(random(SIZE, rank))[0][None]

    @pytest.mark.parametrize("mask", [None, box(), 0.3 * box() + 0.5], ids=["everywhere", "box", "soft"])
    @pytest.mark.parametrize("rank", [0, 3])
    def test_products_are_those_of_the_dense_matrix(self, model, mask, rank):
        null_space = self.null_space(rank) if rank else None
        q = torch.eye(SIZE, dtype=torch.float64)
        if rank:
            q = q - null_space[0] @ null_space[0].T
        exact = rows_of(mask) @ model.jacobian() @ q
        operator = RestrictedOperator(model.operator(), mask, null_space)
        assert torch.allclose(dense(operator.matvec), exact, atol=1e-11)
        assert torch.allclose(dense(operator.rmatvec), exact.T, atol=1e-11)

    def test_recorded_vectors_and_their_images(self, model):
        null_space = self.null_space(3)
        operator = RestrictedOperator(model.operator(), box(), null_space, record=True)
        for seed in (1, 2):
            operator.matvec(random(2, *SHAPE[1:], seed=seed))
            operator.rmatvec(random(2, *SHAPE[1:], seed=seed))
        vectors, images = (torch.cat(parts).flatten(1) for parts in (operator.vectors, operator.images))
        assert vectors.shape == (4, SIZE)
        assert (vectors @ null_space[0]).abs().max() < 1e-12
        assert torch.allclose(images, vectors @ model.jacobian().T, atol=1e-11)  # not masked

    def test_nothing_is_recorded_unless_asked(self, model):
        operator = RestrictedOperator(model.operator(), None)
        operator.matvec(model.x)
        assert operator.vectors == operator.images == []


class TestScaledHessian:
    def test_is_the_posterior_covariance(self, model):
        k = dense(scaled_hessian(model.operator(), model.denoiser, model.sigma))
        covariance = model.prompts["source"].covariance(model.x.flatten(1), model.a, model.b)
        assert torch.allclose(k, model.a**2 / model.b**2 * covariance, atol=1e-11)
        assert torch.allclose(k, k.T, atol=1e-11)
        assert torch.linalg.eigvalsh(k).min() > 0

    def test_approximate_products(self, model):
        jacobian = model.operator(one_sided_step=1e-6)
        product = scaled_hessian(jacobian, model.denoiser, model.sigma, approximate=True)
        exact = model.a * model.jacobian()
        error = (dense(product) - exact).norm() / exact.norm()
        assert 0 < error < 1e-4
        assert cost(model.denoiser.counter, lambda: product(model.x)) == 1


class TestFaults:
    def test_zero_products_are_errors(self, model):
        jacobian = planted(model, lambda x, d: Identity.apply(d, 0.0, 0.0))
        v = torch.ones(SHAPE, dtype=torch.float64)
        with pytest.raises(ZeroDerivativeError, match="forward derivative .* came out as zero"):
            jacobian.matvec(v)
        with pytest.raises(ZeroDerivativeError, match="backward derivative .* came out as zero"):
            jacobian.rmatvec(v)

    @pytest.mark.parametrize("mode", [FORWARD_AD, DOUBLE_BACKWARD])
    def test_the_product_of_a_zero_vector_is_zero_and_no_error(self, model, mode):
        jacobian = model.operator(mode=mode)
        assert not jacobian.matvec(0 * model.x).any()
        assert not jacobian.rmatvec(0 * model.x).any()

    def test_a_lost_tangent_is_an_error(self, model):
        with pytest.raises(ZeroDerivativeError, match="came out as zero"):
            planted(model, lambda x, d: torch.ones_like(x)).matvec(torch.ones(SHAPE, dtype=torch.float64))

    def test_products_that_are_not_finite_are_errors(self, model):
        jacobian = planted(model, lambda x, d: Identity.apply(d, float("inf"), float("nan")))
        v = torch.ones(SHAPE, dtype=torch.float64)
        with pytest.raises(NotFiniteDerivativeError, match="forward derivative .* not a finite number"):
            jacobian.matvec(v)
        with pytest.raises(NotFiniteDerivativeError, match="backward derivative .* not a finite number"):
            jacobian.rmatvec(v)


def test_an_operator_at_another_point_shares_nothing(model):
    first = model.operator()
    first.rmatvec(model.x)
    same, other = replace(first, mode=DOUBLE_BACKWARD), replace(first, x=model.x + 0.1)
    before = model.denoiser.counter.evaluations
    assert torch.equal(same.value, first.value)
    assert model.denoiser.counter.evaluations <= before + 1
    assert not torch.allclose(other.value, first.value)
    assert torch.allclose(other.value, model.denoiser(model.x + 0.1, model.sigma))
