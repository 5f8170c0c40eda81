"""The Jacobian as an operator against exact ones."""

import pytest
import torch
from analytic import SCALES, SHAPE, SIZE, analytic, box, planted, rows_of
from planted import Identity

from latent_directions.core.errors import DerivativeError
from latent_directions.core.operators import DIFFERENCES, DOUBLE_BACKWARD, Jacobian, masked, scaled_hessian


@pytest.fixture(params=SCALES)
def model(request):
    return analytic(request.param)


def jacobian_of(model, **options) -> Jacobian:
    return Jacobian(model.denoiser, model.x, model.sigma, **options)


def dense(product) -> torch.Tensor:
    """The matrix of a product on blocks (p, ...), all columns at once."""
    identity = torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE[1:])
    return product(identity).flatten(1).T


def test_the_analytic_model_obeys_tweedie(model):
    """a D - x = b^2 grad log p, and J from the posterior covariance is the derivative of D."""
    score = torch.func.grad(lambda x: model.prompts["source"].log_density(x, model.a, model.b))(model.x.flatten())
    assert torch.allclose(model.a * model.exact().flatten() - model.x.flatten(), model.b**2 * score, atol=1e-10)
    prediction = lambda x: model.prompts["source"].prediction(x[None], model.a, model.b)[0]  # noqa: E731
    assert torch.allclose(torch.func.jacrev(prediction)(model.x.flatten()), model.jacobian(), atol=1e-10)


@pytest.mark.parametrize("prompt", ["source", "target"])
def test_products_are_the_exact_jacobian(model, prompt):
    jacobian, exact = jacobian_of(model, prompt=prompt), model.jacobian(prompt)
    assert torch.allclose(dense(jacobian.matvec), exact, atol=1e-11)
    assert torch.allclose(dense(jacobian.rmatvec), exact.T, atol=1e-11)
    assert torch.allclose(dense(jacobian.under("free").matvec), model.jacobian("free"), atol=1e-11)


def test_double_backward_is_the_exact_jacobian(model):
    jacobian = jacobian_of(model, prompt="target", guidance=3.0, way=DOUBLE_BACKWARD)
    exact = model.jacobian("negative") + 3 * (model.jacobian("target") - model.jacobian("negative"))
    assert torch.allclose(dense(jacobian.matvec), exact, atol=1e-10)
    assert torch.allclose(dense(jacobian.rmatvec), exact.T, atol=1e-10)
    assert jacobian.under("free").way == DOUBLE_BACKWARD


def test_central_differences_are_near_the_exact_jacobian(model):
    jacobian = jacobian_of(model, way=DIFFERENCES)
    error = (dense(jacobian.matvec) - model.jacobian()).norm() / model.jacobian().norm()
    assert 0 < error < 1e-2


def test_the_scaled_hessian_is_the_posterior_covariance(model):
    k = dense(scaled_hessian(jacobian_of(model)))
    covariance = model.prompts["source"].covariance(model.x.flatten(1), model.a, model.b)
    assert torch.allclose(k, model.a**2 / model.b**2 * covariance, atol=1e-11)
    assert torch.allclose(k, k.T, atol=1e-11)
    assert torch.linalg.eigvalsh(k).min() > 0


def test_masked_products_are_those_of_masked_rows(model):
    p, exact = rows_of(box()), model.jacobian()
    matvec, rmatvec = masked(jacobian_of(model), box())
    assert torch.allclose(dense(matvec), p @ exact, atol=1e-11)
    assert torch.allclose(dense(rmatvec), exact.T @ p, atol=1e-11)


def test_guided_products(model):
    jacobian = jacobian_of(model, prompt="target", guidance=3.0)
    exact = model.jacobian("negative") + 3 * (model.jacobian("target") - model.jacobian("negative"))
    assert torch.allclose(dense(jacobian.matvec), exact, atol=1e-10)
    assert torch.allclose(dense(jacobian.rmatvec), exact.T, atol=1e-10)


def test_costs(model):
    jacobian, counter = jacobian_of(model), model.denoiser.counter
    vectors = torch.randn(3, *SHAPE[1:], dtype=torch.float64)

    def cost(call) -> int:
        before = counter.evaluations
        call()
        return counter.evaluations - before

    assert cost(lambda: jacobian.matvec(vectors[:1])) == 2
    assert cost(lambda: jacobian.matvec(vectors)) == 6
    assert cost(lambda: jacobian.rmatvec(vectors[:1])) == 3  # builds the graph
    assert cost(lambda: jacobian.rmatvec(vectors[:1])) == 2
    assert cost(lambda: jacobian.rmatvec(vectors)) == 9
    jacobian.release()
    assert cost(lambda: jacobian.rmatvec(vectors)) == 9
    assert counter.weight == 1
    jacobian = jacobian_of(model, way=DOUBLE_BACKWARD)
    assert cost(lambda: jacobian.matvec(vectors[:1])) == 5  # builds both graphs
    assert cost(lambda: jacobian.matvec(vectors[:1])) == 2
    assert cost(lambda: jacobian.rmatvec(vectors[:1])) == 2


def test_zero_products_are_errors(model):
    jacobian = Jacobian(planted(model, lambda x, d: Identity.apply(d, 0.0, 0.0)), model.x, model.sigma)
    v = torch.ones(SHAPE, dtype=torch.float64)
    with pytest.raises(DerivativeError, match="forward derivative .* came out as zero"):
        jacobian.matvec(v)
    with pytest.raises(DerivativeError, match="backward derivative .* came out as zero"):
        jacobian.rmatvec(v)
    # the product of a zero vector is zero, and no error
    assert not jacobian_of(model).matvec(0 * v).any()


def test_a_lost_tangent_is_an_error(model):
    jacobian = Jacobian(planted(model, lambda x, d: torch.ones_like(x)), model.x, model.sigma)
    with pytest.raises(DerivativeError, match="came out as zero"):
        jacobian.matvec(torch.ones(SHAPE, dtype=torch.float64))


def test_products_that_are_not_finite_are_errors(model):
    jacobian = Jacobian(
        planted(model, lambda x, d: Identity.apply(d, float("inf"), float("nan"))), model.x, model.sigma
    )
    v = torch.ones(SHAPE, dtype=torch.float64)
    with pytest.raises(DerivativeError, match="forward derivative .* not a finite number"):
        jacobian.matvec(v)
    with pytest.raises(DerivativeError, match="backward derivative .* not a finite number"):
        jacobian.rmatvec(v)
