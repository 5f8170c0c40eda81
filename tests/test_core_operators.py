"""The Jacobian as an operator against exact ones, and a self-check that planted faults cannot pass."""

import pytest
import torch
from analytic import SCALES, SHAPE, SIZE, analytic, box, rows_of

from latent_directions.core.denoiser import Denoiser, EvaluationCounter
from latent_directions.core.errors import DerivativeError
from latent_directions.core.operators import DIFFERENCES, FORWARD_AD, Jacobian, masked, scaled_hessian


@pytest.fixture(params=SCALES)
def model(request):
    return analytic(request.param)


def jacobian_of(model, **options) -> Jacobian:
    return Jacobian(model.denoiser, model.x, model.sigma, **options)


def dense(product) -> torch.Tensor:
    """The matrix of a product on blocks (p, ...), all columns at once."""
    identity = torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE[1:])
    return product(identity).flatten(1).T


def planted(model, function) -> Denoiser:
    """The model's denoiser with its prediction replaced by function(x, prediction)."""
    counter = EvaluationCounter()

    def predict(x, sigma, prompt, guidance):
        counter.forward(len(x))
        return function(x, model.denoiser(x, sigma, prompt, guidance))

    return Denoiser(predict, model.denoiser.scale, counter)


class Identity(torch.autograd.Function):
    """y = x with a forward and a backward product scaled by chosen numbers: 1 is right."""

    @staticmethod
    def forward(x, _tangent, _gradient):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.tangent, ctx.gradient = inputs

    @staticmethod
    def jvp(ctx, tangent, *_):
        return ctx.tangent * tangent

    @staticmethod
    def backward(ctx, gradient):
        return ctx.gradient * gradient, None, None


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
    assert cost(lambda: jacobian.check(reverse=False)) <= 9


def test_check_passes_a_right_model(model):
    jacobian = jacobian_of(model)
    check = jacobian.check()
    assert (check.way, check.reverse, check.repeat) == (FORWARD_AD, True, 0.0)
    assert check.difference < 1e-2
    assert check.adjoint < 1e-10
    assert check.sentence == "Derivatives passed their self-check."


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1, -1.0])
def test_check_catches_a_wrong_tangent(model, factor):
    denoiser = planted(model, lambda x, d: Identity.apply(d, factor, 1.0))
    jacobian = Jacobian(denoiser, model.x, model.sigma)
    check = jacobian.check()
    assert check.way == jacobian.way == DIFFERENCES
    assert "Forward products are central differences, because" in check.sentence
    assert check.reverse
    v = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = (model.jacobian() @ v.flatten()).view(SHAPE)
    assert (jacobian.matvec(v) - exact).norm() < 2e-2 * exact.norm()


def test_check_catches_a_wrong_tangent_in_one_place(model):
    """A dropped tangent of a part of the network: fused kernels do this."""
    denoiser = planted(model, lambda x, d: torch.cat([d[:, :1], Identity.apply(d[:, 1:], 0.8, 1.0)], dim=1))
    assert Jacobian(denoiser, model.x, model.sigma).check().way == DIFFERENCES


@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, float("nan")])
def test_check_catches_a_wrong_adjoint(model, factor):
    denoiser = planted(model, lambda x, d: Identity.apply(d, 1.0, factor))
    check = Jacobian(denoiser, model.x, model.sigma).check()
    assert check.way == FORWARD_AD
    assert not check.reverse
    assert not check.adjoint <= 1e-2
    assert "Backward products failed their self-check" in check.sentence


def test_check_without_a_backward_pass_asks_for_none(model):
    denoiser = planted(model, lambda x, d: Identity.apply(d, 1.0, 0.5))
    check = Jacobian(denoiser, model.x, model.sigma).check(reverse=False)
    assert check.adjoint is None
    assert not check.reverse
    assert check.sentence == "Derivatives passed their self-check."


def test_check_refuses_a_model_that_is_not_repeatable(model):
    denoiser = planted(model, lambda x, d: d + 1e-3 * torch.randn_like(d))
    with pytest.raises(DerivativeError, match="different answers to the same question"):
        Jacobian(denoiser, model.x, model.sigma).check()
    nan = planted(model, lambda x, d: d * float("nan"))
    with pytest.raises(DerivativeError):
        Jacobian(nan, model.x, model.sigma).check()


def test_check_refuses_a_model_that_answers_from_a_cache(model):
    """Such a model is repeatable, and its products agree with its own differences."""
    stored = {}

    def predict(x, sigma, prompt, guidance):
        if prompt not in stored:
            denoiser.counter.forward(len(x))
            stored[prompt] = model.denoiser(x, sigma, prompt, guidance).detach() - x.detach()
        return x + stored[prompt]

    denoiser = Denoiser(predict, model.denoiser.scale)
    jacobian = Jacobian(denoiser, model.x, model.sigma)
    with pytest.raises(DerivativeError, match="answered without running its network"):
        jacobian.check()


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
    with torch.no_grad():
        jacobian = Jacobian(planted(model, lambda x, d: d.detach().clone()), model.x, model.sigma)
    jacobian.denoiser.predict = lambda x, *_: torch.ones(SHAPE, dtype=torch.float64)
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


def test_no_derivative_to_be_had(model):
    """A prediction that is rough at every step size, with a wrong tangent on top."""
    rough = planted(model, lambda x, d: d + torch.sin(1e5 * Identity.apply(x, 0.0, 0.0)))
    with pytest.raises(DerivativeError, match="No derivative of this model can be trusted"):
        Jacobian(rough, model.x, model.sigma).check()


def test_asking_for_differences(model):
    check = jacobian_of(model, way=DIFFERENCES).check(reverse=False)
    assert check.way == DIFFERENCES
    assert "this was asked for" in check.sentence
