"""The small models really are models: deterministic, and dependent on the latent, the noise level and the prompt."""

import comfy.samplers
import pytest
import torch
from families import CORE, MANY, Family, TestModel


class Recorder(comfy.samplers.Sampler):
    """A sampler that evaluates the denoised prediction at given (latent, sigma) pairs and keeps the results."""

    def __init__(self, points: list[tuple[torch.Tensor, float]]):
        self.points = points
        self.results: list[torch.Tensor] = []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        """Fill `results`; the noise itself is handed back, unused."""
        for x, sigma in self.points:
            self.results.append(model_wrap(x, torch.full((len(x),), sigma), **extra_args))
        return noise


def denoise(test_model: TestModel, points: list, positive: list, cfg: float = 1.0) -> list[torch.Tensor]:
    guider = comfy.samplers.CFGGuider(test_model.model)
    guider.set_conds(positive, test_model.negative)
    guider.set_cfg(cfg)
    recorder = Recorder(points)
    zeros = torch.zeros(test_model.latent_shape)
    with torch.inference_mode():
        guider.sample(zeros, zeros, recorder, torch.tensor([test_model.sigma, 0.0]), disable_pbar=True, seed=0)
    return recorder.results


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(params=MANY, ids=str)
def family(request) -> Family:
    return request.param


def test_same_seed_same_prediction(family):
    first, second = family.build(), family.build()
    x = first.latent()
    a, again = denoise(first, [(x, first.sigma)] * 2, first.positive)
    (b,) = denoise(second, [(x, second.sigma)], second.positive)
    assert torch.equal(a, again)
    assert torch.equal(a, b)


def test_prediction_depends_on_latent_sigma_and_prompt(family):
    test_model = family.build()
    x, sigma = test_model.latent(), test_model.sigma
    points = [(x, sigma), (test_model.latent(seed=1), sigma), (x, 0.8 * sigma)]
    here, elsewhere, lower = denoise(test_model, points, test_model.positive)
    (other_prompt,) = denoise(test_model, points[:1], test_model.negative)
    (guided,) = denoise(test_model, points[:1], test_model.positive, cfg=4.0)
    assert torch.isfinite(here).all()
    assert relative(elsewhere, here) > 0.1
    for changed in (lower, other_prompt, guided):
        assert relative(changed, here) > 1e-3


def test_network_adds_to_the_jacobian(family):
    """x itself is part of every denoised prediction: the change of the network's output must be visible beside it."""
    test_model = family.build()
    x, sigma = test_model.latent(), test_model.sigma
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    step = 1e-2 * sigma
    plus, minus = denoise(test_model, [(x + step * v, sigma), (x - step * v, sigma)], test_model.positive)
    jv = (plus - minus) / (2 * step)
    along_v = (jv * v).sum() / (v * v).sum() * v
    assert (jv - along_v).norm() > 0.05 * v.norm()


def test_euler_samples_are_finite(family):
    test_model = family.build()
    guider = comfy.samplers.CFGGuider(test_model.model)
    guider.set_conds(test_model.positive, test_model.negative)
    guider.set_cfg(3.0)
    sampling = test_model.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 3)
    noise = torch.randn(test_model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        samples = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)
    assert samples.shape == test_model.latent_shape
    assert torch.isfinite(samples).all()


def test_core_families_come_first():
    assert [family.name for family in CORE] == ["sd1", "sdxl", "sd3", "flux"]
    assert MANY[: len(CORE)] == CORE
