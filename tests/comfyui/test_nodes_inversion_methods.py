"""Every way to encode: the exact return by each, long schedules, half precision, noise levels as sigma, the report."""

import json
from types import SimpleNamespace

import comfy.cli_args
import comfy.utils
import numpy as np
import pytest
import torch
from families import CORE, Family, sd2
from model_variants import rebuilt
from more_families import MORE, chroma_radiance
from node_runs import DETERMINISTIC, deviation, find, invert, loaded, sample

from latent_directions.demo.architecture import load_demo_model
from latent_directions.demo.world import caption, draw, sample_portrait
from latent_directions.nodes.encode import CONTROLLED, FRESH, GENERATED, INVERSIONS, SEEDED, InvertImage
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.manipulate import outputs, with_slider
from latent_directions.nodes.sampling import is_flow
from latent_directions.nodes.sockets import EncodedNoise

EXACT = 0.0


@pytest.fixture(params=CORE, ids=str)
def family(request) -> Family:
    return request.param


def noise_for(test_model) -> EncodedNoise:
    return EncodedNoise(torch.randn(test_model.latent_shape, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("method", [*INVERSIONS, CONTROLLED, SEEDED, FRESH, GENERATED])
def test_every_method_returns_the_latent(family, method):
    test_model = loaded(family)
    if method == CONTROLLED and not is_flow(test_model.model):
        with pytest.raises(InputError, match="flow models"):
            invert(test_model, method=method)
        return
    encoded = invert(test_model, method=method, seeds=3, noise=noise_for(test_model))
    for sampler in ("euler", "dpmpp_2m", "heun"):
        for cfg in (1.0, 4.0):
            result = sample(test_model, encoded, sampler=sampler, cfg=cfg)
            assert deviation(result, encoded.latent["samples"]) <= EXACT, (sampler, cfg)


@pytest.mark.parametrize("other", [Family("sd2", sd2), *MORE], ids=str)
def test_every_other_family_returns_by_every_method(other):
    test_model = loaded(other)
    moves = []
    for method in (*INVERSIONS, CONTROLLED, SEEDED, FRESH, GENERATED):
        if method == CONTROLLED and not is_flow(test_model.model):
            continue
        default = method == next(iter(INVERSIONS))
        encoded = invert(test_model, method=method, steps=5 if default else 3, seeds=2, noise=noise_for(test_model))
        for sampler in DETERMINISTIC if default else ("dpmpp_2m",):
            result = sample(test_model, encoded, sampler=sampler, cfg=4.0)
            assert deviation(result, encoded.latent["samples"]) <= EXACT, (method, sampler)
        plain = sample(test_model, encoded, sampler="euler", cfg=4.0, model=test_model.model)
        moves.append(deviation(plain, encoded.latent["samples"]))
    assert max(moves) > 1e-2  # without the anchor it is another picture


def test_a_direction_in_pixel_space_after_a_sampling_run():
    """Chroma Radiance keeps a table made in the first run, which ComfyUI does in inference mode."""
    test_model = loaded(Family("chroma_radiance", chroma_radiance))
    encoded = invert(test_model)
    sample(test_model, encoded)
    directions, report = find(test_model, encoded.inversion, "LOCO")
    assert len(directions) == 2
    assert "self-check" in report
    model, positive, noise = outputs(with_slider(encoded.inversion, directions[0], 1.0))
    edited = sample(test_model, encoded, model=model, positive=positive, noise=noise)
    assert deviation(edited, encoded.latent["samples"]) > 1e-3


@pytest.fixture(scope="module", params=CORE, ids=str)
def in_200_steps(request) -> tuple:
    """A model and a picture encoded with 200 steps; all samplers share its predictions on the reference path."""
    test_model = loaded(request.param)
    return test_model, invert(test_model, steps=200, method=SEEDED)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_schedules_of_200_steps_return(in_200_steps, sampler):
    test_model, encoded = in_200_steps
    assert len(encoded.sigmas) == 201
    assert deviation(sample(test_model, encoded, sampler=sampler), encoded.latent["samples"]) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half", [CORE[0], CORE[2]], ids=str)
def test_half_precision_returns(half, dtype):
    test_model = rebuilt(loaded(half), dtype)
    for method in ("backward euler", SEEDED):
        encoded = invert(test_model, method=method)
        for sampler in DETERMINISTIC:
            result = sample(test_model, encoded, sampler=sampler, cfg=4.0)
            assert deviation(result, encoded.latent["samples"]) <= EXACT, (method, sampler)


def test_noise_level_as_sigma(family):
    test_model = loaded(family)
    sampling = test_model.model.get_model_object("model_sampling")
    lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
    for sigma in (lowest, 0.6, 0.99 * highest):
        encoded = invert(test_model, sigma=sigma, method=SEEDED)
        assert encoded.inversion.sigma == pytest.approx(sigma)
        assert float(encoded.sigmas[0]) == pytest.approx(sigma)
        assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= EXACT
    for sigma in (highest * 1.01, lowest / 2):
        with pytest.raises(InputError, match="outside this model's schedule"):
            invert(test_model, sigma=sigma)


def test_guidance_while_inverting_needs_a_negative_prompt(family):
    test_model = loaded(family)
    with pytest.raises(InputError, match="'negative'"):
        invert(test_model, guidance=3.0)
    plain, guided = invert(test_model), invert(test_model, guidance=3.0, negative=test_model.negative)
    assert json.loads(guided.report)["model_evaluations"] == 2 * json.loads(plain.report)["model_evaluations"]
    assert deviation(plain.noise.noise, guided.noise.noise) > 1e-3
    assert deviation(sample(test_model, guided), guided.latent["samples"]) <= EXACT


def test_a_sampling_run_is_encoded_by_its_own_noise(family):
    test_model = loaded(family)
    with pytest.raises(InputError, match="'noise'"):
        invert(test_model, method=GENERATED)
    noise = noise_for(test_model)
    encoded = invert(test_model, method=GENERATED, noise=noise)
    assert torch.equal(encoded.noise.noise, noise.noise)
    assert json.loads(encoded.report)["model_evaluations"] == 0


def test_averaging_over_seeds_costs_that_many_evaluations(family):
    test_model = loaded(family)
    for method in (SEEDED, FRESH):
        one, three = (invert(test_model, method=method, seeds=n) for n in (1, 3))
        (direction,), _ = find(test_model, one.inversion, "DDS")
        spent = []
        for encoded in (one, three):
            model, positive, noise = outputs(with_slider(encoded.inversion, direction, 1.0))
            sample(test_model, encoded, model=model, positive=positive, noise=noise)
            spent.append(encoded.inversion.statistics.last_evaluations)
        assert spent[1] == 3 * spent[0]


def test_slider_positions_share_the_reference(family):
    """The first run pays for the reference path, further strengths only for their own evaluations."""
    test_model = loaded(family)
    encoded = invert(test_model, steps=5)
    (direction,), _ = find(test_model, encoded.inversion, "DDS")
    spent = []
    for strength in (0.5, -1.0, 2.0):
        model, positive, noise = outputs(with_slider(encoded.inversion, direction, strength))
        sample(test_model, encoded, model=model, positive=positive, noise=noise, cfg=4.0)
        spent.append(encoded.inversion.statistics.last_evaluations)
    # with guidance 4 a step asks for the picture's prompt, source and target, and once for the negative; the first run
    # asks for the picture's prompt and the negative on the reference path too
    assert spent == [30, 20, 20]
    assert encoded.inversion.cache.bytes == 5 * encoded.noise.noise.nbytes


def test_refining_the_backward_step_finds_the_sampled_noise_better(family):
    """Euler sampling from the noise that was found, by the plain model, ends nearer to the picture."""
    test_model = loaded(family)
    errors = {}
    for method in ("euler", "backward euler", "backward euler, refined"):
        encoded = invert(test_model, method=method, steps=12)
        result = sample(test_model, encoded, model=test_model.model)
        errors[method] = float((result - encoded.latent["samples"]).norm())
    assert errors["backward euler, refined"] < errors["backward euler"] < errors["euler"]


def test_the_report_with_a_vae_says_how_well_the_picture_returns():
    portrait = sample_portrait(np.random.default_rng(3))
    with torch.inference_mode():
        model, clip, vae = load_demo_model()
        latent = {"samples": vae.encode(torch.from_numpy(draw(portrait).copy())[None].float() / 255)}
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(caption(portrait)))
        report = json.loads(
            InvertImage.execute(model, positive, latent, level=0.5, method="backward euler", vae=vae).result[5]
        )
    assert report["zero_strength_max_abs_diff"] <= EXACT
    assert report["psnr_db_with_anchor"] is None or report["psnr_db_with_anchor"] > 100
    assert 20 < report["psnr_db_without_anchor"] < 100
    assert len(report["drift_per_step"]) == report["steps"]


def test_previews_while_it_inverts(monkeypatch):
    """Each evaluation moves ComfyUI's progress bar, and each step sends a picture of the model's prediction."""
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: seen.append(args))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    invert(loaded(CORE[2]), steps=4)
    assert sorted({(done, total) for done, total, _ in seen}) == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    shown = [(done, preview[1].size) for done, _, preview in seen if preview is not None]
    assert shown == [(2, (8, 8)), (3, (8, 8)), (4, (8, 8)), (5, (8, 8))]  # the first step takes two


def test_small_strengths_move_in_proportion(family):
    test_model = loaded(family)
    encoded = invert(test_model)
    (direction, *_), _ = find(test_model, encoded.inversion, "HSDS")
    change = {}
    for strength in (0.001, 0.01):
        model, positive, noise = outputs(with_slider(encoded.inversion, direction, strength))
        moved = sample(test_model, encoded, model=model, positive=positive, noise=noise)
        change[strength] = moved - encoded.latent["samples"]
    assert change[0.01].norm() > 0
    assert (change[0.01] - 10 * change[0.001]).norm() < 0.3 * change[0.01].norm()


def test_small_strengths_stay_near_the_picture():
    """At strength 0.01 the picture is as near to the drawing as the VAE's own; the latent moves in proportion."""
    portrait = sample_portrait(np.random.default_rng(3))
    image = torch.from_numpy(draw(portrait).copy())[None].float() / 255
    with torch.inference_mode():
        model, clip, vae = load_demo_model()
        latent = {"samples": vae.encode(image)}
        source, plain = caption(portrait, attributes=["smile"]), caption(portrait, attributes=[])
        target = f"{plain}, smiling" if "smiling" not in source else f"{plain}, sad"
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(source))
        test_model = SimpleNamespace(model=model, positive=positive, negative=[])
        encoded = invert(test_model, latent, level=0.5)
        directions = FindDirections.execute(model, encoded.inversion, "HSDS", source, target, clip=clip).result[0]
        moved = {}
        for strength in (0.001, 0.01):
            edited, prompt, noise = outputs(with_slider(encoded.inversion, directions[0], strength))
            moved[strength] = sample(test_model, encoded, model=edited, positive=prompt, noise=noise)
    change = {s: float((x - latent["samples"]).norm()) for s, x in moved.items()}
    assert change[0.01] / change[0.001] == pytest.approx(10, rel=0.3)

    def psnr(samples):
        return -10 * float((vae.decode(samples).clamp(0, 1) - image).square().mean().log10())

    with torch.inference_mode():
        assert abs(psnr(moved[0.01]) - psnr(latent["samples"])) <= 0.5
