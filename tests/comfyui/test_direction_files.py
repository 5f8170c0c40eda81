"""The direction file: bitwise round trips, also into a new process, and a sentence for every file that is none."""

import base64
import importlib.util
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_directions.core import direction_files as files
from latent_directions.core.direction import Direction, Distilled, Feature, Fingerprint, KeepPair, Prompt, Words
from latent_directions.core.direction_files import load, save
from latent_directions.core.errors import (
    DirectionFileError,
    DirectionFormatError,
    DirectionNotSavedError,
    DirectionNotWrittenError,
    DirectionTooLargeError,
    printable,
)


def random(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompt(seed: int, pooled: bool = True) -> Prompt:
    extra = {"conditioning_mt5xl": random(1, 3, 5, seed=seed + 70), "mask": torch.tensor([[1, 1, 0]])}
    return Prompt(random(1, 7, 24, seed=seed), random(1, 32, seed=seed + 50) if pooled else None, extra)


def feature(*shape: int, seed: int = 11, dtype=torch.float32) -> Feature:
    change = random(*shape, seed=seed, dtype=torch.float64)
    return Feature((change / change.norm()).to(dtype), "middle block")


def full() -> Direction:
    return Direction(
        name="smiling, très",
        method="HSDS",
        family="SD3",
        sigma=0.1 + 0.2,  # no short decimal
        latent=random(16, 8, 8, seed=1),
        step=1 / 3,
        words=Words(prompt(2), prompt(8), share=0.35),
        keep=(KeepPair("a hat", prompt(3), prompt(4)), KeepPair("grey hair", prompt(5, False), prompt(6, False))),
        mask=torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(9)),
        distilled=Distilled(random(16, 8, 8, seed=7), random(16, 8, 8, seed=10), "0123456789abcdef" * 4, 1 / 70),
        feature=feature(6, 4, 2),
        model=Fingerprint("f" * 64, ((0.1, -1e-5), (), (3.0, 1 / 3)), 1 / 128),
        notes={"pairs": 11, "least_squares_residual": 1e-3 / 7, "source": "a sad person", "nothing": None},
    )


def bare() -> Direction:
    return Direction(name="direction 1", method="LOCO", family="SDXL", sigma=2.5, latent=random(4, 8, 8), step=2.0)


def words() -> Direction:
    """Compared with the prompt of the picture."""
    return Direction(name="older", method="text", family="Flux", sigma=0.8, words=Words(prompt(1, False)))


def change() -> Direction:
    """What a file of format 1 gives."""
    target = replace(prompt(1), is_change=True)
    return Direction(name="older", method="text", family="Flux", sigma=0.8, words=Words(target))


def distilled() -> Direction:
    made = Distilled(random(4, 1, 8, 8), random(4, 1, 8, 8, seed=1), "a" * 64, 0.0)
    return Direction(name="older", method="text", family="Wan", sigma=0.8, distilled=made, mask=torch.ones(8, 8))


def of_features() -> Direction:
    """It moves nothing until it is carried over to a picture."""
    return Direction(name="older", method="pullback", family="SDXL", sigma=0.8, feature=feature(3, 2))


def prompts_of(direction: Direction) -> list[Prompt | None]:
    words = [None, None] if direction.words is None else [direction.words.target, direction.words.source]
    return [*words, *(one for pair in direction.keep for one in (pair.present, pair.absent))]


def same(a: Direction, b: Direction) -> bool:
    """Equal to the last bit."""

    def tensors(d: Direction) -> list:
        made = d.distilled
        found = [d.latent, d.mask, *([None, None] if made is None else [made.above, made.below])]
        found.append(None if d.feature is None else d.feature.change)
        for one in prompts_of(d):
            parts = {} if one is None else one.parts()
            found += [parts[name] for name in sorted(parts)]
        return found

    def plain(d: Direction):
        return (
            (d.name, d.method, d.family, d.sigma, d.step, [k.name for k in d.keep], d.notes, d.model),
            None if d.words is None else d.words.share,
            None if d.distilled is None else (d.distilled.picture, d.distilled.bend),
            None if d.feature is None else d.feature.layer,
            [None if one is None else (sorted(one.parts()), one.is_change) for one in prompts_of(d)],
        )

    def equal(x, y) -> bool:
        if x is None or y is None:
            return x is y
        return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)

    return plain(a) == plain(b) and all(equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("make", [full, bare, words, change, distilled, of_features])
def test_round_trip(make, tmp_path):
    path = tmp_path / "folder" / "a b.safetensors"  # the folder is made
    save(make(), path)
    assert same(load(path), make())
    assert [p.name for p in path.parent.iterdir()] == ["a b.safetensors"]


NUMBERS = st.floats(-1e3, 1e3)
TENSORS = st.builds(
    lambda shape, seed, dtype: random(*shape, seed=seed, dtype=dtype),
    st.lists(st.integers(1, 3), min_size=3, max_size=4),
    st.integers(0, 9),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
PROMPTS = st.builds(
    lambda seed, slots, pooled, extra: Prompt(random(1, slots, 4, seed=seed), random(1, 3) if pooled else None, extra),
    st.integers(0, 9),
    st.integers(1, 5),
    st.booleans(),
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in ("tokens", "pooled")),
        st.sampled_from([torch.tensor([[1, 0]]), torch.tensor([True]), random(2)]),
        max_size=2,
    ),
)
NOTES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=30)
DIRECTIONS = st.builds(
    Direction,
    name=NAMES,
    method=NAMES,
    family=NAMES,
    sigma=st.floats(1e-9, 1e9),
    latent=TENSORS,
    step=st.floats(0, 100),
    words=st.none()
    | st.builds(Words, PROMPTS | PROMPTS.map(lambda one: replace(one, is_change=True)), st.none() | PROMPTS, NUMBERS),
    keep=st.lists(st.builds(KeepPair, NAMES.map(printable), PROMPTS, PROMPTS), max_size=2).map(tuple),
    mask=st.none() | st.sampled_from([torch.zeros(1, 2, 3), torch.rand(4, 4), torch.ones(1, 1, 1).half()]),
    distilled=st.none()
    | st.builds(
        lambda move, picture, bend: Distilled(move, move / 2, picture, bend),
        TENSORS,
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.floats(0, 1e6),
    ),
    feature=st.none()
    | st.builds(
        lambda shape, dtype, layer: Feature(feature(*shape, dtype=dtype).change, layer),
        st.lists(st.integers(1, 3), min_size=1, max_size=6),
        st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
        NAMES.map(printable),
    ),
    model=st.none()
    | st.builds(
        Fingerprint,
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.lists(st.lists(NUMBERS, max_size=4).map(tuple), max_size=4).map(tuple),
        st.floats(0, 1),
    ),
    notes=st.dictionaries(st.sampled_from(["source", "target", "pairs"]) | st.text(), NOTES, max_size=4),
)


@given(DIRECTIONS)
def test_every_direction_comes_back(tmp_path_factory, direction):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save(direction, path)
    assert same(load(path), direction)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_type(dtype, tmp_path):
    direction = Direction("d", "LOCO", "SD3", 0.5, latent=random(4, 3, 3, dtype=dtype), step=1.0)
    save(direction, tmp_path / "d.safetensors")
    assert same(load(tmp_path / "d.safetensors"), direction)


def test_a_loaded_direction_is_apart_from_its_file(tmp_path):
    """Written over in place, or cut off, the file changes nothing that was loaded from it."""
    path = tmp_path / "direction.safetensors"
    save(full(), path)
    loaded, size = load(path), path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert same(loaded, full())
    with path.open("r+b") as file:
        file.truncate(100)
    assert same(loaded, full())


def test_views_and_inference_tensors_are_saved(tmp_path):
    with torch.inference_mode():
        latent = random(2, 16, 8, 8)[1].transpose(1, 2)
        direction = Direction("d", "LOCO", "SD3", 0.5, latent=latent, step=1.0)
        save(direction, tmp_path / "d.safetensors")
    assert same(load(tmp_path / "d.safetensors"), direction)


def test_a_new_process_reads_and_writes_the_same_file(tmp_path):
    save(full(), tmp_path / "first.safetensors")
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from scripts.environment import register_package; register_package()\n"
        "from latent_directions.core.direction_files import load, save\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "save(load(folder / 'first.safetensors'), folder / 'second.safetensors')\n"
        "assert not any(name.split('.')[0] == 'comfy' for name in sys.modules), 'core must not need ComfyUI'\n"
    )
    root = files.__file__.rsplit("core", 1)[0]
    subprocess.run([sys.executable, "-c", script, root, str(tmp_path)], check=True, timeout=600)
    assert same(load(tmp_path / "second.safetensors"), full())
    # the order of the header's metadata is not fixed by safetensors, its content is
    headers = [safetensors.safe_open(tmp_path / f"{n}.safetensors", "pt").metadata() for n in ("first", "second")]
    assert headers[0] == headers[1]


def test_any_program_can_read_the_header(tmp_path):
    save(full(), tmp_path / "d.safetensors")
    with safetensors.safe_open(tmp_path / "d.safetensors", "pt") as file:
        assert set(file.metadata()) == {"format", "direction"}
        assert file.metadata()["format"] == "latent-directions/2"
        meta = json.loads(file.metadata()["direction"])
        names = set(file.keys())
    assert (meta["name"], meta["model"]["family"]) == ("smiling, très", "SD3")
    assert meta["prompts"] == {"source": "a sad person"}
    assert meta["parts"] == [
        {"kind": "latent", "step": 1 / 3},
        {"kind": "words", "share": 0.35, "source": "stored", "change": False},
        {"kind": "distilled", "picture": "0123456789abcdef" * 4, "bend": 1 / 70},
        {"kind": "feature", "layer": "middle block"},
        {"kind": "keep", "names": ["a hat", "grey hair"]},
        {"kind": "mask"},
    ]
    assert {"latent.move", "words.target.tokens", "words.source.extra.mask", "keep.0.present.tokens"} <= names
    assert {name.split(".")[0] for name in names} == {part["kind"] for part in meta["parts"]}


def written(path, tensors: dict | None = None, part: str = "", change: dict | None = None, **meta):
    """A file like ours, with some of it replaced; a value of None takes a key away.

    Args:
        path: where to.
        tensors: by their names.
        part: the kind of the part that `change` is for.
        change: what is replaced in that part.
        meta: what is replaced in the rest of the metadata.
    """

    def replaced(old: dict, new: dict) -> dict:
        return {key: value for key, value in {**old, **new}.items() if value is not None}

    save(full(), path)
    with safetensors.safe_open(path, "pt") as file:
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = json.loads(file.metadata()["direction"])
    metadata["parts"] = [replaced(p, change) if p["kind"] == part else p for p in metadata["parts"]]
    metadata = replaced(metadata, meta)
    chosen = replaced(old, tensors or {})
    safetensors.torch.save_file(chosen, path, {"format": files.FORMAT, "direction": json.dumps(metadata)})


def first_format(path, tensors: dict[str, tuple[str, list[int], bytes]], **meta) -> None:
    """A file of format 1, byte by byte as version 1 wrote them."""
    described = {
        "name": "d", "method": "HSDS", "family": "SD3", "sigma": 0.75, "step": 0.0, "keep": [], "notes": {}, **meta,
    }  # fmt: skip
    header, data = {"__metadata__": {"format": "latent-directions/1", "direction": json.dumps(described)}}, b""
    for name, (kind, shape, values) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class TestDocumentation:
    PAGE = (Path(files.__file__).parents[1] / "docs" / "direction_files.md").read_text(encoding="utf-8")

    def test_names_every_kind_and_field(self, tmp_path):
        save(full(), tmp_path / "d.safetensors")
        with safetensors.safe_open(tmp_path / "d.safetensors", "pt") as file:
            meta = json.loads(file.metadata()["direction"])
            names = list(file.keys())
        fields = [*meta, *meta["model"], *(field for part in meta["parts"] for field in part if field != "kind")]
        assert [field for field in fields if f"`{field}`" not in self.PAGE] == []
        assert [kind for kind in files.KINDS if f"**`{kind}`**" not in self.PAGE] == []
        stems = {re.sub(r"\.extra\..*|\.tokens|\.pooled", "", name) for name in names if not name.startswith("keep.1")}
        assert [stem for stem in stems if f"`{stem}`" not in self.PAGE] == []

    def test_its_reader_reads(self, tmp_path):
        (code,) = re.findall(r"```python\n(.*?)```", self.PAGE, re.DOTALL)
        (tmp_path / "reader.py").write_text(code)
        described = importlib.util.spec_from_file_location("reader", tmp_path / "reader.py")
        reader = importlib.util.module_from_spec(described)
        described.loader.exec_module(reader)
        save(full(), tmp_path / "d.safetensors")
        direction, tensors = reader.read_direction(tmp_path / "d.safetensors")
        assert direction["name"] == "smiling, très"
        assert list(tensors) == ["latent", "words", "distilled", "feature", "keep", "mask"]
        assert (tensors["latent"]["latent.move"] == full().latent.numpy()).all()
        assert len(tensors["words"]) == 8
        written(tmp_path / "d.safetensors", parts=[{"kind": "features"}])
        with pytest.raises(ValueError, match="cannot read the parts"):
            reader.read_direction(tmp_path / "d.safetensors")


class TestFirstFormat:
    LATENT, TEXT, POOLED = [0.5, -0.5, 0.5, 0.5], [1.0, 2.0, 3.0], [0.25, -0.25]

    def tensors(self, *names: str) -> dict:
        every = {
            "latent": ("F32", [1, 2, 2], struct.pack("<4f", *self.LATENT)),
            "text.tokens": ("F32", [1, 1, 3], struct.pack("<3f", *self.TEXT)),
            "text.pooled": ("F16", [1, 2], struct.pack("<2e", *self.POOLED)),
            "text.extra.conditioning_mt5xl": ("F64", [1, 1], struct.pack("<d", 7.0)),
        }
        for number, which in ((0, "present"), (0, "absent")):
            every[f"keep.{number}.{which}.tokens"] = ("F32", [1, 1, 3], struct.pack("<3f", 4.0, 5.0, 6.0))
            every[f"keep.{number}.{which}.extra.ids"] = ("I64", [1, 1], struct.pack("<q", 9))
        return {name: value for name, value in every.items() if not names or name.split(".")[0] in names}

    def test_all_of_it(self, tmp_path):
        path = tmp_path / "d.safetensors"
        notes = {"singular_value": 3.5, "source": "a sad person", "target": "a smiling person"}
        first_format(path, self.tensors(), name="smiling", step=2.0, keep=["glasses"], notes=notes)
        direction = load(path)
        assert (direction.name, direction.method, direction.family) == ("smiling", "HSDS", "SD3")
        assert (direction.sigma, direction.step, direction.notes) == (0.75, 2.0, notes)
        assert direction.latent.flatten().tolist() == self.LATENT
        target = direction.words.target
        assert (direction.words.source, direction.words.share, target.is_change) == (None, 1.0, True)
        assert target.tokens.flatten().tolist() == self.TEXT
        assert (target.pooled.tolist(), target.pooled.dtype) == ([self.POOLED], torch.float16)
        assert {name: part.tolist() for name, part in target.extra.items()} == {"conditioning_mt5xl": [[7.0]]}
        (pair,) = direction.keep
        assert (pair.name, pair.present.is_change, pair.absent.extra["ids"].item()) == ("glasses", False, 9)
        assert (direction.mask, direction.distilled, direction.model) == (None, None, None)

    @pytest.mark.parametrize("names", [("latent",), ("text",), ("latent", "text", "keep")])
    def test_saved_again_it_is_the_same_in_format_2(self, tmp_path, names):
        old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
        first_format(old, self.tensors(*names), step=2.0, keep=["glasses"] if "keep" in names else [])
        save(load(old), new)
        assert same(load(new), load(old))
        with safetensors.safe_open(new, "pt") as file:
            assert file.metadata()["format"] == files.FORMAT

    @pytest.mark.parametrize("key", ["name", "method", "family", "sigma", "step", "keep", "notes"])
    def test_missing_entries(self, tmp_path, key):
        path = tmp_path / "bad.safetensors"
        first_format(path, self.tensors())
        path.write_bytes(path.read_bytes().replace(f'\\"{key}\\"'.encode(), f'\\"{key[:-1]}_\\"'.encode()))
        with pytest.raises(DirectionFileError, match=f"not a direction .*{key}"):
            load(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
    @pytest.mark.parametrize("key", ["latent", "text.tokens", "keep.0.present.tokens"])
    def test_values_that_are_none(self, tmp_path, key, value):
        path = tmp_path / "bad.safetensors"
        tensors = self.tensors()
        kind, shape, data = tensors[key]
        tensors[key] = (kind, shape, struct.pack("<f", value) + data[4:])
        first_format(path, tensors, step=1.0, keep=["glasses"])
        with pytest.raises(DirectionFileError, match=f"tensor {key} holds values that are not numbers"):
            load(path)

    def test_without_a_move(self, tmp_path):
        first_format(tmp_path / "bad.safetensors", self.tensors("keep"), keep=["glasses"])
        with pytest.raises(DirectionFileError, match="neither a move of the latent nor of the words"):
            load(tmp_path / "bad.safetensors")


class TestThumbnail:
    def test_is_in_the_header_and_changes_nothing(self, tmp_path):
        picture = bytes(range(256))
        save(full(), tmp_path / "d.safetensors", picture)
        assert same(load(tmp_path / "d.safetensors"), full())
        with safetensors.safe_open(tmp_path / "d.safetensors", "pt") as file:
            kind, _, data = file.metadata()["thumbnail"].partition(",")
        assert (kind, base64.b64decode(data)) == ("data:image/jpeg;base64", picture)

    def test_too_large(self, tmp_path):
        save(full(), tmp_path / "d.safetensors", bytes(files.LARGEST_THUMBNAIL))
        with pytest.raises(DirectionTooLargeError, match="thumbnail is larger than a direction file takes"):
            save(full(), tmp_path / "e.safetensors", bytes(files.LARGEST_THUMBNAIL + 1))
        assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


SHAPES = {
    "latent.move": (16, 8, 8),
    "distilled.above": (16, 8, 8),
    "distilled.below": (16, 8, 8),
    "feature.change": (6, 4, 2),
    "mask.cells": (1, 8, 8),
    "words.source.pooled": (1, 32),
    "words.source.extra.conditioning_mt5xl": (1, 3, 5),
}


class TestFilesThatAreNone:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "bad.safetensors"

    def refused(self, path, match: str, kind: type = DirectionFileError):
        with pytest.raises(kind, match=match) as caught:
            load(path)
        assert "bad.safetensors" in str(caught.value)
        assert str(path.parent) not in str(caught.value)  # no paths of the machine in a message

    def test_missing(self, path):
        self.refused(path, "There is no direction file")
        path.mkdir()
        self.refused(path, "There is no direction file")

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
    def test_cut_off(self, path, share):
        save(full(), path)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        self.refused(path, "not a readable safetensors file")

    def test_pickle_is_never_opened(self, path):
        marker = path.with_name("ran")
        path.write_bytes(pickle.dumps(_Bomb(str(marker))))
        self.refused(path, "a pickle is never opened")
        torch.save({"latent": torch.zeros(2), "bomb": _Bomb(str(marker))}, path)
        self.refused(path, "a pickle is never opened")
        assert not marker.exists()

    def test_text_and_garbage(self, path):
        for data in (b"{}", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{}", b"PK\x03\x04" + b"\0" * 100):
            path.write_bytes(data)
            self.refused(path, "not a readable safetensors file")

    @pytest.mark.parametrize("number", [-1, files.LARGEST_TOKEN_ID, 2**62])
    def test_token_ids_that_no_vocabulary_has(self, path, number):
        """On a CUDA device they would end the process's use of it."""
        ids = torch.tensor([[1, number]])
        written(path, {"words.target.extra.ids": ids})
        self.refused(path, r"words.target.extra.ids holds numbers outside 0 to 1048576")

    def test_safetensors_of_another_kind(self, path):
        safetensors.torch.save_file({"lora.weight": torch.zeros(3)}, path)
        self.refused(path, "not a direction")
        safetensors.torch.save_file({"a": torch.zeros(3)}, path, {"format": "pt"})
        self.refused(path, "has format 'pt', but this version reads 'latent-directions/2' and 'latent-directions/1'")
        safetensors.torch.save_file({"a": torch.zeros(3)}, path, {"format": "latent-directions/3", "direction": "{}"})
        self.refused(path, "has format 'latent-directions/3', but this version reads", DirectionFormatError)

    @pytest.mark.parametrize("header", ["", "no json", "[]", "null", "3", '{"name": "x"}'])
    def test_headers_that_are_no_direction(self, path, header):
        safetensors.torch.save_file({"latent": torch.ones(3)}, path, {"format": files.FORMAT, "direction": header})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize("key", ["name", "method", "sigma", "model", "prompts", "parts", "notes"])
    def test_missing_entries(self, path, key):
        written(path, **{key: None})
        self.refused(path, f"not a direction .*{key}")

    @pytest.mark.parametrize(
        ("part", "key"),
        [
            ("latent", "step"),
            ("words", "share"),
            ("words", "source"),
            ("words", "change"),
            ("distilled", "picture"),
            ("distilled", "bend"),
            ("feature", "layer"),
            ("keep", "names"),
            ("mask", "kind"),
        ],
    )
    def test_missing_entries_of_a_part(self, path, part, key):
        written(path, part=part, change={key: None})
        self.refused(path, f"not a direction .*{key}")

    @pytest.mark.parametrize("kind", ["features", "subspace", "steps", "", "latent ", "x" * 5000, "\ud800"])
    def test_parts_of_an_unknown_kind(self, path, kind):
        written(path, part="mask", change={"kind": kind})
        said = printable(kind, 60).replace("\\", r"\\")
        self.refused(path, f"has a part of the kind '{said}', which this version of the pack", DirectionFormatError)

    @pytest.mark.parametrize("kind", [3, None, [], {}, True])
    def test_kinds_that_are_no_text(self, path, kind):
        written(path, parts=[{"kind": kind}])
        self.refused(path, "not a direction .*kind")

    @pytest.mark.parametrize("parts", [3, {}, "latent", [3], ["latent"], [["kind", "latent"]], [None]])
    def test_parts_that_are_none(self, path, parts):
        written(path, parts=parts)
        self.refused(path, "not a direction")

    def test_the_same_part_twice(self, path):
        written(path, parts=[{"kind": "latent", "step": 1.0}, {"kind": "latent", "step": 2.0}])
        self.refused(path, "more than one part of the kind 'latent'")

    @pytest.mark.parametrize("count", [17, 10_000])
    def test_too_many_parts(self, path, count):
        written(path, parts=[{"kind": "mask"}] * count)
        self.refused(path, f"{count} parts, more than 16")

    @pytest.mark.parametrize(
        ("part", "key"), [("latent", "step"), ("words", "share"), ("distilled", "bend"), ("distilled", "picture")]
    )
    @pytest.mark.parametrize("value", ["much", [1], float("nan"), float("inf"), 10**400, 1e308, {}])
    def test_numbers_of_a_part_that_are_none(self, path, part, key, value):
        written(path, part=part, change={key: value})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("words", {"source": "x"}),
            ("words", {"source": 3}),
            ("words", {"change": 1}),
            ("keep", {"names": 3}),
            ("keep", {"names": "x"}),
            ("keep", {"names": ["a hat", "grey hair", "a third"]}),
            ("distilled", {"picture": "a" * 63}),
            ("distilled", {"picture": "A" * 64}),
            ("distilled", {"picture": "a" * 64 + "\n"}),
            ("distilled", {"bend": -0.1}),
            ("feature", {"layer": 3}),
            ("feature", {"layer": ["middle block"]}),
        ],
    )
    def test_parts_that_say_what_they_must_not(self, path, part, change):
        written(path, part=part, change=change)
        self.refused(path, "not a direction")

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
    def test_masks_with_other_values(self, path, value):
        written(path, {"mask.cells": torch.full((1, 8, 8), value)})
        self.refused(path, "tensor mask.cells holds values that are not numbers from 0 to 1")

    def test_several_masks(self, path):
        written(path, {"mask.cells": torch.ones(3, 8, 8)})
        self.refused(path, "tensor mask.cells holds 3 masks")

    @pytest.mark.parametrize(
        "change",
        [
            {"structure": "x"},
            {"structure": 3},
            {"weights": 3},
            {"weights": [3]},
            {"weights": [["x"]]},
            {"weights": [[1e30]]},
            {"weights": [[float("nan")]]},
            {"weights": [[0.0] * 65]},
            {"weights": [[]] * 65},
            {"rounding": 2},
            {"rounding": None},
        ],
    )
    def test_fingerprints_that_are_none(self, path, change):
        model = {"family": "SD3", "structure": "0" * 64, "weights": [[0.5]], "rounding": 0.1}
        written(path, model=model)
        assert load(path).model == Fingerprint("0" * 64, ((0.5,),), 0.1)
        written(path, model={key: value for key, value in {**model, **change}.items() if value is not None})
        self.refused(path, "not a direction")

    def test_a_family_alone(self, path):
        written(path, model={"family": "SD3"})
        assert (load(path).family, load(path).model) == ("SD3", None)
        written(path, model={})
        self.refused(path, "not a direction .*family")

    @pytest.mark.parametrize(
        "key",
        [
            "latent.move",
            "words.target.tokens",
            "words.source.tokens",
            "distilled.above",
            "distilled.below",
            "feature.change",
            "mask.cells",
            "keep.0.present.tokens",
            "keep.1.absent.tokens",
        ],
    )
    def test_missing_tensors(self, path, key):
        written(path, {key: None})
        self.refused(path, f"not a direction .*{key}")

    @pytest.mark.parametrize(
        "key",
        [
            "latent.move",
            "words.target.tokens",
            "words.source.pooled",
            "words.source.extra.conditioning_mt5xl",
            "keep.1.present.tokens",
            "distilled.above",
            "distilled.below",
            "feature.change",
        ],
    )
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_numbers(self, path, key, value):
        written(path, {key: torch.full(SHAPES.get(key, (1, 7, 24)), value)})
        self.refused(path, f"tensor {key} holds values that are not numbers")

    @pytest.mark.parametrize("key", ["sigma"])
    @pytest.mark.parametrize("value", ["much", [1], float("nan"), float("inf"), 10**400, 1e308, -1.0])
    def test_numbers_that_are_none(self, path, key, value):
        written(path, **{key: value})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize(
        "change",
        [{"model": 3}, {"notes": 3}, {"notes": [["a", 1]]}, {"prompts": "x"}, {"notes": {"a": float("nan")}}],
    )
    def test_entries_of_another_type(self, path, change):
        written(path, **change)
        self.refused(path, "not a direction")

    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            ("latent.move", (8,)),
            ("latent.move", (1, 1, 16, 8, 8)),
            ("latent.move", (16, 0, 8)),
            ("words.target.tokens", (7, 24)),
            ("words.target.tokens", (1, 0, 24)),
            ("words.source.tokens", (2, 7, 24)),
            ("words.target.pooled", ()),
            ("words.source.pooled", (1, 16)),
            ("words.source.pooled", (1, 1, 1, 32)),
            ("mask.cells", (8,)),
            ("mask.cells", (1, 0, 8)),
            ("mask.cells", (1, 1, 8, 8)),
            ("distilled.above", (8, 8)),
            ("distilled.below", (1, 1, 16, 8, 8)),
            ("distilled.below", (16, 8, 4)),
            ("distilled.above", (16, 1, 8, 8)),
            ("feature.change", ()),
            ("feature.change", (6, 0, 2)),
            ("feature.change", (1, 1, 1, 1, 1, 1, 1)),
            ("keep.0.present.tokens", (1, 7, 12)),
            ("keep.0.absent.tokens", (1, 7, 2, 24)),
            ("keep.0.absent.pooled", (1, 16)),
        ],
    )
    def test_wrong_shapes(self, path, key, shape):
        written(path, {key: torch.ones(shape)})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2", "int64", "bool"])
    @pytest.mark.parametrize(
        "key",
        [
            "latent.move",
            "words.target.tokens",
            "words.source.pooled",
            "mask.cells",
            "distilled.above",
            "feature.change",
        ],
    )
    def test_tensors_of_types_that_no_direction_has(self, path, key, kind):
        tensor = torch.zeros(SHAPES.get(key, (1, 7, 24)), dtype=torch.uint8)
        written(path, {key: tensor.view(getattr(torch, kind)) if "float" in kind else tensor.to(getattr(torch, kind))})
        self.refused(path, f"not a direction .*tensor {key} is of type")

    @pytest.mark.parametrize("value", [3e38, 1e7])
    def test_values_far_too_large(self, path, value):
        keys = "latent.move", "words.target.tokens", "words.source.tokens", "distilled.above", "distilled.below"
        for key in (*keys, "feature.change"):
            written(path, {key: torch.full(SHAPES.get(key, (1, 7, 24)), value)})
            self.refused(path, f"tensor {key} holds values that are not numbers, or far too large")
        written(path, {"latent.move": torch.full((16, 8, 8), 1e3)}, "latent", {"step": 1e3})
        self.refused(path, "the latent moves by")
        for key in ("distilled.above", "distilled.below"):
            written(path, {key: torch.full((16, 8, 8), 1e5)})
            self.refused(path, "the latent moves by")

    @pytest.mark.parametrize("norm", [0.0, 0.98, 1.02, 1e5])
    def test_changes_of_features_that_are_not_of_norm_1(self, path, norm):
        written(path, {"feature.change": norm * full().feature.change})
        self.refused(path, "tensor feature.change has the norm .*, not 1")

    @pytest.mark.parametrize("layer", ["x" * 5_000, "\ud800", "a\x1b[31mb"])
    def test_layers_are_printable_and_short(self, path, layer):
        written(path, part="feature", change={"layer": layer})
        assert load(path).feature.layer == printable(layer, 200)

    def test_numbers_that_overflow(self, path):
        for number in ("1e999", "-1e400"):
            text = json.dumps({"name": "d", "notes": {"a": 0.25}}).replace("0.25", number)
            safetensors.torch.save_file({"latent": torch.ones(1)}, path, {"format": files.FORMAT, "direction": text})
            self.refused(path, f"not a direction .*{number} in the metadata")

    @pytest.mark.parametrize("opening", ["[", '{"a":'])
    def test_metadata_of_many_brackets(self, path, opening):
        for text in (opening * 100_000, json.dumps({"notes": 1})[:-1] + ', "x": ' + opening * 100_000):
            safetensors.torch.save_file({"latent": torch.ones(1)}, path, {"format": files.FORMAT, "direction": text})
            self.refused(path, "not a direction")

    @pytest.mark.parametrize("key", ["name", "family", "method"])
    @pytest.mark.parametrize("text", ["x" * 5_000_000, "\ud800", "a\x1b[31mb", "\0"])
    def test_what_they_say_is_printable_and_short(self, path, key, text):
        written(path, **{"model": {"family": text}} if key == "family" else {key: text}, sigma="much")
        with pytest.raises(DirectionFileError) as caught:
            load(path)
        assert len(str(caught.value)) <= 1100
        assert str(caught.value).isprintable()
        str(caught.value).encode()

    def test_a_name_that_cannot_be_printed_is_loaded_with_codes(self, path):
        written(path, name="a\ud800b")
        assert load(path).name == "a\\ud800b"

    @pytest.mark.parametrize("field", ["format", "direction"])
    def test_long_or_unprintable_metadata(self, path, field):
        for text in ("\ud800" * 50, "y" * 900_000):
            metadata = {"format": files.FORMAT, "direction": "{}", field: text.encode("unicode_escape").decode()}
            safetensors.torch.save_file({"latent": torch.ones(3)}, path, metadata)
            with pytest.raises(DirectionFileError) as caught:
                load(path)
            assert len(str(caught.value)) <= 1100

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no file names of single bytes")
    def test_a_file_name_in_latin_1(self, tmp_path):
        """Its name holds half of a surrogate pair in Python, which no sentence may."""
        save(bare(), tmp_path / "good.safetensors")
        name = os.fsdecode("gr\u00fcn.safetensors".encode("latin-1"))
        path = tmp_path / name
        (tmp_path / "good.safetensors").rename(path)
        for data in (path.read_bytes(), b"nothing"):
            path.write_bytes(data)
            with pytest.raises(DirectionFileError, match=r"gr\\udcfcn.safetensors' has a name .* rename it") as caught:
                load(path)
            assert str(caught.value).isprintable()

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process as Linux counts it")
    @pytest.mark.parametrize("size", [2**30, 200 * 2**20, 8 * 2**30])
    def test_a_sparse_file_takes_no_memory(self, tmp_path, size):
        """A few kilobytes on the disk that claim to be so many bytes of zeros."""
        meta = {"name": "d", "method": "LOCO", "family": "SD3", "sigma": 0.5, "step": 1.0, "keep": [], "notes": {}}
        meta |= {"model": {"family": "SD3"}, "prompts": {}}
        words = {"kind": "words", "share": 1.0, "source": "picture", "change": False}
        latent = {"kind": "latent", "step": 1.0}
        claims = {
            "latent": (files.FIRST_FORMAT, latent),
            "text.tokens": (files.FIRST_FORMAT, latent),
            "x": (files.FORMAT, latent),
            "header": (files.FORMAT, latent),
            "latent.move": (files.FORMAT, latent),
            "words.target.tokens": (files.FORMAT, words),
            "mask.cells": (files.FORMAT, {"kind": "mask"}),
            "distilled.above": (files.FORMAT, {"kind": "distilled", "picture": "0" * 64, "bend": 0.0}),
            "feature.change": (files.FORMAT, {"kind": "feature", "layer": "middle block"}),
        }
        rows = size // 4096
        claimed = {"dtype": "F32", "shape": [1, rows, 1024], "data_offsets": [0, 4096 * rows]}
        for name, (kind, part) in claims.items():
            metadata = {"format": kind, "direction": json.dumps({**meta, "parts": [part]})}
            text = json.dumps({"__metadata__": metadata, name: claimed}).encode()
            length = size - 8 if name == "header" else len(text)
            with (tmp_path / f"{name}.safetensors").open("wb") as file:
                file.write(length.to_bytes(8, "little") + text)
                file.truncate(size if name == "header" else 8 + len(text) + size)
        self.refused_in_little_memory(*tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process as Linux counts it")
    def test_a_large_tensor_with_one_wrong_value_takes_no_memory(self, path):
        latent = torch.full((1, 50 * 1024, 1024), 1e-4)
        latent[0, -1, -1] = float("nan")
        written(path, {"latent.move": latent})
        self.refused_in_little_memory(path)

    def refused_in_little_memory(self, *paths):
        script = (
            "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
            "from scripts.environment import register_package; register_package()\n"
            "from latent_directions.core.direction_files import load\n"
            "status = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))\n"
            "for path in sys.argv[2:]:\n"
            "    before = status('VmRSS'); open('/proc/self/clear_refs', 'w').write('5')\n"
            "    try:\n        load(pathlib.Path(path))\n"
            "    except ValueError as error:\n        print(status('VmHWM') - before, error)\n"
        )
        command = [sys.executable, "-c", script, files.__file__.rsplit("core", 1)[0], *map(str, paths)]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        for path, line in zip(paths, lines, strict=True):
            kilobytes, sentence = line.split(" ", 1)
            assert int(kilobytes) < 64 * 1024
            assert sentence.startswith(f"'{path.name}' ")

    def test_a_direction_that_moves_nothing(self, path):
        written(path, parts=[{"kind": "keep", "names": ["a hat"]}, {"kind": "mask"}])
        self.refused(path, "neither a move of the latent nor of the words")

    def test_tensors_of_no_part_are_ignored(self, path):
        written(path, {"features.base": torch.ones(3), "mask": torch.ones(1, 8, 8)}, further="x")
        assert same(load(path), full())


class _Bomb:
    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


class TestTooLarge:
    def test_save_refuses_what_load_would_not_read(self, tmp_path):
        for direction, said in (
            (replace(words(), notes={"source": "x" * 2**20}), "too long for a direction file"),
            (replace(words(), words=Words(Prompt(torch.zeros(1).expand(1, 2**17, 1025)))), "larger than a file may be"),
            (replace(bare(), step=1e9), "further than any picture reaches"),
        ):
            with pytest.raises(DirectionTooLargeError, match=said):
                save(direction, tmp_path / "d.safetensors")
        assert not list(tmp_path.iterdir())


class TestFailingSave:
    @pytest.mark.parametrize(
        ("direction", "said"),
        [
            (replace(bare(), latent=torch.full((4, 8, 8), float("nan"))), "tensor latent.move holds values"),
            (replace(words(), words=Words(Prompt(torch.full((1, 7, 24), 1e30)))), "tensor words.target.tokens holds"),
            (replace(bare(), mask=torch.full((1, 8, 8), 2.0)), "tensor mask.cells holds values"),
            (replace(bare(), feature=Feature(torch.full((3, 2), float("nan")), "x")), "tensor feature.change holds"),
            (replace(bare(), feature=Feature(torch.ones(3, 2), "x")), "feature.change has the norm 2.449, not 1"),
            (
                replace(bare(), distilled=Distilled(random(4, 8, 8), random(4, 8, 8), "no digest", 0.0)),
                "no SHA-256 digest",
            ),
            (replace(bare(), notes={"asymmetry": float("nan")}), "NaN or infinity"),
            (replace(bare(), latent=None), "neither a move of the latent nor of the words"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_could_not_be_loaded_is_not_saved(self, tmp_path, direction, said):
        with pytest.raises(
            (DirectionNotSavedError, DirectionTooLargeError), match=f"cannot be saved, .*{said}|further"
        ):
            save(direction, tmp_path / "d.safetensors")
        assert not list(tmp_path.iterdir())

    def test_nothing_is_left(self, tmp_path, monkeypatch):
        def full_disk(tensors, filename, metadata):
            filename.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.safetensors.torch, "save_file", full_disk)
        with pytest.raises(DirectionNotWrittenError, match="could not be written .*No space left"):
            save(full(), tmp_path / "d.safetensors")
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(DirectionNotWrittenError, match="'d.safetensors' could not be written"):
            save(full(), tmp_path / "file" / "d.safetensors")

    def test_the_library_fails_to_write(self, tmp_path, monkeypatch):
        """Its errors are no OSError."""

        def fails(*_):
            msg = "Error while serializing: I/O error: File too large"
            raise safetensors.SafetensorError(msg)

        monkeypatch.setattr(files.safetensors.torch, "save_file", fails)
        with pytest.raises(DirectionNotWrittenError, match="could not be written .*File too large"):
            save(full(), tmp_path / "d.safetensors")

    def test_the_old_file_stays(self, tmp_path, monkeypatch):
        path = tmp_path / "d.safetensors"
        save(bare(), path)

        def full_disk(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.safetensors.torch, "save_file", full_disk)
        with pytest.raises(DirectionNotWrittenError, match="could not be written .*No space left"):
            save(full(), path)
        assert same(load(path), bare())

    def test_notes_that_are_no_json(self, tmp_path):
        direction = Direction("d", "LOCO", "SD3", 0.5, latent=random(4, 3, 3), notes={"tensor": torch.zeros(1)})
        with pytest.raises(TypeError):
            save(direction, tmp_path / "d.safetensors")
        assert not list(tmp_path.iterdir())
