"""A self-check that planted faults cannot pass, and the way that is taken then."""

import json
from dataclasses import asdict

import pytest
import torch
from analytic import SCALES, SHAPE, analytic, planted
from planted import Identity

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import DerivativeError
from latent_directions.core.operators import DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD, Jacobian
from latent_directions.core.self_check import self_check


@pytest.fixture(params=SCALES)
def model(request):
    return analytic(request.param)


def jacobian_of(model, **options) -> Jacobian:
    return Jacobian(model.denoiser, model.x, model.sigma, **options)


def test_check_passes_a_right_model(model):
    jacobian = jacobian_of(model)
    check = self_check(jacobian)
    assert (check.way, check.reverse, check.repeat) == (FORWARD_AD, True, 0.0)
    assert check.difference < 1e-2
    assert check.adjoint < 1e-10
    assert check.sentence == "Derivatives passed their self-check."


def product_error(model, jacobian) -> float:
    v = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = (model.jacobian() @ v.flatten()).view(SHAPE)
    return float((jacobian.matvec(v) - exact).norm() / exact.norm())


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1, -1.0])
@pytest.mark.parametrize("reverse", [True, False])
def test_check_catches_a_wrong_tangent(model, factor, reverse):
    """The next way is double backward, or central differences where there is to be no backward pass."""
    jacobian = Jacobian(planted(model, lambda x, d: Identity.apply(d, factor, 1.0)), model.x, model.sigma)
    check = self_check(jacobian, reverse=reverse)
    assert check.way == jacobian.way == (DOUBLE_BACKWARD if reverse else DIFFERENCES)
    said = "are taken by double backward, because" if reverse else "are central differences, because"
    assert f"Forward products {said} forward AD " in check.sentence
    assert check.reverse == reverse
    assert product_error(model, jacobian) < (1e-10 if reverse else 2e-2)


def test_check_catches_a_wrong_tangent_in_one_place(model):
    """A dropped tangent of a part of the network: fused kernels do this."""
    denoiser = planted(model, lambda x, d: torch.cat([d[:, :1], Identity.apply(d[:, 1:], 0.8, 1.0)], dim=1))
    assert self_check(Jacobian(denoiser, model.x, model.sigma)).way == DOUBLE_BACKWARD


def test_check_catches_a_tangent_and_a_gradient_that_are_both_wrong(model):
    """By double backward they would agree with one another."""
    jacobian = Jacobian(planted(model, lambda x, d: Identity.apply(d, 0.9, 0.9)), model.x, model.sigma)
    check = self_check(jacobian)
    assert check.way == DIFFERENCES
    assert not check.reverse
    assert "and double backward disagreed with central differences" in check.sentence
    assert product_error(model, jacobian) < 2e-2


@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, float("nan")])
def test_check_catches_a_wrong_adjoint(model, factor):
    denoiser = planted(model, lambda x, d: Identity.apply(d, 1.0, factor))
    check = self_check(Jacobian(denoiser, model.x, model.sigma))
    assert check.way == FORWARD_AD
    assert not check.reverse
    assert check.adjoint is None or check.adjoint > 1e-2
    assert "Backward products failed their self-check" in check.sentence


def test_check_without_a_backward_pass_asks_for_none(model):
    denoiser = planted(model, lambda x, d: Identity.apply(d, 1.0, 0.5))
    check = self_check(Jacobian(denoiser, model.x, model.sigma), reverse=False)
    assert check.adjoint is None
    assert not check.reverse
    assert check.sentence == "Derivatives passed their self-check."


def test_check_refuses_a_model_that_is_not_repeatable(model):
    denoiser = planted(model, lambda x, d: d + 1e-3 * torch.randn_like(d))
    with pytest.raises(DerivativeError, match="different answers to the same question"):
        self_check(Jacobian(denoiser, model.x, model.sigma))
    nan = planted(model, lambda x, d: d * float("nan"))
    with pytest.raises(DerivativeError):
        self_check(Jacobian(nan, model.x, model.sigma))


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
        self_check(jacobian)


def test_no_derivative_to_be_had(model):
    """A prediction that is rough at every step size, with a wrong tangent on top."""
    rough = planted(model, lambda x, d: d + torch.sin(1e5 * Identity.apply(x, 0.0, 0.0)))
    with pytest.raises(DerivativeError, match="No derivative of this model can be trusted"):
        self_check(Jacobian(rough, model.x, model.sigma))


def test_asking_for_differences(model):
    check = self_check(jacobian_of(model, way=DIFFERENCES), reverse=False)
    assert check.way == DIFFERENCES
    assert "this was asked for" in check.sentence


def test_asking_for_double_backward(model):
    jacobian = jacobian_of(model, way=DOUBLE_BACKWARD)
    check = self_check(jacobian)
    assert (check.way, check.reverse) == (DOUBLE_BACKWARD, True)
    assert check.sentence == "Derivatives passed their self-check."
    assert product_error(model, jacobian) < 1e-10


def test_a_check_where_all_is_well_costs_ten_evaluations(model):
    before = model.denoiser.counter.evaluations
    self_check(jacobian_of(model))
    assert model.denoiser.counter.evaluations - before <= 10


def test_a_rejected_graph_is_freed_and_its_failure_named(model):
    """A jvp that is missing without a word, and a backward pass that fails its check."""

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def jvp(ctx, tangent):
            raise NotImplementedError

        @staticmethod
        def backward(ctx, gradient):
            return 0.5 * gradient

    jacobian = Jacobian(planted(model, lambda x, d: Bare.apply(d)), model.x, model.sigma)
    check = self_check(jacobian)
    assert check.way == DIFFERENCES
    assert "forward AD failed (NotImplementedError)" in check.sentence
    assert jacobian._graph is None
    json.dumps(asdict(check), allow_nan=False)


def test_a_prediction_that_does_not_depend_on_the_latent(model):
    constant = planted(model, lambda x, d: torch.ones_like(x))
    for way in (FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES):
        with pytest.raises(DerivativeError, match="came out as zero"):
            self_check(Jacobian(constant, model.x, model.sigma, way=way))


def test_asking_for_differences_is_reported_without_infinities(model):
    json.dumps(asdict(self_check(jacobian_of(model, way=DIFFERENCES))), allow_nan=False)
