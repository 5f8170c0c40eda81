"""Damaged direction files: recipes, drawn by hypothesis, and the files that they make of whole ones."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import struct
import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st

from latent_directions.core import direction_files
from latent_directions.core.direction import Direction, Distilled, Feature, Fingerprint, KeepPair, Prompt, Words

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4}
WIDTHS |= {"U64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8, "F4": 0.5, "F6_E2M3": 0.75}
ODD_TYPES = [*WIDTHS, "F6_E3M2", "F8_E4M3FNUZ", "F128", "", "f32", 5, None]
ODD_SHAPES = [[], [0], [-1], [1], [0, 8, 8], [2**63], [2**31, 2**31, 2**31], [1] * 5, [1] * 1000, "16", None, [1.5]]
DEEP = 100_000
FIELDS = ["name", "method", "family", "sigma", "step", "keep", "notes", "model", "prompts", "parts"]
PART_FIELDS = ["kind", "step", "share", "source", "change", "picture", "error", "names", "layer"]
MODEL_FIELDS = ["family", "structure", "weights", "rounding"]
KINDS = [*direction_files.KINDS, "features", "subspace", "", "x" * 5000, "\ud800", 3, None, [], {}]
OF_PARTS = (
    "field of a part", "field of a part left out", "field of the model", "kind of a part", "part twice",
    "part left out",
)  # fmt: skip
LARGE = {
    "latent": [16, 64, 0], "latent.move": [16, 64, 0], "text.tokens": [1, 77, 0], "words.target.tokens": [1, 77, 0],
    "words.source.pooled": [1, 0], "mask.cells": [1, 64, 0], "distilled.above": [16, 64, 0], "other": [0],
}  # fmt: skip
# As text, since JSON that Python would not write is among them.
ODD_JSON = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1e308",
    "1e38",
    "1e30",
    "5e-324",
    '""',
    '"abc"',
    '"NaN"',
    '"1"',
    '"\\ud800"',
    '"a\\u0000b"',
    '"\\u001b[31m\\u202e"',
    "[]",
    "{}",
    '[["a","b"]]',
    '["ab","cd"]',
    '["\\ud800"]',
    '{"a":NaN}',
    '{"a":1e999}',
    '{"\\ud800":"\\udfff"}',
    "9" * 400,
    "9" * 5000,
    f'"{"a" * 5000}"',
    f'"{"a" * 300_000}"',
    f"[{','.join(['1'] * 100_000)}]",
    "[" * DEEP,
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "",
    "{",
    "'a'",
]


def directions() -> list[Direction]:
    """Small directions of every form, to file_damage."""
    noise = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    target, source = (Prompt(random(1, slots, 32), random(1, 16), {"ids": torch.ones(1, slots)}) for slots in (7, 9))
    keep = (KeepPair("glasses", Prompt(random(1, 7, 32), random(1, 16)), Prompt(random(1, 7, 32), random(1, 16))),)
    latent = random(16, 4, 4)
    move = {"latent": latent / latent.norm(), "step": 2.0}
    common = {"family": "SD3", "sigma": 0.75, "notes": {"singular_value": 3.5, "source": "a", "target": "b"}}
    common["model"] = Fingerprint("0123456789abcdef" * 4, ((0.5, -0.25), (0.125,)), 0.25)
    more = {
        "mask": torch.full((1, 4, 4), 0.5),
        "distilled": Distilled(random(16, 4, 4), random(16, 4, 4), "f" * 64, 0.1),
    }
    change = random(8, 4)
    feature = Feature(change / change.norm(), "joint_blocks 2 of 4")
    return [
        Direction("direction 1", "pullback", **move, feature=feature, **common),
        Direction("smiling", "text", words=Words(target), **common),
        Direction("smiling", "HSDS", **move, words=Words(target, source, 0.35), keep=keep, **more, **common),
    ]


def originals() -> list[bytes]:
    """The files of `directions`, and after them the same in format 1."""
    made = directions()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        return [(direction_files.save(d, path, b"\xff\xd8\xff"), path.read_bytes())[1] for d in made] + [
            first_format(d) for d in made
        ]


def first_format(direction: Direction) -> bytes:
    """A file of format 1, which knew nothing of masks, sources and fingerprints."""
    prompts = {} if direction.words is None else {"text": direction.words.target}
    for number, pair in enumerate(direction.keep):
        prompts |= {f"keep.{number}.present": pair.present, f"keep.{number}.absent": pair.absent}
    tensors = {} if direction.latent is None else {"latent": direction.latent}
    for key, prompt in prompts.items():
        tensors |= {f"{key}.tokens": prompt.tokens, f"{key}.pooled": prompt.pooled}
        tensors |= {f"{key}.extra.{name}": part for name, part in prompt.extra.items()}
    names = ("name", "method", "family", "sigma", "step", "notes")
    described = {name: getattr(direction, name) for name in names} | {"keep": [pair.name for pair in direction.keep]}
    metadata = {"format": direction_files.FIRST_FORMAT, "direction": json.dumps(described)}
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        values = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    return joined(header, data)


def recipes() -> st.SearchStrategy:
    """How to damage a file, as (name, arguments)."""
    share, number = st.floats(0, 1, exclude_max=True), st.integers(0, 2**32)
    places = st.lists(st.tuples(share, st.integers(0, 255)), min_size=1, max_size=8)
    field, odd = st.sampled_from(FIELDS), st.sampled_from(ODD_JSON)
    lengths = st.sampled_from([0, 1, 2, 7, 8, 100, 10**8 - 1, 10**8 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
    sizes = st.sampled_from([32 << 20, 128 << 20, 1 << 30, 40 << 30, 1 << 42])
    values = st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0, 1e30])
    tensor_type = st.tuples(number, st.sampled_from(ODD_TYPES), st.booleans())
    every = {
        "flip bytes": places,
        "flip bytes of the header": places,
        "flip bits of the tensors": st.lists(st.tuples(share, st.integers(0, 7)), min_size=1, max_size=20),
        "cut": share,
        "append": st.integers(1, 100_000),
        "header length": st.one_of(lengths, st.integers(0, 2**64 - 1)),
        "header text": st.one_of(odd, st.text(max_size=30)),
        "field": st.tuples(field, odd),
        "two fields": st.tuples(field, odd, field, odd),
        "field left out": field,
        "field of a part": st.tuples(number, st.sampled_from(PART_FIELDS), odd),
        "field of a part left out": st.tuples(number, st.sampled_from(PART_FIELDS)),
        "field of the model": st.tuples(st.sampled_from(MODEL_FIELDS), odd),
        "kind of a part": st.tuples(number, st.sampled_from(KINDS)),
        "part twice": number,
        "part left out": number,
        "all metadata": odd,
        "format": st.sampled_from(
            ["latent-directions/1", "latent-directions/2", "latent-directions/3", "", "a" * 5000, "\x1b", "\ud800"]
        ),
        "type": tensor_type,
        "shape": st.tuples(number, st.sampled_from(ODD_SHAPES)),
        "same size, another shape": st.tuples(number, number),
        "tensor left out": number,
        "tensor renamed": st.tuples(
            number, st.sampled_from([*LARGE, "x", "", "keep.0.x", "words.source.tokens", "é" * 999])
        ),
        "tensors exchanged": st.tuples(number, number),
        "values": st.tuples(number, share, values),
        "all values": st.tuples(number, values),
        "more tensors": st.sampled_from([1, 10, 5000]),
        "offsets": st.tuples(number, st.sampled_from([-1, 0, 1, 2**40, 2**64 - 1])),
        "large and empty": st.tuples(sizes, st.sampled_from(sorted(LARGE)), st.booleans()),
        "many values": st.tuples(
            st.sampled_from(["keep", "parts", "notes", "name"]), st.sampled_from([1000, 10**5, 5 * 10**5])
        ),
        "another file": st.sampled_from(["pickle", "zip", "empty", "text", "zeros", "folder", "pipe", "link"]),
        "random bytes": st.binary(max_size=200),
    }
    # what takes the longest is drawn less often
    rare = {"large and empty", "many values", "more tensors"}
    common = [st.tuples(st.just(n), s) for n, s in every.items() if n not in rare]
    few = [st.tuples(st.just(n), every[n]) for n in sorted(rare)]
    return st.integers(0, 199).flatmap(lambda i: st.one_of(few) if i == 199 else st.one_of(common))


def split(data: bytes) -> tuple[dict, bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict | str, tensors: bytes) -> bytes:
    """A safetensors file."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + tensors


def write(path: Path, data: bytes, recipe: tuple) -> None:
    """Write the file that a recipe makes of `data`, in place of what is at `path`."""
    clear(path)
    name, how = recipe
    if name == "another file":
        _another(path, how)
        return
    made = damaged(data, name, how)
    with path.open("wb") as file:
        file.write(made if isinstance(made, bytes) else made[0])
        if not isinstance(made, bytes):
            file.truncate(made[1])  # the rest is a hole: it takes no space on the disk


def clear(path: Path) -> None:
    """Remove what is at a path."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def _another(path: Path, kind: str) -> None:
    contents = {"pickle": pickle.dumps({"latent": [1.0]}), "zip": b"PK\x03\x04" + b"\0" * 60, "empty": b""}
    contents |= {"text": b"not a file of tensors\n" * 10, "zeros": b"\0" * 4096}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    else:
        path.symlink_to(path)


def damaged(data: bytes, name: str, how) -> bytes | tuple[bytes, int]:
    """The bytes of a damaged file; for a file with a hole at its end, its start and its size."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    if name in ("flip bytes", "flip bytes of the header", "flip bits of the tensors"):
        made = bytearray(data)
        first, last = {"flip bytes": (0, len(data)), "flip bytes of the header": (0, start)}.get(
            name, (start, len(data))
        )
        for share, value in how:
            at = first + int(share * (last - first))
            made[at] = made[at] ^ (1 << value) if name.endswith("tensors") else value
        return bytes(made)
    if name == "cut":
        return data[: int(how * len(data))]
    if name == "append":
        return data + b"\x7f" * how
    if name == "header length":
        return struct.pack("<Q", how) + data[8:]
    if name == "header text":
        return joined(how, data[start:])
    if name == "random bytes":
        return how
    return _with_header(data, name, how)


def _with_header(data: bytes, name: str, how) -> bytes | tuple[bytes, int]:
    header, tensors = split(data)
    keys = [key for key in header if key != "__metadata__"]
    metadata = header["__metadata__"]
    if name in ("field", "two fields", "field left out"):
        fields = {key: json.dumps(value) for key, value in json.loads(metadata["direction"]).items()}
        pairs = [how] if isinstance(how, str) else [how[i : i + 2] for i in range(0, len(how), 2)]
        for pair in pairs:
            if isinstance(pair, str):
                fields.pop(pair, None)
            else:
                fields[pair[0]] = pair[1]
        metadata["direction"] = "{" + ", ".join(f'"{key}": {text}' for key, text in fields.items()) + "}"
    elif name in OF_PARTS:
        metadata["direction"] = _with_parts(json.loads(metadata["direction"]), name, how)
    elif name == "all metadata":
        metadata["direction"] = how
    elif name == "format":
        metadata["format"] = how
    elif name == "many values":
        fields = json.loads(metadata["direction"])
        fields[how[0]] = {
            "keep": ["a"] * how[1],
            "parts": [{"kind": "mask"}] * how[1],
            "notes": {str(i): i for i in range(how[1])},
            "name": "a" * how[1],
        }[how[0]]
        metadata["direction"] = json.dumps(fields)
    elif name == "more tensors":
        header |= {f"x.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(how)}
    elif name == "large and empty":
        return _sparse(header, tensors, *how)
    else:
        tensors = _with_tensors(header, keys, tensors, name, how)
    return joined(header, tensors)


def _with_parts(described: dict, name: str, how) -> str:
    """The description of a direction as JSON, with its parts or its model changed; one of format 1 gets them."""
    parts = described.setdefault("parts", [{"kind": "latent", "step": 2.0}])
    part = parts[(how if isinstance(how, int) else how[0]) % len(parts)] if name != "field of the model" else {}
    place, text = "@", ""  # a place for text that need not be JSON
    if name == "field of a part":
        part[how[1]], text = place, how[2]
    elif name == "field of a part left out":
        part.pop(how[1], None)
    elif name == "field of the model":
        described.setdefault("model", {})[how[0]], text = place, how[1]
    elif name == "kind of a part":
        part["kind"] = how[1]
    elif name == "part twice":
        parts.append(part)
    else:  # part left out
        parts.remove(part)
    return json.dumps(described).replace(f'"{place}"', text)


def _with_tensors(header: dict, keys: list[str], tensors: bytes, name: str, how) -> bytes:
    """Change the header in place, where a recipe concerns tensors; returns their bytes."""
    which = keys[(how if isinstance(how, int) else how[0]) % len(keys)]
    entry = header[which]
    begin, end = entry["data_offsets"]
    if name == "type":
        entry["dtype"] = how[1]
        width = WIDTHS.get(how[1]) if isinstance(how[1], str) else None
        if how[2] and width:  # a shape that fits the number of bytes
            count = int((end - begin) / width)
            rank = len(entry["shape"])
            entry["shape"] = [*[1] * (rank - 1), count] if rank < 3 else [1, *[1] * (rank - 2), count]
    elif name == "shape":
        entry["shape"] = how[1]
    elif name == "same size, another shape":
        count, first = math.prod(entry["shape"]), 2 ** (how[1] % 5)
        shapes = [[count], [1, count], [count, 1, 1], [1, 1, 1, count], [1, 1, 1, 1, count], [first, count // first, 1]]
        entry["shape"] = shapes[how[1] // 5 % len(shapes)]
    elif name == "tensor left out":
        del header[which]
    elif name == "tensor renamed":
        header[how[1]] = header.pop(which)
    elif name == "tensors exchanged":
        other = keys[how[1] % len(keys)]
        header[which], header[other] = header[other], header[which]
    elif name == "offsets":
        entry["data_offsets"] = [begin, end + how[1]]
    else:  # values
        made, count = bytearray(tensors), (end - begin) // 4
        value = struct.pack("<f", how[-1])
        if name == "all values":
            made[begin:end] = value * count
        else:
            at = begin + 4 * int(how[1] * count)
            made[at : at + 4] = value
        return bytes(made)
    return tensors


def _sparse(header: dict, tensors: bytes, size: int, key: str, alone: bool) -> tuple[bytes, int]:
    """A file with one tensor of zeros as large as `size`, most of it a hole."""
    header = copy.deepcopy(header)
    if alone:
        header = {"__metadata__": header["__metadata__"]}
        tensors = b""
    elif key in header:
        key = f"{key}.more"
    shape = LARGE.get(key, [0])
    shape = [*shape[:-1], size // 4 // math.prod(shape[:-1])]
    length = math.prod(shape) * 4
    header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [len(tensors), len(tensors) + length]}
    made = joined(header, tensors)
    return made, len(made) + length
