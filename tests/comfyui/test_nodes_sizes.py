"""Sizes that are no multiple of anything: what is cropped, what is padded, and that the latent still returns."""

import json

import pytest
import torch
from families import MANY, sd3
from more_families import MORE, chroma_radiance
from node_runs import deviation, invert, loaded, picture, sample

from latent_directions.demo.architecture import load_demo_model
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.sizes import patch_size, size_report

FAMILIES = {family.name: family for family in [*MANY, *MORE]}
PATCHES = {"sd1": 1, "sdxl": 1, "sd2": 1, "flux2": 1, "chroma_radiance": 4}  # others: 2
ODD = [name for name in FAMILIES if name != "pixart"]  # its position table of this size has no room for a small square


@pytest.mark.parametrize("name", ODD)
def test_a_latent_of_odd_sides_returns(name):
    test_model = loaded(FAMILIES[name])
    encoded = invert(test_model, picture(test_model, size=(9, 11)))
    for sampler in ("euler", "dpmpp_2m"):
        result = sample(test_model, encoded, sampler=sampler, cfg=4.0)
        assert result.shape[-2:] == (9, 11)
        assert deviation(result, encoded.latent["samples"]) <= 1e-5, sampler
    report = json.loads(encoded.report)
    cell = test_model.model.get_model_object("latent_format").spacial_downscale_ratio
    assert report["picture_pixels"] == [11 * cell, 9 * cell]
    assert f"comes back at {11 * cell} x {9 * cell} pixels" in report["size"]
    assert (f"beyond a multiple of {cell}" in report["size"]) == (cell > 1)
    padded = {1: "11 x 9", 2: "12 x 10", 4: "12 x 12"}[PATCHES.get(name, 2)]
    assert (f"pads it to {padded}" in report["size"]) == (padded != "11 x 9")


@pytest.mark.parametrize("name", FAMILIES)
def test_patch_size(name):
    patch = PATCHES.get(name, 2)
    assert patch_size(loaded(FAMILIES[name]).model) == (patch, patch)


def test_pixel_space_is_not_cropped():
    test_model = loaded(FAMILIES["chroma_radiance"])
    report = size_report(test_model.model, torch.Size((1, 3, 16, 24)))
    assert report == {"picture_pixels": [24, 16], "size": "The picture comes back at 24 x 16 pixels."}


@pytest.mark.parametrize("method", ["backward euler", "seeded noise", "fresh noise"])
def test_a_model_that_cannot_pad(method):
    """ComfyUI's Chroma Radiance that predicts x0 subtracts a padded picture from one that is not."""
    test_model = chroma_radiance(use_x0=True)
    with pytest.raises(InputError, match=r"18 x 16 cells, no multiple of this model's patches of 4 x 4"):
        invert(test_model, picture(test_model, size=(16, 18)), method=method)


def test_other_failures_keep_their_own_words():
    test_model = sd3()
    test_model.positive[0][0] = test_model.positive[0][0][..., :5]
    with pytest.raises(RuntimeError, match="shape"):
        invert(test_model, picture(test_model, size=(8, 8)))


def test_the_crop_of_vae_encode_is_what_the_report_says():
    with torch.inference_mode():
        model, _, vae = load_demo_model()
        image = torch.rand(1, 75, 86, 3, generator=torch.Generator().manual_seed(0))
        samples = vae.encode(image)
        inside = vae.encode(image[:, 1:73, 3:83])  # 75 = 1 + 72 + 2 and 86 = 3 + 80 + 3
        shown = vae.decode(samples)
    assert torch.equal(samples, inside)
    report = size_report(model, samples.shape, vae)
    assert report["picture_pixels"] == [80, 72] == list(shown.shape[2:0:-1])
    assert "multiple of 8 it crops, half on each side" in report["size"]
