"""Find Directions: published settings, decoded pictures, guided searches, paths, and blocks of the network."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import Family, sd1, sd3
from node_runs import find, invert, loaded

from latent_directions.core.methods import METHODS
from latent_directions.core.presets import PRESETS
from latent_directions.demo.architecture import load_demo_model
from latent_directions.demo.world import draw, sample_portrait
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.features import find_layer
from latent_directions.nodes.identify_inputs import NO_PRESET, inputs

WITHOUT_WORDS = {"clip": None, "source": "", "target": ""}


@pytest.fixture(scope="module")
def case():
    test_model = loaded(Family("sd3", sd3))
    return test_model, invert(test_model)


@pytest.fixture(scope="module")
def demo():
    """The demo model with its VAE, and a portrait encoded with the empty prompt."""
    with torch.inference_mode():
        model, clip, vae = load_demo_model()
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        pixels = torch.from_numpy(draw(sample_portrait(np.random.default_rng(3))).copy())[None].float() / 255
        latent = {"samples": vae.encode(pixels)}
    made = SimpleNamespace(model=model, clip=clip, vae=vae, positive=empty, negative=empty)
    return made, invert(made, latent)


def told(case, method: str, **options) -> tuple[list, dict]:
    test_model, encoded = case
    directions, report = find(test_model, encoded.inversion, method, **{**WITHOUT_WORDS, **options})
    return directions, json.loads(report)


def test_a_preset_sets_what_was_published(case):
    preset = PRESETS["LOCO, animals (AFHQ, P2)"]
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    directions, report = told(case, "LOCO", preset=preset.name, count=7, mask=mask)
    test_model, encoded = case
    a, b = encoded.inversion.scale
    assert len(directions) == preset.count == 1
    assert directions[0].step == pytest.approx(preset.strength * (a * a + b * b) ** 0.5)
    assert "share_left_by_null_space" in directions[0].notes  # as with the order of projection of the paper
    assert f"'{preset.name}' was published for a level of 0.7" in report["remarks"][0]


def test_a_preset_without_a_vae_looks_at_the_latent_and_says_so(case):
    preset = PRESETS["LOCO, LCM in four steps"]
    _, report = told(case, "LOCO", preset=preset.name, hold_outside=0)
    assert any("Connect 'vae' for that; here it looked at the latent" in remark for remark in report["remarks"])


def test_a_preset_of_another_method_is_refused(case):
    with pytest.raises(InputError, match="belongs to the method 'pullback', but 'method' is 'LOCO'"):
        told(case, "LOCO", preset="pullback, faces (DDPM)")


def test_a_published_level_beyond_the_schedule_is_its_highest():
    """The most noise of SD 1.5 is at sigma 14.6, where the share of the schedule is 1."""
    test_model = loaded(Family("sd1", sd1))
    _, report = told((test_model, invert(test_model, level=0.3)), "pullback", preset="pullback, faces (DDPM)")
    assert "which is 2.28 to 14.6 on this model" in report["remarks"][-1]


def test_a_guided_preset_needs_a_negative_prompt(case):
    with pytest.raises(InputError, match="'preset' is .* needs 'negative'. Connect a negative prompt"):
        told(case, "LOCO", preset="LOCO, Stable Diffusion 2.1")


def test_pullback_says_that_it_does_not_use_the_mask(case):
    mask = torch.ones(1, 64, 64)
    _, report = told(case, "pullback", mask=mask, count=1)
    assert report["remarks"] == ["'mask' was not used, because the method 'pullback' looks at the whole picture."]


@pytest.mark.parametrize("method", ["LOCO", "pullback"])
def test_candidates_do_not_matter_where_nothing_is_named(case, method):
    assert told(case, method, candidates="with freckles", count=1)[0]


def test_every_preset_is_offered():
    (given,) = (given for given in inputs() if given.id == "preset")
    assert given.options == [NO_PRESET, *PRESETS]
    assert {preset.method for preset in PRESETS.values()} <= set(METHODS)


def test_looking_at_the_picture(demo):
    """Mask and Jacobian of the decoded picture; the directions are others than those of the latent."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 40:52, 24:40] = 1
    options = {"count": 1, "hold_outside": 1, "mask": mask}
    (latent,), _ = told(demo, "LOCO", **options)
    (picture,), report = told(demo, "LOCO", **options, look_at="picture", vae=demo[0].vae)
    assert "passed their self-check" in report["self_check"]["sentence"]
    assert abs(float((latent.latent * picture.latent).sum())) < 0.999
    assert picture.latent.shape == latent.latent.shape
    few = torch.zeros(1, 64, 64)
    few[:, 44:47, 31:34] = 1  # pixels, but not a quarter of a cell
    (small,), _ = told(demo, "LOCO", count=1, hold_outside=0, mask=few, look_at="picture", vae=demo[0].vae)
    assert abs(float((small.latent * picture.latent).sum())) < 0.999


def test_looking_at_the_picture_needs_a_vae(case):
    with pytest.raises(InputError, match="'look_at' is 'picture', which needs 'vae'. Connect the VAE"):
        told(case, "LOCO", look_at="picture")


def test_a_guided_search_needs_a_negative_prompt(case):
    test_model, _ = case
    with pytest.raises(InputError, match="needs a 'negative' prompt"):
        told(case, "LOCO", guided=True, guidance=3.0)
    plain, cheap = told(case, "LOCO", guidance=3.0, negative=test_model.negative, count=1)
    guided, dear = told(case, "LOCO", guided=True, guidance=3.0, negative=test_model.negative, count=1)
    assert abs(float((plain[0].latent * guided[0].latent).sum())) < 0.999
    assert dear["self_check"]["evaluations"] == 2 * cheap["self_check"]["evaluations"]


def test_pullback_knows_what_it_changes_inside_the_network(case):
    test_model, _ = case
    network = test_model.model.get_model_object("diffusion_model")
    for block in (1, 2):
        directions, _ = told(case, "pullback", block=block, count=2)
        assert [direction.feature.layer for direction in directions] == [find_layer(network, block).name] * 2
        assert all(float(one.feature.change.norm()) == pytest.approx(1, abs=1e-4) for one in directions)
    with pytest.raises(InputError, match="block"):
        told(case, "pullback", block=99)


@pytest.mark.parametrize("path", ["x-space guidance", "geodesic shooting"])
def test_paths_of_pullback(case, path):
    directions, _ = told(case, "pullback", path=path, path_steps=2, count=1)
    assert directions[0].notes["path"] == path
    assert directions[0].notes["path_steps"] == 2


@pytest.mark.parametrize("value", [1, "yes", None])
def test_truth_values_are_checked(case, value):
    with pytest.raises(InputError, match="'guided' "):
        told(case, "LOCO", guided=value) if value is not None else told(case, "LOCO", guided=[])


@pytest.mark.parametrize("method", ["LOCO", "T-LOCO", "explore"])
def test_a_mask_of_everything_is_said_to_hold_nothing(case, method):
    words = {} if method != "T-LOCO" else {"source": "a person", "target": "a hat"}
    test_model, encoded = case
    options = {"mask": torch.ones(1, 64, 64), "count": 1, "hold_outside": 3}
    given = {**(WITHOUT_WORDS if not words else {}), **words, **options}
    report = json.loads(find(test_model, encoded.inversion, method, **given)[1])
    assert any("'mask' covers the whole picture" in remark for remark in report["remarks"])
