"""Save Direction and Load Direction: what goes into a file, with or without a thumbnail, and sliders from old files."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import comfy.hooks
import folder_paths
import pytest
import safetensors
import safetensors.torch
import torch
from families import Family, sd3
from node_runs import HashingClip, deviation, find, invert, loaded, sample
from PIL import Image

from latent_directions.nodes import library
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.library import LoadDirection, SaveDirection
from latent_directions.nodes.manipulate import DirectionSlider
from latent_directions.nodes.prompts import LATER_LEFT_OUT, encode_text


@pytest.fixture(scope="module")
def test_model():
    return loaded(Family("sd3", sd3))


@pytest.fixture(scope="module")
def encoded(test_model):
    return invert(test_model)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder of directions."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, library.FOLDER, ([str(tmp_path)], {library.SUFFIX}))
    return tmp_path


def header_of(path: Path) -> dict:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def slid(test_model, encoded, direction, strength: float) -> torch.Tensor:
    with torch.inference_mode():
        model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, strength).args
    return sample(test_model, encoded, model=model, positive=positive, noise=noise)


class TestWhatIsSaved:
    @pytest.mark.parametrize("method", ["text", "HSDS", "LOCO"])
    def test_a_slider_does_the_same_from_a_file(self, root, test_model, encoded, method):
        mask = torch.zeros(1, 64, 64)
        mask[:, :32] = 1
        (direction, *_), _ = find(test_model, encoded.inversion, method, mask=mask, keep="a hat | no cap")
        (_, file) = SaveDirection.execute([direction], 0, "smile").args
        ((again,),) = LoadDirection.execute(file).args
        assert torch.equal(slid(test_model, encoded, again, 0.7), slid(test_model, encoded, direction, 0.7))
        assert again.model == direction.model
        described = json.loads(header_of(root / file)["direction"])
        texts = {} if method == "LOCO" else {"source": "a sad person", "target": "a smiling person"}
        assert described["prompts"] == texts
        kinds = {
            "text": ["words", "keep", "mask"],
            "HSDS": ["latent", "words", "keep", "mask"],
            "LOCO": ["latent"],
        }[method]
        assert [part["kind"] for part in described["parts"]] == kinds

    def test_nothing_of_the_picture_unless_asked(self, root, test_model, encoded):
        found, _ = find(test_model, encoded.inversion, "text")
        SaveDirection.execute(found, 0, "smile")
        assert set(header_of(root / "smile.safetensors")) == {"format", "direction"}


class TestThumbnail:
    @pytest.mark.parametrize(
        ("shape", "size"),
        [((1, 512, 1024, 3), (256, 128)), ((2, 64, 32, 4), (32, 64)), ((1, 3000, 1, 3), (1, 256))],
    )
    def test_is_small_and_only_the_picture(self, root, test_model, encoded, shape, size):
        found, _ = find(test_model, encoded.inversion, "text")
        SaveDirection.execute(found, 0, "smile", torch.rand(shape))
        kind, _, data = header_of(root / "smile.safetensors")["thumbnail"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (kind, picture.format, picture.size) == ("data:image/jpeg;base64", "JPEG", size)
        assert not picture.getexif()
        ((again,),) = LoadDirection.execute("smile.safetensors").args
        assert again.notes == found[0].notes

    @pytest.mark.parametrize("value", [3, torch.rand(8, 8), torch.rand(1, 8, 8, 1), torch.rand(1, 0, 8, 3)])
    def test_what_is_no_picture(self, root, test_model, encoded, value):
        found, _ = find(test_model, encoded.inversion, "text")
        with pytest.raises(InputError, match="'thumbnail' holds no picture"):
            SaveDirection.execute(found, 0, "smile", value)
        with pytest.raises(InputError, match="'thumbnail' holds values that are not numbers"):
            SaveDirection.execute(found, 0, "smile", torch.full((1, 8, 8, 3), torch.nan))
        assert not list(root.iterdir())


class TestFirstFormat:
    def write(self, path: Path, test_model, *, latent: bool, slots: int | None = None) -> None:
        """A file of version 1, whose words are the difference of two embeddings."""
        clip = HashingClip(test_model)
        before, after = (encode_text(clip, text) for text in ("a sad person", "a smiling person"))
        change = (after.tokens - before.tokens)[:, :slots].contiguous()
        tensors = {"text.tokens": change, "text.pooled": after.pooled - before.pooled}
        if latent:
            noise = torch.randn(test_model.latent_shape[1:], generator=torch.Generator().manual_seed(2))
            tensors["latent"] = noise / noise.norm()
        described = {
            "name": "smile", "method": "HSDS", "family": "SD3", "sigma": 0.6, "step": 2.0, "keep": [], "notes": {},
        }  # fmt: skip
        metadata = {"format": "latent-directions/1", "direction": json.dumps(described)}
        safetensors.torch.save_file(tensors, path, metadata)

    @pytest.mark.parametrize("latent", [False, True])
    def test_still_moves_the_slider(self, root, test_model, encoded, latent):
        self.write(root / "old.safetensors", test_model, latent=latent)
        ((direction,),) = LoadDirection.execute("old.safetensors").args
        picture = encoded.latent["samples"]
        assert deviation(slid(test_model, encoded, direction, 0.0), picture) <= 1e-5
        assert deviation(slid(test_model, encoded, direction, 1.0), picture) > 1e-3

    def test_saved_again_it_moves_as_far(self, root, test_model, encoded):
        self.write(root / "old.safetensors", test_model, latent=True)
        ((direction,),) = LoadDirection.execute("old.safetensors").args
        SaveDirection.execute([direction], 0, "new")
        ((again,),) = LoadDirection.execute("new.safetensors").args
        assert torch.equal(slid(test_model, encoded, again, 1.0), slid(test_model, encoded, direction, 1.0))

    def test_words_for_a_prompt_of_another_length(self, root, test_model, encoded):
        self.write(root / "old.safetensors", test_model, latent=False, slots=5)
        ((direction,),) = LoadDirection.execute("old.safetensors").args
        with pytest.raises(InputError, match="fill 5 slots of width 24, but this prompt has 7"):
            slid(test_model, encoded, direction, 1.0)


class HookedClip(HashingClip):
    """A text encoder with a hook on it, whose answers hold more than tensors and plain values."""

    def encode_from_tokens_scheduled(self, words: list[str]) -> list:
        ((tokens, entry),) = super().encode_from_tokens_scheduled(words)
        more = {"hooks": comfy.hooks.HookGroup(), "layers": [tokens], "num_layers_stacked": 3, "kind": "x", "n": None}
        return [[tokens, entry | more | {"clip_start_percent": 0.0}], [tokens, entry]]


def test_what_a_direction_cannot_hold_is_named_and_left_out(root, test_model, encoded):
    found, report = find(
        test_model, encoded.inversion, "text", clip=HookedClip(test_model), keep="a person with hat | a person"
    )
    left_out, later = json.loads(report)["remarks"]
    assert left_out.startswith(
        "Beside tensors the text encoder gives 'hooks', 'layers', which a direction cannot hold."
    )
    assert later == LATER_LEFT_OUT
    SaveDirection.execute(found, 0, "smile")
    ((again,),) = LoadDirection.execute("smile.safetensors").args
    assert set(again.words.target.parts()) == {"tokens", "pooled"}
    _, report = find(test_model, encoded.inversion, "text")
    assert "remarks" not in json.loads(report)


def test_what_could_not_be_loaded_is_not_saved(root, test_model, encoded):
    (direction,), _ = find(test_model, encoded.inversion, "text")
    broken = replace(direction.words, target=replace(direction.words.target, tokens=torch.full((1, 7, 24), torch.nan)))
    with pytest.raises(ValueError, match=r"cannot be saved, because .*words.target.tokens .* Find the direction again"):
        SaveDirection.execute([replace(direction, words=broken)], 0, "smile")
    assert not list(root.iterdir())
