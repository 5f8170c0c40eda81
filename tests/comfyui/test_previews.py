"""The small pictures that Preview Directions and Slider Strip give to the page."""

import json
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch
from families import Family, sd3
from node_runs import find, invert, loaded, picture
from PIL import Image

from latent_directions.nodes.inspect import TILE, PreviewDirections, _key
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


def values(picture: Image.Image) -> torch.Tensor:
    """The values of a picture, 0 to 255."""
    return torch.tensor(list(picture.tobytes()), dtype=torch.float)


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures' values at the size of the first."""
    return float((values(one) - values(other.resize(one.size))).abs().mean())


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
    assert (shown["index"], shown["name"]) == (0, directions[0].name)
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
    report = json.loads(made.args[1])
    assert report["changes"] == [{"name": row["name"], "change": row["change"]} for row in gallery]


def test_a_direction_that_changes_more_is_said_to(two_pictures):
    """The root mean square of the ends' differences from the middle, here of pictures that are computed anew."""
    encoded, directions = two_pictures
    galleries = []
    for strength in (0.5, 2.0):
        with torch.inference_mode():
            made = PreviewDirections.execute(encoded.inversion, directions, ChannelVae(), strength, 3, 2)
        galleries.append(json.loads(made.ui["gallery"][0])[0])
    small, large = galleries
    assert 0 < small["change"] < large["change"] < 1
    below, still, above = (values(saved(one)) for one in large["pictures"])
    squares = torch.stack([below - still, above - still]).square().mean()
    assert large["change"] == pytest.approx(float(squares.sqrt()) / 255, rel=0.1)  # but for what JPEG rounds


def test_a_direction_keeps_its_key_when_it_is_found_again_and_another_has_its_own(two_pictures):
    encoded, (words,) = two_pictures
    move = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    one = replace(words, latent=move, sigma=encoded.inversion.sigma)
    again, other = replace(one, latent=move * (1 + 1e-4)), replace(one, latent=move.flip(-1))
    renamed = replace(one, name="another")
    keys = [_key(direction) for direction in (one, again, other, renamed, words)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
