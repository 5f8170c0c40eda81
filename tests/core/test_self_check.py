"""A self-check that planted faults cannot pass, and the mode that is taken then."""

import json
from dataclasses import fields, replace

import pytest
import torch
from analytic import SHAPE, SIZE, planted
from planted import Identity

from latent_directions.core.errors import (
    DerivativeError,
    LatentDirectionsError,
    NotFiniteError,
    NotRepeatableError,
    NoTrustedModeError,
    ZeroDerivativeError,
)
from latent_directions.core.inversion import seeded_noise
from latent_directions.core.linalg import relative_error
from latent_directions.core.operators import (
    DIFFERENCE_STEP,
    DIFFERENCES,
    DOUBLE_BACKWARD,
    FORWARD_AD,
    ONE_SIDED,
    Jacobian,
)
from latent_directions.core.self_check import (
    AGREEMENT,
    DIFFERENCE_STEPS,
    KINK_AGREEMENT,
    PASSED,
    at_every_scale,
    self_check,
)


def product_error(model, jacobian) -> float:
    v = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = (model.jacobian() @ v.flatten()).view(SHAPE)
    return float((jacobian.matvec(v) - exact).norm() / exact.norm())


def mixed_signs(size: float) -> torch.Tensor:
    """Factors 1 + size and 1 - size by turns: the errors of a gradient scaled so cancel in a sum."""
    signs = 1 - 2 * (torch.arange(SIZE) % 2).view(SHAPE).double()
    return 1 + size * signs


def vector_of_the_check(image: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The vector with which the self-check tests J', from J v."""
    return seeded_noise(image, seed + 1) + 3 * image / image.norm()


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


class TestRightModels:
    def test_pass(self, model):
        check = self_check(model.operator())
        assert (check.jacobian.mode, check.backward, check.repeat) == (FORWARD_AD, True, 0.0)
        assert check.difference < 1e-2
        assert check.adjoint < 1e-10
        assert check.sentence == PASSED == "Derivatives passed their self-check."

    def test_cost_ten_evaluations(self, model):
        before = model.denoiser.counter.evaluations
        check = self_check(model.operator())
        assert check.evaluations == model.denoiser.counter.evaluations - before <= 10

    def test_searches_are_given_the_products_of_the_check(self, model):
        """A backward product that cannot be trusted is not among them."""
        check = self_check(model.operator())
        probe, exact = check.probe, model.jacobian()
        v = probe.vector.flatten()
        assert torch.allclose(probe.image.flatten(), exact @ v)
        assert torch.allclose(probe.back.flatten(), exact.T @ vector_of_the_check(probe.image).flatten())
        before = model.denoiser.counter.evaluations
        assert torch.allclose(check.jacobian.value, model.exact())
        assert model.denoiser.counter.evaluations == before
        assert self_check(model.operator(), backward=False).probe.back is None
        assert self_check(planted(model, lambda x, d: Identity.apply(d, 1.0, 0.9))).probe.back is None

    def test_without_a_backward_pass_none_is_taken(self, model):
        check = self_check(planted(model, lambda x, d: Identity.apply(d, 1.0, 0.5)), backward=False)
        assert check.adjoint is None
        assert not check.backward
        assert check.sentence == PASSED

    def test_double_backward_can_be_asked_for(self, model):
        check = self_check(model.operator(mode=DOUBLE_BACKWARD))
        assert (check.jacobian.mode, check.backward) == (DOUBLE_BACKWARD, True)
        assert check.sentence == PASSED
        assert product_error(model, check.jacobian) < 1e-10

    def test_differences_can_be_asked_for(self, model):
        check = self_check(model.operator(mode=DIFFERENCES), backward=False)
        assert check.jacobian.mode == DIFFERENCES
        assert check.difference is None
        assert "this was asked for" in check.sentence
        assert product_error(model, check.jacobian) < 2e-2

    @pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 24), (1, 2, 1, 3, 4)])
    def test_a_plain_function_with_an_output_of_another_shape(self, shape):
        mix = torch.randn(5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 5
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        check = self_check(Jacobian(lambda points: torch.tanh(points.flatten(1) @ mix.T), x))
        assert (check.jacobian.mode, check.backward) == (FORWARD_AD, True)
        assert check.evaluations == 10
        exact = (1 - torch.tanh(mix @ x.flatten()) ** 2)[:, None] * mix
        assert check.probe.image.shape == (1, 5)
        assert torch.allclose(check.probe.image.flatten(), exact @ check.probe.vector.flatten())
        assert torch.allclose(check.probe.back.flatten(), exact.T @ vector_of_the_check(check.probe.image).flatten())

    @pytest.mark.parametrize("side", [8, 32, 128])
    def test_the_adjoint_error_does_not_depend_on_the_size_of_the_latent(self, side):
        """J' is off by a thousandth, as rounding in half precision makes it, and by as much at every size."""

        def predict(x):
            mean = x.mean(dim=(-2, -1), keepdim=True)
            return Identity.apply(0.3 * (x - mean) + mean, 1.0, 1.001)

        x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        errors = [self_check(Jacobian(predict, x), seed).adjoint for seed in range(20)]
        assert 5e-4 < (sum(error**2 for error in errors) / 20) ** 0.5 < 5e-3


class TestFaults:
    @pytest.mark.parametrize("factor", [0.0, 0.9, 1.1, -1.0])
    @pytest.mark.parametrize("backward", [True, False])
    def test_a_wrong_tangent(self, model, factor, backward):
        """The next mode is double backward, or central differences where there is to be no backward pass."""
        check = self_check(planted(model, lambda x, d: Identity.apply(d, factor, 1.0)), backward=backward)
        assert check.jacobian.mode == (DOUBLE_BACKWARD if backward else DIFFERENCES)
        said = "are taken by double backward, because" if backward else "are central differences, because"
        assert f"Forward products {said} forward AD " in check.sentence
        assert check.backward == backward
        assert product_error(model, check.jacobian) < (1e-10 if backward else 2e-2)

    def test_a_wrong_tangent_in_one_place(self, model):
        """A dropped tangent of a part of the network: fused kernels do this."""
        jacobian = planted(model, lambda x, d: torch.cat([d[:, :1], Identity.apply(d[:, 1:], 0.8, 1.0)], dim=1))
        assert self_check(jacobian).jacobian.mode == DOUBLE_BACKWARD

    def test_a_tangent_and_a_gradient_that_are_both_wrong(self, model):
        """By double backward they would agree with one another."""
        check = self_check(planted(model, lambda x, d: Identity.apply(d, 0.9, 0.9)))
        assert check.jacobian.mode == DIFFERENCES
        assert not check.backward
        assert "and double backward disagreed with central differences" in check.sentence
        assert product_error(model, check.jacobian) < 2e-2

    @pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, float("nan"), mixed_signs(0.3), mixed_signs(0.9)], ids=str)
    def test_a_wrong_adjoint(self, model, factor):
        check = self_check(planted(model, lambda x, d: Identity.apply(d, 1.0, factor)))
        assert check.jacobian.mode == FORWARD_AD
        assert not check.backward
        assert check.adjoint is None or check.adjoint > 1e-2
        assert "Backward products failed their self-check" in check.sentence

    def test_a_model_that_is_not_repeatable(self, model):
        with pytest.raises(NotRepeatableError, match="at the same input differ"):
            self_check(planted(model, lambda x, d: d + 1e-3 * torch.randn_like(d)))
        with pytest.raises(NotFiniteError, match="prediction is not a finite number"):
            self_check(planted(model, lambda x, d: d * float("nan")))

    @pytest.mark.parametrize("side", [16, 128])
    @pytest.mark.parametrize(
        ("tangent", "gradient", "mode", "backward"),
        [
            (0.0, 0.0, DIFFERENCES, False),
            (0.7, 1.0, DOUBLE_BACKWARD, True),
            (1.0, 0.0, FORWARD_AD, False),
            (1.0, 0.5, FORWARD_AD, False),
        ],
    )
    def test_the_lowest_frequencies_are_seen(self, side, tangent, gradient, mode, backward):
        """A fault in a picture's mean is one of a few among thousands of numbers, and where leading directions lie."""

        def predict(x):
            mean = x.mean(dim=(-2, -1), keepdim=True)
            return 0.5 * (x - mean) + Identity.apply(mean, tangent, gradient)

        x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
        check = self_check(Jacobian(predict, x))
        assert (check.jacobian.mode, check.backward) == (mode, backward)

    @pytest.mark.parametrize("error", [AssertionError, ValueError, TypeError, AttributeError, KeyError])
    def test_any_failure_of_code_that_has_no_derivative_is_a_reason_to_go_on(self, model, error):
        bare = without_tangent(error, None)
        check = self_check(planted(model, lambda x, d: bare(d)))
        assert (check.jacobian.mode, check.backward) == (DIFFERENCES, False)
        assert "forward AD failed" in check.sentence
        assert product_error(model, check.jacobian) < 2e-2

    def test_an_error_that_the_host_raises_is_passed_on(self, model):
        """It says something else than that there is no derivative."""

        class HostError(LatentDirectionsError):
            pass

        for gradient in (None, 1.0):
            bare = without_tangent(HostError, gradient)
            with pytest.raises(HostError):
                self_check(planted(model, lambda x, d, bare=bare: bare(d)))

    def test_a_rejected_graph_is_freed_and_its_failure_named(self, model):
        """A jvp that is missing without a word, and a backward pass that fails its check."""
        bare = without_tangent(NotImplementedError, 0.5)
        candidate = planted(model, lambda x, d: bare(d))
        check = self_check(candidate)
        assert check.jacobian.mode == DIFFERENCES
        assert "forward AD failed (NotImplementedError)" in check.sentence
        before = candidate.counter.evaluations
        candidate.rmatvec(candidate.x)
        assert candidate.counter.evaluations - before == 3  # the graph has to be built again
        json.dumps(check.report(), allow_nan=False)

    @pytest.mark.parametrize("mode", [FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES])
    def test_a_prediction_that_does_not_depend_on_the_latent(self, model, mode):
        with pytest.raises(ZeroDerivativeError, match="came out as zero"):
            self_check(planted(model, lambda x, d: torch.ones_like(x), mode=mode))

    @pytest.mark.parametrize("mode", [FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES])
    def test_no_derivative_to_be_had(self, model, mode):
        """A prediction that oscillates at every step size, with a wrong tangent on top."""
        oscillating = planted(model, lambda x, d: d + torch.sin(1e5 * Identity.apply(x, 0.0, 0.0)), mode=mode)
        with pytest.raises(NoTrustedModeError, match="No derivative of this model can be trusted") as caught:
            self_check(oscillating, backward=mode != DIFFERENCES)
        assert caught.value.asked_for is (mode == DIFFERENCES)


class TestCandidate:
    """It does not change, whatever the outcome; the trusted operator is another one at the same point."""

    CASES = {
        "right": lambda x, d: d,
        "wrong tangent": lambda x, d: Identity.apply(d, 0.9, 1.0),
        "wrong adjoint": lambda x, d: Identity.apply(d, 1.0, 0.9),
        "both wrong": lambda x, d: Identity.apply(d, 0.9, 0.9),
        "no derivative": lambda x, d: without_tangent(ValueError, None)(d),
        "bent": lambda x, d: d + 30 * (x - 0.3) ** 2,
        "not repeatable": lambda x, d: d + 1e-3 * torch.randn_like(d),
        "not finite": lambda x, d: d * float("nan"),
        "oscillating": lambda x, d: d + torch.sin(1e5 * Identity.apply(x, 0.0, 0.0)),
        "constant": lambda x, d: torch.ones_like(x),
    }
    REFUSED = ("not repeatable", "not finite", "oscillating", "constant")

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("mode", [FORWARD_AD, DOUBLE_BACKWARD, DIFFERENCES])
    @pytest.mark.parametrize("backward", [True, False])
    def test_is_left_unchanged(self, model, case, mode, backward):
        candidate = planted(model, self.CASES[case], mode=mode, difference_step=0.0123, one_sided_step=0.0321)
        before = {field.name: getattr(candidate, field.name) for field in fields(candidate)}
        point = candidate.x.clone()
        if case in self.REFUSED:
            with pytest.raises((DerivativeError, NotFiniteError)):
                self_check(candidate, backward=backward)
        else:
            check = self_check(candidate, backward=backward)
            assert check.jacobian is not candidate
            assert check.jacobian.x.data_ptr() == candidate.x.data_ptr()
            assert check.jacobian.counter is candidate.counter
        assert {field.name: getattr(candidate, field.name) for field in fields(candidate)} == before
        assert torch.equal(candidate.x, point)


class TestReport:
    def test_entries(self, model):
        check = self_check(model.operator())
        assert check.report() == {
            "repeat": 0.0,
            "difference": check.difference,
            "adjoint": check.adjoint,
            "mode": FORWARD_AD,
            "backward": True,
            "sentence": PASSED,
            "evaluations": 10,
        }

    def test_holds_no_infinities(self, model):
        json.dumps(self_check(model.operator(mode=DIFFERENCES)).report(), allow_nan=False)


class TestSteps:
    def test_the_step_of_differences_suits_the_model(self, model):
        """Rounding to three decimals needs a longer step than the default."""

        def rounded(x, d):
            return (1000 * d).round() / 1000

        check = self_check(planted(model, rounded, mode=DIFFERENCES), backward=False)
        assert check.jacobian.difference_step > DIFFERENCE_STEP
        default = replace(check.jacobian, difference_step=DIFFERENCE_STEP)
        assert product_error(model, check.jacobian) < 0.5 * product_error(model, default)

    def test_one_sided_differences_are_taken_where_they_are_near_enough(self, model):
        """Where the model bends too much, approximate products are exact ones."""
        jacobian, counter = self_check(model.operator(), backward=False).jacobian, model.denoiser.counter
        v = torch.randn(2, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        exact = (v.flatten(1) @ model.jacobian().T).view_as(v)
        before = counter.evaluations
        error = (jacobian.approximate_matvec(v) - exact).norm() / exact.norm()
        assert counter.evaluations - before == 2 * jacobian.approximate_cost == 2
        assert jacobian.approximate_mode == ONE_SIDED
        assert 1e-9 < error < 0.1
        # central differences do not see the bend
        jacobian = self_check(planted(model, lambda x, d: d + 30 * (x - model.x) ** 2), backward=False).jacobian
        assert jacobian.mode == jacobian.approximate_mode == FORWARD_AD
        before = jacobian.counter.evaluations
        assert torch.allclose(jacobian.approximate_matvec(v), exact)
        assert jacobian.counter.evaluations - before == 2 * jacobian.approximate_cost == 4


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 1, 5, 12), (1, 3, 1, 7)])
def test_a_tensor_at_every_scale(shape):
    v = at_every_scale(torch.zeros(shape), 3)
    assert v.shape == shape
    assert float(v.norm()) == pytest.approx(v.numel() ** 0.5)
    assert torch.equal(v, at_every_scale(torch.zeros(shape), 3))
    assert (v.diff(dim=-1) != 0).all()  # down to single pixels
    if min(shape[-2:]) > 1:  # of white noise it is 1 / H W in the mean
        assert float(v.mean(dim=(-2, -1)).square().mean()) * shape[-2] * shape[-1] > 3


def test_a_bug_of_this_package_is_no_failure_of_a_derivative(model):
    """Here the `with` of an operator's own code fails, for it is given no context."""
    with pytest.raises((TypeError, AttributeError), match="context manager|__enter__"):
        self_check(replace(model.operator(), differentiable=lambda backward: None))


class TestKinks:
    """A network of ReLUs changes its slope within every step of a difference."""

    @staticmethod
    def network(tangent: float = 1.0, gradient: float = 1.0) -> Jacobian:
        generator = torch.Generator().manual_seed(0)
        size, width = 64, 4096
        first = torch.randn(width, size, generator=generator).double() / size**0.5
        second = torch.randn(size, width, generator=generator).double() / width**0.5

        def function(points):
            return Identity.apply(torch.relu(points @ first.T) @ second.T, tangent, gradient)

        return Jacobian(function, torch.randn(1, size, generator=generator).double())

    def test_right_products_pass(self):
        jacobian = self.network()
        v = at_every_scale(jacobian.x, 0)
        product = jacobian.matvec(v)
        usual = min(relative_error(jacobian.difference(v, step)[0], product) for step in DIFFERENCE_STEPS)
        assert usual > AGREEMENT  # which the steps for smooth functions take for a fault
        check = self_check(jacobian)
        assert check.sentence == PASSED
        assert check.jacobian.mode == FORWARD_AD
        assert check.difference <= KINK_AGREEMENT
        assert check.backward

    @pytest.mark.parametrize("tangent", [0.97, 1.03])
    def test_wrong_products_do_not(self, tangent):
        check = self_check(self.network(tangent, tangent))
        assert check.jacobian.mode == DIFFERENCES
