"""Encode Picture: the exact return on every family and sampler, and a sentence for everything that cannot return."""

import json

import comfy.sample
import pytest
import torch
from families import CORE, Family, sd1, sd3
from model_variants import with_nan
from node_runs import DETERMINISTIC, anchored, deviation, invert, ksample, loaded, picture, sample

from latent_directions.nodes.errors import InputError, UnsupportedModelError, UnsupportedSamplerError

EXACT = 0.0
# each leaves the reference path in another way: fresh noise, corrector steps, variable order, guidance of its own
NOT_EXACT = ("euler_ancestral", "dpmpp_sde", "uni_pc", "ipndm_v", "euler_cfg_pp")


@pytest.fixture(params=CORE, ids=str)
def family(request) -> Family:
    return request.param


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_every_deterministic_sampler_returns_the_latent(family, cfg):
    test_model = loaded(family)
    encoded = invert(test_model)
    for sampler in DETERMINISTIC:
        result = sample(test_model, encoded, sampler=sampler, cfg=cfg)
        assert deviation(result, encoded.latent["samples"]) <= EXACT, sampler


def test_the_plain_model_does_not_return_the_latent(family):
    """What the anchor is for: without it, guidance and few steps end somewhere else."""
    test_model = loaded(family)
    encoded = invert(test_model)
    result = sample(test_model, encoded, model=test_model.model, cfg=4.0)
    assert deviation(result, encoded.latent["samples"]) > 1e-2


@pytest.mark.parametrize("denoise", [1.0, 0.7])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_ksampler_returns_the_latent(family, cfg, denoise):
    test_model = loaded(family)
    encoded = invert(test_model)
    for sampler in DETERMINISTIC:
        result = ksample(test_model, encoded, sampler=sampler, cfg=cfg, denoise=denoise)
        assert deviation(result, encoded.latent["samples"]) <= EXACT, sampler


@pytest.mark.parametrize("sampler", NOT_EXACT)
def test_samplers_that_leave_the_path_are_refused(family, sampler):
    test_model = loaded(family)
    encoded = invert(test_model)
    before = encoded.inversion.statistics.evaluations
    with pytest.raises(UnsupportedSamplerError, match="Use a deterministic one"):
        sample(test_model, encoded, sampler=sampler, cfg=2.0)
    assert encoded.inversion.statistics.evaluations == before  # refused before the model runs


@pytest.mark.parametrize("scheduler", ["karras", "normal", "exponential", "beta", "ddim_uniform"])
def test_schedules(family, scheduler):
    test_model = loaded(family)
    encoded = invert(test_model, scheduler=scheduler)
    sigmas = encoded.sigmas
    assert float(sigmas[0]) == pytest.approx(encoded.inversion.sigma, rel=1e-6)
    assert float(sigmas[-1]) == 0
    assert (sigmas[1:] < sigmas[:-1]).all()
    assert len(sigmas) == 6
    assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= EXACT


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_a_schedule_with_two_nearly_equal_points(name):
    """Multistep samplers magnify rounding there, which must not be taken for a move."""
    test_model = loaded(next(f for f in CORE if f.name == name))
    encoded = invert(test_model)
    first, *rest = encoded.sigmas.tolist()
    sigmas = torch.tensor([first, first * 0.9986, *rest[1:]])
    for sampler in ("lms", "deis", "res_multistep", "dpmpp_2m"):
        result = sample(test_model, encoded, sampler=sampler, cfg=4.0, sigmas=sigmas)
        assert deviation(result, encoded.latent["samples"]) <= EXACT, sampler


@pytest.mark.parametrize("steps", [1, 2, 3, 13, 40])
def test_number_of_steps(steps):
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model, steps=steps)
    assert len(encoded.sigmas) == steps + 1
    assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= EXACT


def test_batch_of_two_and_not_square(family):
    test_model = loaded(family)
    encoded = invert(test_model, picture(test_model, batch=2, size=(8, 12)))
    for sampler in ("euler", "dpmpp_2m"):
        result = sample(test_model, encoded, sampler=sampler, cfg=3.0)
        assert result.shape == encoded.latent["samples"].shape
        assert deviation(result, encoded.latent["samples"]) <= EXACT


def test_noise_mask(family):
    test_model = loaded(family)
    encoded = invert(test_model)
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 3:7] = 1
    result = sample(test_model, encoded, cfg=3.0, noise_mask=mask)
    assert deviation(result, encoded.latent["samples"]) <= EXACT


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_eps_models_start_at_sigma_max(name):
    """There ComfyUI scales the noise by sqrt(1 + sigma^2) in place of sigma."""
    test_model = loaded(next(f for f in CORE if f.name == name))
    encoded = invert(test_model, level=1.0)
    sampling = test_model.model.get_model_object("model_sampling")
    assert encoded.inversion.sigma == pytest.approx(float(sampling.sigma_max))
    for sampler in ("euler", "heun", "dpmpp_2m"):
        # x is a few hundred times as large as x0 at the start, and so is its rounding
        assert deviation(sample(test_model, encoded, sampler=sampler), encoded.latent["samples"]) <= EXACT, sampler
        assert deviation(ksample(test_model, encoded, sampler=sampler), encoded.latent["samples"]) <= EXACT, sampler


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_models_have_no_picture_left_at_level_one(name):
    test_model = loaded(next(f for f in CORE if f.name == name))
    with pytest.raises(UnsupportedModelError, match=r"nothing of the picture.*Set 'level'"):
        invert(test_model, level=1.0)


def test_seeded_noise_costs_nothing_and_returns(family):
    test_model = loaded(family)
    encoded = invert(test_model, method="seeded noise", seed=7)
    assert json.loads(encoded.report)["model_evaluations"] == 0
    expected = torch.randn(encoded.noise.noise.shape, generator=torch.Generator().manual_seed(7))
    assert torch.equal(encoded.noise.noise, expected)
    assert deviation(sample(test_model, encoded, cfg=2.0), encoded.latent["samples"]) <= EXACT


def test_inversion_costs_one_evaluation_a_step_and_one_more(family):
    encoded = invert(loaded(family), steps=5)
    assert json.loads(encoded.report)["model_evaluations"] == 6


def test_following_the_model_finds_the_noise_of_its_own_path(family):
    """With many steps the plain model, without the anchor, comes back to the picture from the inverted noise."""
    test_model = loaded(family)
    far, near = (
        deviation(sample(test_model, encoded, model=test_model.model), encoded.latent["samples"])
        for encoded in (invert(test_model, steps=n, level=0.4) for n in (4, 64))
    )
    assert near < 0.3 * far


@pytest.mark.parametrize("level", [0.0, -0.1, 1.01, float("nan")])
def test_levels_outside_the_schedule(level):
    with pytest.raises(InputError, match="'level' is .*"):
        invert(loaded(Family("sd1", sd1)), level=level)


def test_latents_that_cannot_be_inverted(family):
    test_model = loaded(family)
    nan = picture(test_model)
    nan["samples"][0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not numbers"):
        invert(test_model, nan)
    samples = picture(test_model)["samples"]
    with pytest.raises(InputError, match="video"):
        invert(test_model, {"samples": samples.unsqueeze(2).repeat(1, 1, 3, 1, 1)})
    with pytest.raises(InputError, match="channels, but the model works with"):
        invert(test_model, {"samples": samples[:, :3]})


@pytest.mark.parametrize("method", ["backward euler", "heun", "controlled flow"])
def test_predictions_that_are_not_numbers(method):
    test_model = with_nan(loaded(Family("sd3", sd3)))
    with pytest.raises(UnsupportedModelError, match="'model' predicts values that are not numbers .* higher precision"):
        invert(test_model, method=method)


def test_an_empty_latent(family):
    test_model = loaded(family)
    with pytest.raises(InputError, match="'latent' is empty"):
        invert(test_model, {"samples": torch.zeros(test_model.latent_shape)})


def test_sampling_in_two_stages(family):
    """As with two KSampler (Advanced) nodes: the second goes on from where the first stopped."""
    test_model = loaded(family)
    encoded = invert(test_model)
    push = torch.randn(encoded.noise.noise.shape, generator=torch.Generator().manual_seed(2))
    moved = anchored(encoded, push=0.3 * push)
    for model, tolerance in ((encoded.model, EXACT), (moved, 1e-4)):
        whole = ksample(test_model, encoded, model=model, steps=8, cfg=2.0)
        half = ksample(test_model, encoded, model=model, steps=8, cfg=2.0, last_step=6)
        assert deviation(half, whole) > 0.1  # there is noise left in it
        rest = sample_rest(test_model, model, half, steps=8, start_step=6)
        assert deviation(rest, whole) <= tolerance


def sample_rest(test_model, model, samples, steps, start_step):
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            torch.zeros_like(samples),
            steps,
            2.0,
            "euler",
            "simple",
            test_model.positive,
            test_model.negative,
            samples,
            disable_noise=True,
            start_step=start_step,
            force_full_denoise=True,
            disable_pbar=True,
        )


def test_sampler_given_another_latent():
    test_model = loaded(Family("sd1", sd1))
    encoded = invert(test_model)
    encoded.latent = picture(test_model, size=(8, 16))
    with pytest.raises(InputError, match="Connect the LATENT of Encode Picture"):
        ksample(test_model, encoded)


def test_the_same_noise_gives_the_same_edit_in_both_sampler_nodes(family):
    """KSampler's own noise and the points of its schedule above sigma* do not count."""
    test_model = loaded(family)
    encoded = invert(test_model)
    model = anchored(encoded, push=torch.full_like(encoded.noise.noise, 0.1))
    a = ksample(test_model, encoded, model=model, cfg=2.0)
    b = ksample(test_model, encoded, model=model, cfg=2.0, seed=99)
    assert torch.equal(a, b)
    assert deviation(a, encoded.latent["samples"]) > 1e-3


def test_small_moves_change_the_result_in_proportion(family):
    test_model = loaded(family)
    encoded = invert(test_model)
    push = torch.randn(encoded.noise.noise.shape, generator=torch.Generator().manual_seed(2))
    changes = []
    for size in (-1e-3, 1e-3, 2e-3):
        model = anchored(encoded, push=size * push)
        changes.append(sample(test_model, encoded, model=model) - encoded.latent["samples"])
    minus, plus, twice = changes
    assert plus.abs().max() > 0
    assert (plus + minus).norm() < 0.05 * plus.norm()
    assert (twice - 2 * plus).norm() < 0.05 * twice.norm()
