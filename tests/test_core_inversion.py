"""Inversion along the ODE of a Gaussian, whose paths are known exactly."""

import pytest
import torch

from latent_directions.core.denoiser import Denoiser, EvaluationCounter, linear_scale, sigma_at_level
from latent_directions.core.errors import InputError, UnsupportedModelError
from latent_directions.core.inversion import INVERSIONS, controlled_inversion, invert_ode, seeded_noise

SCALES = {"eps": lambda sigma: (1.0, sigma), "flow": lambda sigma: (1.0 - sigma, sigma)}
TOP = {"eps": 2.0, "flow": 0.8}
ORDERS = {"backward euler": 1, "backward euler, refined": 1, "euler": 1, "heun": 2, "midpoint": 2}
MEAN, DEVIATION = 0.4, 0.7


def gaussian(kind: str) -> Denoiser:
    """x0 ~ N(MEAN, DEVIATION^2) in every cell: D = m + a s^2 (x - a m) / (a^2 s^2 + b^2)."""
    counter = EvaluationCounter()

    def predict(x, sigma, prompt, guidance):
        counter.forward(len(x))
        a, b = SCALES[kind](sigma)
        return MEAN + a * DEVIATION**2 * (x - a * MEAN) / (a**2 * DEVIATION**2 + b**2)

    return Denoiser(predict, SCALES[kind], counter)


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
        float((invert_ode(gaussian(kind), x0, levels(kind, n), method=method) - end).norm() / end.norm())
        for n in (16, 32, 64)
    ]
    assert errors[-1] < (0.03 if ORDERS[method] == 1 else 0.003)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine < (0.75 if ORDERS[method] == 1 else 0.35) * coarse


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("method", INVERSIONS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_cost_and_callbacks(kind, method, steps):
    denoiser, seen = gaussian(kind), []
    x = invert_ode(denoiser, picture(), levels(kind, steps), method=method, on_step=lambda *a: seen.append(a))
    assert torch.isfinite(x).all()
    assert denoiser.counter.forwards == 2 + (steps - 1) * INVERSIONS[method].evaluations
    assert [(step, total) for step, total, _ in seen] == [(i + 1, steps) for i in range(steps)]
    assert all(prediction.shape == x.shape for *_, prediction in seen)


@pytest.mark.parametrize("kind", SCALES)
def test_refined_backward_euler_is_undone_by_euler(kind):
    """Each step solves Euler's sampling equation, so plain Euler sampling comes back; explicit inversion does not."""
    x0, sigmas = picture(), levels(kind, 6)

    def back(x):
        for sigma, lower in zip(sigmas[::-1], [*sigmas[-2::-1], 0.0], strict=True):
            x = x + (lower - sigma) * (x - denoiser(x, sigma)) / sigma
        return float((x - x0).abs().max())

    denoiser = gaussian(kind)
    explicit, once, refined = (
        back(invert_ode(denoiser, x0, sigmas, method=m)) for m in ("euler", "backward euler", "backward euler, refined")
    )
    assert refined < 0.5 * once < 0.5 * explicit


def test_controlled_inversion_between_the_path_and_the_noise():
    x0, sigmas = picture(), levels("flow", 8)
    noise = seeded_noise(x0, 3)
    denoiser = gaussian("flow")
    free = controlled_inversion(denoiser, x0, sigmas, noise, control=0.0)
    assert torch.allclose(free, invert_ode(denoiser, x0, sigmas, method="euler"))
    assert denoiser.counter.forwards == 2 * (2 + 7)
    bound = controlled_inversion(denoiser, x0, sigmas, noise, control=1.0)
    first = invert_ode(denoiser, x0, sigmas[:1])
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
        lambda: invert_ode(denoiser, x0, levels("flow", 3)),
        lambda: controlled_inversion(denoiser, x0, levels("flow", 3), torch.zeros_like(x0)),
    ):
        with pytest.raises(InputError, match="not numbers"):
            call()
    assert denoiser.counter.forwards == 0


def test_seeded_noise():
    x0 = picture()
    assert torch.equal(seeded_noise(x0, 1), seeded_noise(x0, 1))
    assert not torch.equal(seeded_noise(x0, 1), seeded_noise(x0, 2))
    assert seeded_noise(x0, 1).dtype == torch.float64
    assert seeded_noise(x0.half(), 2**64 - 1).dtype == torch.float16


@pytest.mark.parametrize("kind", SCALES)
def test_noise_of_undoes_noised(kind):
    denoiser, x0 = gaussian(kind), picture()
    noise = seeded_noise(x0, 5)
    assert torch.allclose(denoiser.noise_of(denoiser.noised(x0, noise, 0.6), x0, 0.6), noise)


class TestScale:
    @pytest.mark.parametrize("kind", SCALES)
    def test_is_read_from_the_model(self, kind):
        def noise_scaling(sigma, noise, latent):
            a, b = SCALES[kind](sigma)
            return a * latent + b * noise

        assert linear_scale(noise_scaling, 0.3) == pytest.approx(SCALES[kind](0.3))

    def test_a_model_that_scales_in_place(self):
        assert linear_scale(lambda s, n, x: n.mul_(s).add_(x), 0.5) == pytest.approx((1.0, 0.5))

    @pytest.mark.parametrize(
        "other", [lambda s, n, x: x + s * n + 0.1, lambda s, n, x: x + s * n * x, lambda s, n, x: (x + s * n) ** 2]
    )
    def test_other_forms_are_refused(self, other):
        with pytest.raises(UnsupportedModelError, match="does not noise a picture as 'picture \\+ noise'"):
            linear_scale(other, 0.5)

    @pytest.mark.parametrize(("sigma", "left"), [(1.0, "nothing of the picture"), (0.0, "no noise")])
    def test_nothing_left(self, sigma, left):
        with pytest.raises(UnsupportedModelError, match=left):
            linear_scale(lambda s, n, x: (1 - s) * x + s * n, sigma)


class TestLevel:
    def test_share_of_the_schedule_and_its_bounds(self):
        def percent_to_sigma(percent):
            return 10 * (1 - percent)

        assert sigma_at_level(percent_to_sigma, 0.7, 0.5, 9.0) == pytest.approx(7)
        assert sigma_at_level(percent_to_sigma, 1.0, 0.5, 9.0) == 9.0
        assert sigma_at_level(percent_to_sigma, 0.01, 0.5, 9.0) == 0.5

    @pytest.mark.parametrize("level", [0.0, -1.0, 1.0001, float("nan"), float("inf")])
    def test_outside(self, level):
        with pytest.raises(InputError, match="outside the schedule"):
            sigma_at_level(lambda p: 1 - p, level, 0.0, 1.0)
