"""A sampling run on an anchored model: what is refused and what is not, step caches, and what Edit Report says."""

import json
import logging

import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from families import Family, sd3
from model_variants import STEP_CACHES
from node_runs import anchored, deviation, find, invert, loaded, sample
from PIL import Image

from latent_directions.core.anchor import NoisePaths
from latent_directions.core.contact_sheet import label_height
from latent_directions.nodes.demo_model import DemoPortrait, LoadDemoModel
from latent_directions.nodes.derivatives import OTHER_ATTENTION
from latent_directions.nodes.encode import InvertImage
from latent_directions.nodes.errors import UnsupportedSamplerError
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.inspect import EditReport, PreviewDirections
from latent_directions.nodes.manipulate import DirectionSlider


@pytest.fixture
def small():
    test_model = loaded(Family("sd3", sd3))
    return test_model, invert(test_model)


def edit_report(encoded, samples) -> dict:
    with torch.inference_mode():
        latent = {"samples": samples}
        passed, report = EditReport.execute(encoded.inversion, latent).args
    assert passed is latent
    return json.loads(report)


def slide(encoded, directions, strength):
    with torch.inference_mode():
        model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, directions, 0, strength).args
    return {"model": model, "positive": positive, "noise": noise}


def cached(model, name):
    with torch.inference_mode():
        return STEP_CACHES[name].execute(model, 3.0, 0.0, 1.0, False).args[0]


class TestEditReport:
    def test_strength_zero(self, small):
        test_model, encoded = small
        report = edit_report(encoded, sample(test_model, encoded, cfg=2.0))
        assert "is the encoded picture" in report["summary"]
        assert report["max_abs_diff"] <= 1e-5 * float(encoded.latent["samples"].abs().max())
        assert report["return_error_at_strength_0"] <= 1e-6
        assert "remarks" not in report

    def test_an_edit(self, small):
        test_model, encoded = small
        directions, _ = find(test_model, encoded.inversion, "text")
        sample(test_model, encoded)
        result = sample(test_model, encoded, **slide(encoded, directions, 1.0))
        report = edit_report(encoded, result)
        assert "was changed by" in report["summary"]
        assert "gave the picture back" in report["summary"]
        assert report["max_abs_diff"] == pytest.approx(float((result - encoded.latent["samples"]).abs().max()))
        later = len(encoded.sigmas) - 2  # the steps after the first, at which nothing has moved yet
        assert report["sampling_runs"] == 2
        # the words, then at every later step the words and the response; nothing at strength 0
        assert report["model_evaluations"] == report["model_evaluations_of_all_runs"] == 2 + later * (2 + 2)
        assert 0 < report["seconds"] < report["seconds_of_all_runs"]
        assert f"{2 + later * 4} model evaluations" in report["summary"]
        result = sample(test_model, encoded, **slide(encoded, directions, 0.5))
        # the reference predictions of one run serve the next
        assert edit_report(encoded, result)["model_evaluations"] == later * 3
        assert report["peak_megabytes"] is None or encoded.inversion.source_model.load_device.type == "cuda"

    def test_before_any_run(self, small):
        _, encoded = small
        report = edit_report(encoded, encoded.latent["samples"])
        assert "not been sampled with yet" in report["summary"]
        assert report["return_error_at_strength_0"] is None

    def test_a_failed_run(self, small):
        _, encoded = small
        report = edit_report(encoded, torch.full_like(encoded.latent["samples"], torch.nan))
        assert "not numbers" in report["summary"]
        assert report["max_abs_diff"] is None


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_the_middle_of_a_contact_sheet_is_the_picture(strength):
    with torch.inference_mode():
        model, clip, vae = LoadDemoModel.execute().args
        portrait, *_, caption = DemoPortrait.execute(3).args
        latent = {"samples": vae.encode(portrait)}
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
        inversion = InvertImage.execute(model, positive, latent, steps=3).args[4]
        words = {"source": "a person, sad", "target": "a person, smiling", "clip": clip}
        directions = FindDirections.execute(model, inversion, "text", **words).args[0]
        sheet, report = PreviewDirections.execute(inversion, directions, vae, strength, 7, 3).args  # B H W C
        picture = vae.decode(latent["samples"])[0].clamp(0, 1)  # H W C
    report = json.loads(report)
    assert report["pictures"] == 7
    assert inversion.statistics.runs == 0  # those are of the sampler, for Edit Report
    # no evaluation in the middle; source, target and the picture's own prompt, the first step and the way back once
    assert report["model_evaluations"] == 6 * 2 * 3 + 2 + 2
    assert report["seconds"] > 0
    assert report["peak_megabytes"] is None  # no graphics card
    side = sheet.shape[2] // 7
    cells = (sheet[0, label_height(side) :] * 255).round().split(side, dim=1)
    drawn = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    expected = torch.from_numpy(np.array(drawn.resize((side, side), Image.Resampling.LANCZOS)))
    distances = [float((cell - expected).abs().mean()) for cell in cells]
    assert len(distances) == 7
    assert distances[3] == 0
    assert distances[0] > distances[2] > 0 < distances[4] < distances[6]


@pytest.mark.parametrize("name", STEP_CACHES)
class TestStepCachesAreMentioned:
    def test_in_edit_report_and_log(self, small, name, caplog):
        test_model, _ = small
        encoded = invert(test_model, model=cached(test_model.model, name))
        with caplog.at_level(logging.INFO):
            result = sample(test_model, encoded)
        (remark,) = edit_report(encoded, result)["remarks"]
        assert remark.startswith(f"{name} on the MODEL was left out")
        assert remark in caplog.text

    def test_where_the_cache_comes_after_the_slider(self, small, name, caplog):
        test_model, encoded = small
        with caplog.at_level(logging.INFO):
            result = sample(test_model, encoded, model=cached(encoded.model, name), cfg=2.0)
        assert deviation(result, encoded.latent["samples"]) <= 1e-5
        assert edit_report(encoded, result)["remarks"][0].startswith(name)
        assert name in caplog.text

    def test_in_the_reports_of_invert_image_and_find_directions(self, small, name):
        test_model, _ = small
        model = cached(test_model.model, name)
        encoded = invert(test_model, model=model)
        assert json.loads(encoded.report)["remarks"][0].startswith(name)
        _, report = find(test_model, encoded.inversion, "DDS", model=model)
        assert json.loads(report)["remarks"][0].startswith(name)
        _, report = find(test_model, encoded.inversion, "DDS")
        assert "remarks" not in json.loads(report)


@pytest.mark.parametrize(("strength", "mode"), [(1.0, "forward AD"), (0.5, "central differences")])
def test_an_attention_of_another_node_is_mentioned_where_derivatives_go_around_it(small, strength, mode):
    """Where it computes what plain attention does, exact derivatives are used, and differences where it does not."""
    test_model, encoded = small
    calls = []

    def other(func, *args, **kwargs):
        calls.append(func)
        return strength * func(*args, **kwargs)

    model = test_model.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = other
    inverted = invert(test_model, model=model)
    assert calls  # it stays in use where no derivative is taken
    assert "remarks" not in json.loads(inverted.report)
    report = json.loads(find(test_model, encoded.inversion, "DDS", model=model)[1])
    assert report["remarks"] == [OTHER_ATTENTION]
    assert report["self_check"]["mode"] == mode


class TestRefusals:
    @pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp"])
    def test_guidance_of_the_samplers_own(self, small, sampler):
        test_model, encoded = small
        with pytest.raises(UnsupportedSamplerError, match="changes the model's guidance"):
            sample(test_model, encoded, sampler=sampler, cfg=2.0)

    def test_guidance_of_another_node_is_no_matter_of_the_sampler(self, small):
        test_model, encoded = small
        model = encoded.model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
        assert deviation(sample(test_model, encoded, model=model, cfg=2.0), encoded.latent["samples"]) <= 1e-5

    @pytest.mark.parametrize("kind", [WrappersMP.PREDICT_NOISE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.OUTER_SAMPLE])
    def test_a_broken_wrapper_speaks_for_itself(self, small, kind):
        """Whatever fails that is not the sampler's keeps its own words, also in the sampler's trial run."""
        test_model, encoded = small

        def broken(executor, *args, **kwargs):
            msg = "broken wrapper"
            raise TypeError(msg)

        model = test_model.model.clone()
        model.add_wrapper_with_key(kind, "test", broken)
        with pytest.raises(TypeError, match="broken wrapper"):
            sample(test_model, encoded, model=anchored(encoded, model))
        assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= 1e-5

    def test_a_broken_sampler_speaks_for_itself(self, small, monkeypatch):
        test_model, encoded = small

        def broken(model, x, sigmas, **options):
            msg = "broken sampler"
            raise ValueError(msg)

        monkeypatch.setattr(comfy.samplers, "sampler_object", lambda name: comfy.samplers.KSAMPLER(broken))
        with pytest.raises(ValueError, match="broken sampler"):
            sample(test_model, encoded)

    def test_conditioning_of_the_wrong_width(self, small):
        test_model, encoded = small
        tokens, extra = test_model.positive[0]
        with pytest.raises(RuntimeError, match="shape"):
            sample(test_model, encoded, positive=[[tokens[..., :-1], extra]])


@pytest.mark.parametrize(("method", "draws"), [("seeded noise", 1), ("fresh noise", 5)])
def test_noises_are_drawn_once_a_run_where_they_stay_the_same(small, monkeypatch, method, draws):
    test_model, _ = small
    encoded = invert(test_model, method=method, seeds=2, steps=5)
    levels, at = [], NoisePaths.at
    monkeypatch.setattr(NoisePaths, "at", lambda paths, sigma: levels.append(sigma) or at(paths, sigma))
    assert deviation(sample(test_model, encoded, cfg=2.0), encoded.latent["samples"]) <= 1e-5
    assert len(levels) == draws
