"""The direction file: bitwise round trips, also into a new process, and a sentence for every file that is none."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from latent_directions.core import direction_files as files
from latent_directions.core.direction import Direction, KeepPair, Prompt
from latent_directions.core.direction_files import load, save
from latent_directions.core.errors import DirectionFileError, DirectionNotWrittenError, DirectionTooLargeError


def random(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompt(seed: int, pooled: bool = True) -> Prompt:
    extra = {"conditioning_mt5xl": random(1, 3, 5, seed=seed + 70), "mask": torch.tensor([[1, 1, 0]])}
    return Prompt(random(1, 7, 24, seed=seed), random(1, 32, seed=seed + 50) if pooled else None, extra)


def full() -> Direction:
    return Direction(
        name="smiling, très",
        method="HSDS",
        family="SD3",
        sigma=0.1 + 0.2,  # no short decimal
        latent=random(16, 8, 8, seed=1),
        step=1 / 3,
        text=prompt(2),
        keep=(KeepPair("a hat", prompt(3), prompt(4)), KeepPair("grey hair", prompt(5, False), prompt(6, False))),
        notes={"pairs": 11, "least_squares_residual": 1e-3 / 7, "source": "a sad person", "nothing": None},
    )


def bare() -> Direction:
    return Direction(name="direction 1", method="LOCO", family="SDXL", sigma=2.5, latent=random(4, 8, 8), step=2.0)


def words() -> Direction:
    return Direction(name="older", method="text", family="Flux", sigma=0.8, text=prompt(1, False))


def same(a: Direction, b: Direction) -> bool:
    """Equal to the last bit."""

    def tensors(d: Direction) -> list:
        prompts = [d.text, *(p for k in d.keep for p in (k.present, k.absent))]
        return [d.latent, *(t for p in prompts for t in ([None] if p is None else p.parts().values()))]

    def equal(x, y) -> bool:
        if x is None or y is None:
            return x is y
        return x.dtype == y.dtype and torch.equal(x, y)

    def plain(d: Direction):
        return d.name, d.method, d.family, d.sigma, d.step, [k.name for k in d.keep], d.notes

    return plain(a) == plain(b) and all(equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("make", [full, bare, words])
def test_round_trip(make, tmp_path):
    path = tmp_path / "folder" / "a b.safetensors"  # the folder is made
    save(make(), path)
    assert same(load(path), make())
    assert [p.name for p in path.parent.iterdir()] == ["a b.safetensors"]


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
        assert file.metadata()["format"] == "latent-directions/1"
        meta = json.loads(file.metadata()["direction"])
        assert (meta["name"], meta["family"], meta["keep"]) == ("smiling, très", "SD3", ["a hat", "grey hair"])
        assert {"latent", "text.tokens", "text.pooled", "keep.0.present.tokens"} <= set(file.keys())


def written(path, tensors: dict | None = None, **meta):
    """A file like ours, with some of it replaced; a value of None takes a key away."""
    save(full(), path)
    with safetensors.safe_open(path, "pt") as file:
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = json.loads(file.metadata()["direction"])
    metadata = {k: v for k, v in {**metadata, **meta}.items() if v is not None}
    chosen = {k: v for k, v in {**old, **(tensors or {})}.items() if v is not None}
    safetensors.torch.save_file(chosen, path, {"format": files.FORMAT, "direction": json.dumps(metadata)})


class TestFilesThatAreNone:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "bad.safetensors"

    def refused(self, path, match: str):
        with pytest.raises(DirectionFileError, match=match) as caught:
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

    def test_safetensors_of_another_kind(self, path):
        safetensors.torch.save_file({"lora.weight": torch.zeros(3)}, path)
        self.refused(path, "not a direction")
        safetensors.torch.save_file({"a": torch.zeros(3)}, path, {"format": "pt"})
        self.refused(path, "has format 'pt', but this version reads 'latent-directions/1'")
        safetensors.torch.save_file({"a": torch.zeros(3)}, path, {"format": "latent-directions/2", "direction": "{}"})
        self.refused(path, "has format 'latent-directions/2', but this version reads 'latent-directions/1'")

    @pytest.mark.parametrize("header", ["", "no json", "[]", "null", "3", '{"name": "x"}'])
    def test_headers_that_are_no_direction(self, path, header):
        safetensors.torch.save_file({"latent": torch.ones(3)}, path, {"format": files.FORMAT, "direction": header})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize("key", ["name", "method", "family", "sigma", "step", "keep", "notes"])
    def test_missing_entries(self, path, key):
        written(path, **{key: None})
        self.refused(path, f"not a direction .*{key}")

    @pytest.mark.parametrize("key", ["keep.0.present.tokens", "keep.1.absent.tokens"])
    def test_missing_tensors(self, path, key):
        written(path, {key: None})
        self.refused(path, f"not a direction .*{key}")

    @pytest.mark.parametrize("key", ["latent", "text.tokens", "text.pooled", "keep.1.present.tokens"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_numbers(self, path, key, value):
        shape = {"latent": (16, 8, 8), "text.pooled": (1, 32)}.get(key, (1, 7, 24))
        written(path, {key: torch.full(shape, value)})
        self.refused(path, f"tensor {key} holds values that are not numbers")

    @pytest.mark.parametrize("key", ["sigma", "step"])
    @pytest.mark.parametrize("value", ["much", [1], float("nan"), float("inf"), 10**400, 1e308, -1.0])
    def test_numbers_that_are_none(self, path, key, value):
        written(path, **{key: value})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize("change", [{"keep": 3}, {"notes": 3}, {"keep": "x"}, {"notes": {"a": float("nan")}}])
    def test_entries_of_another_type(self, path, change):
        written(path, **change)
        self.refused(path, "not a direction")

    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            ("latent", (8,)),
            ("latent", (1, 1, 16, 8, 8)),
            ("latent", (16, 0, 8)),
            ("text.tokens", (7, 24)),
            ("text.tokens", (1, 0, 24)),
            ("text.tokens", (2, 7, 24)),
            ("text.pooled", ()),
            ("text.pooled", (1, 16)),
            ("text.pooled", (1, 1, 1, 32)),
            ("keep.0.present.tokens", (1, 7, 12)),
            ("keep.0.absent.tokens", (1, 7, 2, 24)),
            ("keep.0.absent.pooled", (1, 16)),
        ],
    )
    def test_wrong_shapes(self, path, key, shape):
        written(path, {key: torch.ones(shape)})
        self.refused(path, "not a direction")

    @pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2", "int64", "bool"])
    @pytest.mark.parametrize("key", ["latent", "text.tokens", "text.pooled"])
    def test_tensors_of_types_that_no_direction_has(self, path, key, kind):
        shape = {"latent": (16, 8, 8), "text.pooled": (1, 32)}.get(key, (1, 7, 24))
        tensor = torch.zeros(shape, dtype=torch.uint8)
        written(path, {key: tensor.view(getattr(torch, kind)) if "float" in kind else tensor.to(getattr(torch, kind))})
        self.refused(path, f"not a direction .*tensor {key} is of type")

    @pytest.mark.parametrize("value", [3e38, 1e7])
    def test_values_far_too_large(self, path, value):
        for key in ("latent", "text.tokens"):
            written(path, {key: torch.full((1, 7, 24) if "tokens" in key else (16, 8, 8), value)})
            self.refused(path, f"tensor {key} holds values that are not numbers, or far too large")
        written(path, {"latent": torch.full((16, 8, 8), 1e3)}, step=1e3)
        self.refused(path, "the latent moves by")

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
        written(path, sigma="much", **{key: text})
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
    @pytest.mark.parametrize("kind", ["another", "a direction", "header"])
    @pytest.mark.parametrize("size", [2**30, 200 * 2**20, 8 * 2**30])
    def test_a_sparse_file_takes_no_memory(self, path, kind, size):
        """A few kilobytes on the disk that claim to be so many bytes of zeros."""
        meta = {"name": "d", "method": "LOCO", "family": "SD3", "sigma": 0.5, "step": 1.0, "keep": [], "notes": {}}
        rows = size // 4096
        claimed = {"dtype": "F32", "shape": [1, rows, 1024], "data_offsets": [0, 4096 * rows]}
        header = {
            "__metadata__": {"format": files.FORMAT, "direction": json.dumps(meta)},
            "latent" if kind == "a direction" else "x": claimed,
        }
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write((size - 8 if kind == "header" else len(text)).to_bytes(8, "little") + text)
            file.truncate(size if kind == "header" else 8 + len(text) + size)
        self.refused_in_little_memory(path)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process as Linux counts it")
    def test_a_large_tensor_with_one_wrong_value_takes_no_memory(self, path):
        latent = torch.full((1, 50 * 1024, 1024), 1e-4)
        latent[0, -1, -1] = float("nan")
        written(path, {"latent": latent})
        self.refused_in_little_memory(path)

    def refused_in_little_memory(self, path):
        script = (
            "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
            "from scripts.environment import register_package; register_package()\n"
            "from latent_directions.core.direction_files import load\n"
            "status = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))\n"
            "before = status('VmRSS'); open('/proc/self/clear_refs', 'w').write('5')\n"
            "try:\n    load(pathlib.Path(sys.argv[2]))\n"
            "except ValueError as error:\n    print(status('VmHWM') - before, error)\n"
        )
        root = files.__file__.rsplit("core", 1)[0]
        output = subprocess.run([sys.executable, "-c", script, root, str(path)], capture_output=True, text=True).stdout
        kilobytes, sentence = output.split(" ", 1)
        assert int(kilobytes) < 64 * 1024
        assert sentence.startswith("'bad.safetensors' ")

    def test_a_direction_that_moves_nothing(self, path):
        written(path, {"latent": None, "text.tokens": None, "text.pooled": None})
        self.refused(path, "not a direction")


class _Bomb:
    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


class TestTooLarge:
    def test_save_refuses_what_load_would_not_read(self, tmp_path):
        for direction, said in (
            (replace(words(), notes={"source": "x" * 2**20}), "too long for a direction file"),
            (replace(words(), text=Prompt(torch.zeros(1).expand(1, 2**17, 1025))), "larger than a file may be"),
            (replace(bare(), step=1e9), "further than any picture reaches"),
        ):
            with pytest.raises(DirectionTooLargeError, match=said):
                save(direction, tmp_path / "d.safetensors")
        assert not list(tmp_path.iterdir())


class TestFailingSave:
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
