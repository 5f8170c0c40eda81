"""The small pictures that Preview Directions and Slider Strip give to the page."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from families import Family, sd3
from node_runs import find, invert, loaded, picture
from PIL import Image

from latent_directions.nodes.inspect import TILE, PreviewDirections
from latent_directions.nodes.pictures import picture_of
from latent_directions.nodes.previews import save_previews
from latent_directions.nodes.quick import MOST_SHOWN, SliderStrip


class ChannelVae:
    """Shows the first three channels of a latent, each cell 40 pixels wide."""

    def decode(self, samples):
        return samples[:, :3].movedim(1, -1).repeat_interleave(40, 1).repeat_interleave(40, 2)


@pytest.fixture(scope="module")
def two_pictures():
    """A batch of two pictures, and a direction by words."""
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model, latent=picture(test_model, batch=2), method="fresh noise")
    return encoded, find(test_model, encoded.inversion, "text")[0]


def saved(file: dict) -> Image.Image:
    assert file["type"] == "temp"
    return Image.open(Path(folder_paths.get_temp_directory()) / file["subfolder"] / file["filename"])


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures' values, 0 to 255, at the size of the first."""
    a, b = (torch.tensor(list(each.resize(one.size).tobytes()), dtype=torch.float) for each in (one, other))
    return float((a - b).abs().mean())


def test_pictures_are_made_small_and_keep_their_shape():
    tall = Image.new("RGB", (300, 600), (200, 30, 60))
    small, same = (saved(file) for file in save_previews([tall, tall.resize((30, 60))], 256))
    assert (small.size, same.size) == ((128, 256), (30, 60))
    assert difference(small, tall) < 2


def test_files_of_two_runs_have_different_names():
    square = Image.new("RGB", (8, 8))
    names = [file["filename"] for _ in range(2) for file in save_previews([square, square], 8)]
    assert len(set(names)) == 4


def test_a_strip_shows_evenly_chosen_pictures_of_the_first_of_a_batch(two_pictures):
    encoded, directions = two_pictures
    frames = MOST_SHOWN + 8
    with torch.inference_mode():
        made = SliderStrip.execute(encoded.inversion, directions, 0, 1.0, -1.0, 2, frames, 2, vae=ChannelVae())
    latents, report = made.args[0]["samples"], json.loads(made.args[1])
    (text,) = made.ui["scrub"]
    shown = json.loads(text)
    assert shown["index"] == 0
    strengths = [frame["strength"] for frame in shown["frames"]]
    assert len(strengths) == MOST_SHOWN
    assert (strengths[0], strengths[-1]) == (1.0, -1.0)
    assert strengths == sorted(strengths, reverse=True)
    for frame in (shown["frames"][0], shown["frames"][20], shown["frames"][-1]):
        at = min(range(frames), key=lambda k: abs(report["strengths"][k] - frame["strength"]))
        assert difference(saved(frame), picture_of(ChannelVae().decode(latents[at : at + 1]))) < 4
    assert made.ui["text"] == (report["summary"],)


def test_without_a_vae_a_strip_shows_its_text_alone(two_pictures):
    encoded, directions = two_pictures
    with torch.inference_mode():
        made = SliderStrip.execute(encoded.inversion, directions, 0, -1.0, 1.0, 2, 3, 2)
    assert set(made.ui) == {"text"}


def test_the_gallery_has_the_ends_of_each_row_of_the_sheet(two_pictures):
    encoded, directions = two_pictures
    with torch.inference_mode():
        made = PreviewDirections.execute(encoded.inversion, directions * 2, ChannelVae(), 1.5, 5, 2)
    (text,) = made.ui["gallery"]
    gallery = json.loads(text)
    assert [row["name"] for row in gallery] == [direction.name for direction in directions * 2]
    for row in gallery:
        assert [one["strength"] for one in row["pictures"]] == [-1.5, 0.0, 1.5]
        assert max(max(saved(one).size) for one in row["pictures"]) <= TILE
    below, still, above = (saved(one) for one in gallery[0]["pictures"])
    assert gallery[1]["pictures"][1] == gallery[0]["pictures"][1]
    assert difference(still, picture_of(ChannelVae().decode(encoded.latent["samples"]))) < 4
    assert difference(below, above) > 1
    assert made.ui["images"]
