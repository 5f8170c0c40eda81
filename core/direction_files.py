"""Direction files: the tensors of one direction as safetensors, the rest as JSON in the metadata.

A file is checked by its header, which says the kind and size of every tensor, before any tensor is read.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .direction import Direction, KeepPair, Prompt
from .errors import (
    DirectionFileError,
    DirectionFormatError,
    DirectionNotWrittenError,
    DirectionTooLargeError,
    has_surrogates,
    printable,
)

FORMAT = "latent-directions/1"
LARGEST = 512 * 2**20  # bytes of a file
LARGEST_HEADER = 2**20  # bytes of its header, with the metadata
CHUNK = 2**22  # bytes that are looked at together
LARGEST_STEP = 1e6  # norm of a move; that of a picture's noise at sigma 1 is around a thousand
LARGEST_VALUE = 1e6  # of an embedding; those of text encoders are below a few thousand
DAMAGED = "it is cut off or damaged, or no safetensors file at all (a pickle is never opened)"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE_NUMBERS = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def save(direction: Direction, path: Path) -> None:
    """Write a direction to a safetensors file.

    The file appears whole or not at all: it is written beside its place and moved there.

    Raises:
        DirectionTooLargeError: it would be larger than `load` reads.
        DirectionNotWrittenError: the folder cannot be written.
    """
    if direction.latent is not None and not direction.step * float(direction.latent.norm()) <= LARGEST_STEP:
        msg = f"The direction moves the latent by {direction.step:.4g}, further than any picture reaches."
        raise DirectionTooLargeError(msg)
    tensors = dict(_tensors(direction))
    meta = {
        "name": direction.name,
        "method": direction.method,
        "family": direction.family,
        "sigma": direction.sigma,
        "step": direction.step,
        "keep": [k.name for k in direction.keep],
        "notes": direction.notes,
    }
    text = json.dumps(meta)
    # the header holds the metadata as a string in JSON, quotes escaped, and some 100 bytes a tensor
    if len(json.dumps(text)) + 200 * len(tensors) > LARGEST_HEADER:
        msg = "The direction's prompts and names are too long for a direction file."
        raise DirectionTooLargeError(msg)
    if sum(tensor.nbytes for tensor in tensors.values()) + LARGEST_HEADER > LARGEST:
        msg = f"The direction and the prompts that it keeps are larger than a file may be ({LARGEST // 2**20} MB)."
        raise DirectionTooLargeError(msg)
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, partial, {"format": FORMAT, "direction": text})
        partial.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        msg = f"'{printable(path.name, 100)}' could not be written ({printable(str(error), 200)})."
        raise DirectionNotWrittenError(msg) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        DirectionFileError: the file is missing, no safetensors file (a pickle, say), cut off, too large, or not one of
            ours.
    """
    name = printable(path.name, 100)
    if not path.is_file():
        msg = f"There is no direction file '{name}'."
        raise DirectionFileError(msg)
    try:
        _check_size(path, name)
        with safetensors.safe_open(path, framework="pt") as file:  # checks the header, and opens no pickle
            metadata = file.metadata() or {}
        if metadata["format"] != FORMAT:
            said = printable(str(metadata["format"]), 60)
            msg = f"'{name}' has format '{said}', but this version reads '{FORMAT}'."
            raise DirectionFormatError(msg)
        with path.open("rb") as file:
            meta = json.loads(metadata["direction"], parse_float=_finite, parse_constant=_finite)
            return _assemble(meta, _Reader(file))
    except (safetensors.SafetensorError, OSError) as error:
        msg = f"'{name}' is not a readable safetensors file ({printable(str(error), 200)}): {DAMAGED}."
        raise DirectionFileError(msg) from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DirectionFileError):
            raise
        said = "values nested too deeply" if isinstance(error, RecursionError) else printable(str(error), 200)
        msg = f"'{name}' is a safetensors file, but not a direction (missing or wrong: {said})."
        raise DirectionFileError(msg) from None


def _check_size(path: Path, name: str) -> None:
    """Refuse files that are too large or cut off, without reading their tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    wrong = ""
    if has_surrogates(str(path)):
        wrong = "has a name or a folder that is not in UTF-8, which safetensors cannot open: rename it"
    elif size > LARGEST:
        wrong = f"is {size // 2**20:,} MB large; a direction has at most {LARGEST // 2**20} MB"
    elif size < 8 or header > size - 8:
        wrong = f"is not a readable safetensors file: {DAMAGED}"
    elif header > LARGEST_HEADER:
        wrong = f"has a header of {header // 2**20:,} MB; a direction has at most {LARGEST_HEADER // 2**20} MB"
    if wrong:
        msg = f"'{name}' {wrong}."
        raise DirectionFileError(msg)


def _finite(text: str) -> float:
    """A number of the metadata; NaN and infinities are no JSON, though Python reads and writes them."""
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text} in the metadata"
        raise ValueError(msg)
    return value


class _Reader:
    """The tensors of an open file, each checked by its header, then by its values, before it is read into memory.

    They are read and not mapped: mapped tensors change, or crash the process, when the file does.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._start = 8 + min(LARGEST_HEADER, int.from_bytes(file.read(8), "little"))
        self._header = json.loads(file.read(self._start - 8))
        self.names = self._header.keys() - {"__metadata__"}

    def tensor(self, name: str, least: int, most: int, types: dict[str, torch.dtype] = FLOATS) -> Tensor | None:
        """A tensor of `least` to `most` dimensions; None where the file has none of this name."""
        if name not in self.names:
            return None
        shape, kind = self._header[name]["shape"], self._header[name]["dtype"]
        wrong = ""
        if kind not in types:
            wrong = f"is of type {kind}"
        elif not least <= len(shape) <= most or not all(shape):
            wrong = f"has shape {' x '.join(map(str, shape)) or 'of a single number'}"
        elif types[kind].is_floating_point and (said := self._wrong_values(name, types[kind])):
            wrong = f"holds {said}"
        if wrong:
            msg = f"tensor {name} {wrong}"
            raise ValueError(msg)
        begin, end = self._header[name]["data_offsets"]
        return torch.frombuffer(self._read(begin, end), dtype=types[kind]).view(shape)

    def _read(self, begin: int, end: int) -> bytearray:
        data = bytearray(end - begin)
        self._file.seek(self._start + begin)
        if self._file.readinto(data) != len(data):
            msg = "the file has become shorter"
            raise ValueError(msg)
        return data

    def _wrong_values(self, name: str, dtype: torch.dtype) -> str:
        """What is wrong with the values of a tensor, a chunk at a time; empty where nothing is."""
        begin, end = self._header[name]["data_offsets"]
        largest = 0.0
        for position in range(begin, end, CHUNK):
            values = torch.frombuffer(self._read(position, min(position + CHUNK, end)), dtype=dtype)
            low, high = values.aminmax()
            if not max(-float(low), float(high)) <= LARGEST_VALUE:  # which NaN is not either
                return "values that are not numbers, or far too large"
            largest = max(largest, -float(low), float(high))
        # so large a tensor without a value is a file that was never written to its end
        whole = name == "latent" or name.endswith(".tokens")  # a pooled vector, for example, need not change
        return "nothing but zeros" if whole and not largest and end - begin > CHUNK else ""

    def prompt(self, key: str) -> Prompt:
        """The prompt whose tensors are named key.tokens, key.pooled and key.extra."""
        tokens = self.tensor(f"{key}.tokens", 3, 4)  # some text encoders stack several layers
        if tokens is None:
            msg = f"{key}.tokens"
            raise KeyError(msg)
        prefix = f"{key}.extra."
        extra = {
            name.removeprefix(prefix): self.tensor(name, 1, 5, FLOATS | WHOLE_NUMBERS)
            for name in sorted(self.names)
            if name.startswith(prefix)
        }
        return Prompt(tokens, self.tensor(f"{key}.pooled", 2, 2), extra)


def _tensors(direction: Direction):
    prompts = {} if direction.words is None else {"text": direction.text}
    for i, pair in enumerate(direction.keep):
        prompts |= {f"keep.{i}.present": pair.present, f"keep.{i}.absent": pair.absent}
    if direction.latent is not None:
        yield "latent", direction.latent.detach().cpu().contiguous()
    for key, prompt in prompts.items():
        for name, part in prompt.parts().items():
            full = f"{key}.{name}" if name in ("tokens", "pooled") else f"{key}.extra.{name}"
            yield full, part.detach().cpu().clone(memory_format=torch.contiguous_format)  # safetensors takes no views


def _assemble(meta: dict, read: _Reader) -> Direction:
    def number(key: str, least: float, most: float) -> float:
        value = float(meta[key])
        if not least <= value <= most:
            msg = f"{key} is {value:.4g}, outside {least:.4g} to {most:.4g}"
            raise ValueError(msg)
        return value

    if not isinstance(meta["keep"], list):
        msg = "keep is no list"
        raise TypeError(msg)
    if not read.names & {"latent", "text.tokens"}:
        msg = "neither a move of the latent nor of the words"
        raise ValueError(msg)
    sigma, step = number("sigma", 1e-9, 1e9), number("step", 0.0, LARGEST_STEP)
    notes, words = dict(meta["notes"]), {key: str(meta[key]) for key in ("name", "method", "family")}
    text = read.prompt("text") if "text.tokens" in read.names else None
    keep = tuple(
        KeepPair(printable(str(name)), read.prompt(f"keep.{i}.present"), read.prompt(f"keep.{i}.absent"))
        for i, name in enumerate(meta["keep"])
    )
    _check_widths([text] * (text is not None) + [prompt for pair in keep for prompt in (pair.present, pair.absent)])
    latent = read.tensor("latent", 3, 4)
    if latent is not None and (moved := step * float(latent.double().norm())) > LARGEST_STEP:
        msg = f"the latent moves by {moved:.4g}"
        raise ValueError(msg)
    return Direction(sigma=sigma, latent=latent, step=step, text=text, keep=keep, notes=notes, **words)


def _check_widths(prompts: list[Prompt]) -> None:
    """All prompts are of one text encoder: one prompt each, of the same dimensions and width."""
    tokens = {(len(prompt.tokens), prompt.tokens.ndim, prompt.tokens.shape[-1]) for prompt in prompts}
    pooled = {prompt.pooled.shape for prompt in prompts if prompt.pooled is not None}
    if len(tokens) > 1 or len(pooled) > 1:
        msg = "its prompts differ in width, as those of different text encoders do"
        raise ValueError(msg)
