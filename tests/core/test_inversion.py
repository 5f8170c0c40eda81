"""Inversion along the ODE of a Gaussian, whose paths are known exactly, and of the mixtures."""

import pytest
import torch
from analytic import SCALES, SHAPE, analytic, ode_step, sample_euler

from latent_directions.core.anchor import AnchoredPrediction, NoisePaths
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import NotFiniteError
from latent_directions.core.inversion import INVERSIONS, controlled_inversion, invert, seeded_noise
from latent_directions.core.methods import METHODS
from latent_directions.core.operators import prediction_jacobian
from latent_directions.core.search import Search, Settings

TOP = {"eps": 2.0, "flow": 0.8, "vp": 2.0}
ORDERS = {"backward euler": 1, "backward euler, refined": 1, "euler": 1, "heun": 2, "midpoint": 2}
MEAN, DEVIATION = 0.4, 0.7


def gaussian(kind: str) -> Denoiser:
    """x0 ~ N(MEAN, DEVIATION^2) in every cell: D = m + a s^2 (x - a m) / (a^2 s^2 + b^2)."""

    def predict(x, sigma):
        a, b = SCALES[kind](sigma)
        return MEAN + a * DEVIATION**2 * (x - a * MEAN) / (a**2 * DEVIATION**2 + b**2)

    return Denoiser(predict, SCALES[kind])


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(kind: str, x0: torch.Tensor, sigma: float) -> torch.Tensor:
    """The ODE's solution: x = a m + (x0 - m) sqrt(a^2 s^2 + b^2) / s."""
    a, b = SCALES[kind](sigma)
    return a * MEAN + (x0 - MEAN) * (a**2 * DEVIATION**2 + b**2) ** 0.5 / DEVIATION


def levels(kind: str, steps: int) -> list[float]:
    return [TOP[kind] * (i + 1) / steps for i in range(steps)]


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("method", INVERSIONS)
def test_converges_to_the_exact_path(kind, method):
    x0 = picture()
    end = exact(kind, x0, TOP[kind])
    errors = [
        float((invert(gaussian(kind), x0, levels(kind, n), method=method) - end).norm() / end.norm())
        for n in (16, 32, 64)
    ]
    assert errors[-1] < (0.03 if ORDERS[method] == 1 else 0.003)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine < (0.75 if ORDERS[method] == 1 else 0.35) * coarse


def ode_solution(model, x: torch.Tensor, start: float, end: float, steps: int = 3000) -> torch.Tensor:
    """Euler's method with many steps on the probability flow ODE (Song et al. 2021), from the exact score.

    dx/dsigma = f x - g^2 score / 2 with f = a'/a, g^2 = 2 b b' - 2 f b^2 and score = (a D - x) / b^2. Two runs, one of
    half the steps, are extrapolated.
    """
    scale, mixture = model.denoiser.scale, model.prompts["source"]

    def run(count: int) -> torch.Tensor:
        point, width = x, (end - start) / count
        for i in range(count):
            sigma, h = start + i * width, 1e-5
            a, b = scale(sigma)
            ahead, behind = scale(sigma + h), scale(sigma - h)
            da, db = ((p - q) / (2 * h) for p, q in zip(ahead, behind, strict=True))
            f = da / a
            score = (a * mixture.prediction(point.flatten(1), a, b).view_as(point) - point) / b**2
            point = point + width * (f * point - (b * db - f * b**2) * score)
        return point

    return 2 * run(steps) - run(steps // 2)


@pytest.mark.parametrize("kind", SCALES)
def test_steps_have_their_order_on_the_mixtures(kind):
    """From the same point at the first level, against many small steps along the model's ODE."""
    model = analytic(kind)
    top = model.sigma
    bottom = 0.3 * top
    end = ode_solution(model, invert(model.denoiser, model.x0, [bottom]), bottom, top)
    for method, order in ORDERS.items():
        errors = []
        for steps in (10, 20, 40):
            sigmas = [bottom + (top - bottom) * i / steps for i in range(steps + 1)]
            found = invert(model.denoiser, model.x0, sigmas, method=method)
            errors.append(float((found - end).norm() / end.norm()))
        for coarse, fine in zip(errors, errors[1:], strict=False):
            assert coarse / fine > 0.8 * 2**order, (method, errors)


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("method", INVERSIONS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_cost_and_callbacks(kind, method, steps):
    denoiser, seen = gaussian(kind), []
    x = invert(denoiser, picture(), levels(kind, steps), method=method, on_step=lambda *a: seen.append(a))
    assert torch.isfinite(x).all()
    assert denoiser.counter.forwards == 2 + (steps - 1) * INVERSIONS[method].evaluations
    assert [(step, total) for step, total, _ in seen] == [(i + 1, steps) for i in range(steps)]
    assert all(prediction.shape == x.shape for *_, prediction in seen)


class TestSteps:
    """One step of each method against its formula."""

    @pytest.mark.parametrize("kind", ["eps", "flow"])
    def test_as_steps_of_the_velocity(self, kind):
        """x + (sigma_up - sigma) v with v = (x - D) / sigma."""
        denoiser, x0 = gaussian(kind), picture()
        (sigma, up) = levels(kind, 2)
        width, middle = up - sigma, (sigma + up) / 2

        def v(x, level):
            return (x - denoiser(x, level)) / level

        def step(method):
            return invert(denoiser, x0, [sigma, up], method=method)

        first_guess = x0 + sigma * v(x0, sigma)
        before = v(first_guess, sigma)
        x = x0 + sigma * before
        assert torch.allclose(invert(denoiser, x0, [sigma]), x, atol=1e-12)
        assert torch.allclose(step("euler"), x + width * (x - denoiser(x, sigma)) / sigma, atol=1e-12)
        heun = x + width * (v(x, sigma) + v(x + width * v(x, sigma), up)) / 2
        assert torch.allclose(step("heun"), heun, atol=1e-12)
        midpoint = x + width * v(x + (middle - sigma) * v(x, sigma), middle)
        assert torch.allclose(step("midpoint"), midpoint, atol=1e-12)
        backward = x + width * v(x + width * before, up)
        assert torch.allclose(step("backward euler"), backward, atol=1e-12)
        for _ in range(2):
            backward = x + width * v(backward, up)
        assert torch.allclose(step("backward euler, refined"), backward, atol=1e-12)

    @pytest.mark.parametrize("kind", SCALES)
    def test_euler_is_the_ddim_step(self, kind):
        """r x + g D, r = b_j / b_i, g = a_j - r a_i: picture and noise as the model sees them, in other amounts."""
        denoiser, x0 = gaussian(kind), picture()
        (sigma, up), (a_up, b_up) = levels(kind, 2), SCALES[kind](levels(kind, 2)[1])
        x = invert(denoiser, x0, [sigma])
        stepped = invert(denoiser, x0, [sigma, up], method="euler")
        denoised = denoiser(x, sigma)
        assert torch.allclose(stepped, a_up * denoised + b_up * denoiser.noise_of(x, denoised, sigma), atol=1e-12)
        assert torch.allclose(stepped, ode_step(SCALES[kind], x, denoised, sigma, up), atol=1e-12)

    @pytest.mark.parametrize("kind", SCALES)
    def test_the_first_step_solves_the_last_sampling_step(self, kind):
        """x0 = D(x_1), where two corrections bring x_1 near."""
        denoiser, x0 = gaussian(kind), picture()
        before, after = ((denoiser(x, 0.1) - x0).norm() for x in (x0, invert(denoiser, x0, [0.1])))
        assert after < 0.02 * before


class TestSampledBack:
    @pytest.mark.parametrize("kind", SCALES)
    def test_refined_backward_euler_is_undone_by_euler(self, kind):
        """Each step solves Euler's sampling equation, so Euler sampling comes back; explicit inversion does not."""
        x0, sigmas, denoiser = picture(), levels(kind, 6), gaussian(kind)

        def error(method):
            x = invert(denoiser, x0, sigmas, method=method)
            return float((sample_euler(SCALES[kind], x, [*sigmas[::-1], 0.0], denoiser) - x0).abs().max())

        explicit, once, refined = (error(m) for m in ("euler", "backward euler", "backward euler, refined"))
        assert refined < 0.5 * once < 0.5 * explicit

    @pytest.mark.parametrize("kind", SCALES)
    def test_a_picture_of_the_mixtures(self, kind):
        """Little is left of the error, though the picture has moved far in between."""
        model = analytic(kind)
        sigmas = [model.sigma * (i + 1) / 40 for i in range(40)]
        x = invert(model.denoiser, model.x0, sigmas, method="backward euler, refined")
        back = sample_euler(SCALES[kind], x, [*sigmas[::-1], 0.0], model.denoiser)
        assert (back - model.x0).norm() < 5e-3 * model.x0.norm()
        assert (x - model.x0).norm() > 0.2 * model.x0.norm()


def test_prompt_and_guidance_are_those_of_the_predictions():
    model = analytic("flow")
    sigmas = [0.2, 0.4, 0.6]
    guided = Denoiser(lambda x, sigma: model.denoiser(x, sigma, "target", 3.0), SCALES["flow"])
    found = invert(model.denoiser, model.x0, sigmas, prompt="target", guidance=3.0)
    assert torch.equal(found, invert(guided, model.x0, sigmas))
    assert not torch.allclose(found, invert(model.denoiser, model.x0, sigmas), atol=1e-2)


def test_controlled_inversion_between_the_path_and_the_noise():
    x0, sigmas = picture(), levels("flow", 8)
    noise = seeded_noise(x0, 3)
    denoiser = gaussian("flow")
    free = controlled_inversion(denoiser, x0, sigmas, noise, control=0.0)
    assert torch.allclose(free, invert(denoiser, x0, sigmas, method="euler"))
    assert denoiser.counter.forwards == 2 * (2 + 7)
    bound = controlled_inversion(denoiser, x0, sigmas, noise, control=1.0)
    first = invert(denoiser, x0, sigmas[:1])
    # the straight line from the first point to the noise at sigma = 1
    line = first + (sigmas[-1] - sigmas[0]) * (noise - first) / (1 - sigmas[0])
    assert torch.allclose(bound, line)
    half = controlled_inversion(denoiser, x0, sigmas, noise, control=0.5)
    assert (half - line).norm() < (free - line).norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite(value):
    x0 = picture()
    x0[1, 0, 2, 2] = value
    denoiser = gaussian("flow")
    for call in (
        lambda: invert(denoiser, x0, levels("flow", 3)),
        lambda: controlled_inversion(denoiser, x0, levels("flow", 3), torch.zeros_like(x0)),
    ):
        with pytest.raises(NotFiniteError, match="not numbers"):
            call()
    assert denoiser.counter.forwards == 0


def test_seeded_noise():
    x0 = picture()
    assert torch.equal(seeded_noise(x0, 1), seeded_noise(x0, 1))
    assert not torch.equal(seeded_noise(x0, 1), seeded_noise(x0, 2))
    assert seeded_noise(x0, 1).dtype == torch.float64
    assert seeded_noise(x0.half(), 2**64 - 1).dtype == torch.float16


def test_weights_that_ask_for_gradients_leave_no_graph_behind():
    """A library user's network may have parameters with gradients; only backward products need a graph."""
    weight = torch.nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64))
    denoiser = Denoiser(lambda x, sigma: weight * torch.tanh(x), SCALES["vp"])
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = invert(denoiser, x0, [0.2, 0.6, 1.0])
    assert not x.requires_grad
    for derivatives in ("automatic", "forward only", "central differences"):
        search = Search(denoiser, x, 1.0, None, Settings(count=2, derivatives=derivatives))
        for move in METHODS["LOCO"].run(search):
            assert not move.vector.requires_grad
    anchored = AnchoredPrediction(x0, NoisePaths(denoiser.noise_of(x, x0, 1.0)), denoiser.noised)
    assert not anchored(x + 0.1, 1.0, denoiser.predictions).requires_grad
    jacobian = prediction_jacobian(denoiser, x, 1.0)
    assert not any(t.requires_grad for t in (jacobian.value, jacobian.matvec(x), jacobian.rmatvec(x)))
