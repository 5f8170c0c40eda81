"""A self-check that planted faults cannot pass, and the way that is taken then."""

import json

import pytest
import torch
from analytic import SCALES, SHAPE, analytic, planted
from planted import Identity

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import CachedModelError, DerivativeError
from latent_directions.core.operators import DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD, Jacobian
from latent_directions.core.self_check import at_every_scale, self_check


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


def mixed_signs(size: float) -> torch.Tensor:
    """Factors 1 + size and 1 - size by turns: the errors of a gradient scaled so cancel in a sum."""
    signs = 1 - 2 * (torch.arange(24) % 2).view(SHAPE).double()
    return 1 + size * signs


@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, float("nan"), mixed_signs(0.3), mixed_signs(0.9)], ids=str)
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
    with pytest.raises(DerivativeError, match="prediction is not a finite number"):
        self_check(Jacobian(nan, model.x, model.sigma))


@pytest.mark.parametrize("side", [16, 128])
@pytest.mark.parametrize(
    ("tangent", "gradient", "way", "reverse"),
    [
        (0.0, 0.0, DIFFERENCES, False),
        (0.7, 1.0, DOUBLE_BACKWARD, True),
        (1.0, 0.0, FORWARD_AD, False),
        (1.0, 0.5, FORWARD_AD, False),
    ],
)
def test_check_sees_the_lowest_frequencies(side, tangent, gradient, way, reverse):
    """A fault in a picture's mean is one of a few among thousands of numbers, and where leading directions lie."""

    def predict(x, sigma, prompt, guidance):
        denoiser.counter.forward(len(x))
        mean = x.mean(dim=(-2, -1), keepdim=True)
        return 0.5 * (x - mean) + Identity.apply(mean, tangent, gradient)

    denoiser = Denoiser(predict, SCALES["flow"])
    x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    check = self_check(Jacobian(denoiser, x, 0.6))
    assert (check.way, check.reverse) == (way, reverse)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 1, 5, 12), (1, 3, 1, 7)])
def test_a_tensor_at_every_scale(shape):
    v = at_every_scale(torch.zeros(shape), 3)
    assert v.shape == shape
    assert float(v.norm()) == pytest.approx(v.numel() ** 0.5)
    assert torch.equal(v, at_every_scale(torch.zeros(shape), 3))
    assert (v.diff(dim=-1) != 0).all()  # down to single pixels
    if min(shape[-2:]) > 1:  # of white noise it is 1 / H W in the mean
        assert float(v.mean(dim=(-2, -1)).square().mean()) * shape[-2] * shape[-1] > 3


def without_tangent(error: type[Exception], gradient: float | None):
    """y = x with a jvp that raises, and a backward that does so too, or scales by a number."""

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def jvp(ctx, tangent):
            raise error

        @staticmethod
        def backward(ctx, grad):
            if gradient is None:
                raise error
            return gradient * grad

    return Bare.apply


@pytest.mark.parametrize("error", [AssertionError, ValueError, TypeError, AttributeError, KeyError])
def test_any_failure_of_code_that_has_no_derivative_is_a_reason_to_go_on(model, error):
    bare = without_tangent(error, None)
    jacobian = Jacobian(planted(model, lambda x, d: bare(d)), model.x, model.sigma)
    check = self_check(jacobian)
    assert (check.way, check.reverse) == (DIFFERENCES, False)
    assert "forward AD failed" in check.sentence
    assert product_error(model, jacobian) < 2e-2


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("first", "every"), [(1, 99), (0, 2), (2, 4), (7, 3), (10, 2)])
def test_check_refuses_a_model_that_answers_from_a_cache(model, first, every, inside):
    """It runs the first calls and every so many after them, and adds what the last run changed in between.

    Such a model is repeatable, and its products agree with its own differences.
    """
    network = torch.nn.Sequential(torch.nn.Identity())
    stored, calls = [], [0]

    def predict(x, sigma, prompt, guidance):
        calls[0] += 1
        runs = calls[0] <= first or calls[0] % every == 0 or not stored
        if runs or inside:
            denoiser.counter.forward(len(x))
        if runs:
            network(x)
            stored[:] = [model.denoiser(x, sigma, prompt, guidance).detach() - x.detach()]
        return x + stored[0]

    denoiser = Denoiser(predict, model.denoiser.scale)
    jacobian = Jacobian(denoiser, model.x, model.sigma)
    with pytest.raises(CachedModelError, match="answered without running its network"):
        self_check(jacobian)
        for _ in range(10):
            jacobian.matvec(model.x)


def test_no_derivative_to_be_had(model):
    """A prediction that is rough at every step size, with a wrong tangent on top."""
    rough = planted(model, lambda x, d: d + torch.sin(1e5 * Identity.apply(x, 0.0, 0.0)))
    with pytest.raises(DerivativeError, match="No derivative of this model can be trusted"):
        self_check(Jacobian(rough, model.x, model.sigma))


def test_asking_for_differences(model):
    check = self_check(jacobian_of(model, way=DIFFERENCES), reverse=False)
    assert check.way == DIFFERENCES
    assert "this was asked for" in check.sentence
    rough = planted(model, lambda x, d: d + torch.sin(1e5 * x))
    with pytest.raises(DerivativeError, match="Set 'derivatives' to 'automatic'"):
        self_check(Jacobian(rough, model.x, model.sigma, way=DIFFERENCES), reverse=False)


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
    bare = without_tangent(NotImplementedError, 0.5)
    jacobian = Jacobian(planted(model, lambda x, d: bare(d)), model.x, model.sigma)
    check = self_check(jacobian)
    assert check.way == DIFFERENCES
    assert "forward AD failed (NotImplementedError)" in check.sentence
    assert jacobian._graph is None
    json.dumps(check.report(), allow_nan=False)


def test_a_prediction_that_does_not_depend_on_the_latent(model):
    constant = planted(model, lambda x, d: torch.ones_like(x))
    for way in (FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES):
        with pytest.raises(DerivativeError, match="came out as zero"):
            self_check(Jacobian(constant, model.x, model.sigma, way=way))


def test_asking_for_differences_is_reported_without_infinities(model):
    json.dumps(self_check(jacobian_of(model, way=DIFFERENCES)).report(), allow_nan=False)


def test_searches_are_given_the_products_of_the_check(model):
    """A backward product that cannot be trusted is not among them."""
    jacobian = jacobian_of(model)
    probe, exact = self_check(jacobian).probe, model.jacobian()
    v = probe.vector.flatten()
    assert torch.allclose(probe.image.flatten(), exact @ v)
    assert torch.allclose(probe.back.flatten(), exact.T @ exact @ v)
    before = model.denoiser.counter.evaluations
    assert torch.allclose(jacobian.value, model.exact())
    assert model.denoiser.counter.evaluations == before
    assert self_check(jacobian_of(model), reverse=False).probe.back is None
    wrong = planted(model, lambda x, d: Identity.apply(d, 1.0, 0.9))
    assert self_check(Jacobian(wrong, model.x, model.sigma)).probe.back is None


def test_one_sided_differences_are_taken_where_they_are_near_enough(model):
    """Where the model bends too much, rough products are exact ones."""
    jacobian = jacobian_of(model)
    self_check(jacobian, reverse=False)
    v = torch.randn(2, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = (v.flatten(1) @ model.jacobian().T).view_as(v)
    before = model.denoiser.counter.evaluations
    error = (jacobian.rough_matvec(v) - exact).norm() / exact.norm()
    assert model.denoiser.counter.evaluations - before == 2 * jacobian.rough_cost == 2
    assert 1e-9 < error < 0.1
    bent = planted(model, lambda x, d: d + 30 * (x - model.x) ** 2)  # which central differences do not see
    jacobian = Jacobian(bent, model.x, model.sigma)
    assert self_check(jacobian, reverse=False).way == FORWARD_AD
    before = bent.counter.evaluations
    assert torch.allclose(jacobian.rough_matvec(v), exact)
    assert bent.counter.evaluations - before == 2 * jacobian.rough_cost == 4
