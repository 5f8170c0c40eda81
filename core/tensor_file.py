"""Reads the tensors of a safetensors file that may be damaged or hostile: every claim is checked before it is trusted.

The header says the kind and size of every tensor. It is bounded itself, and no tensor is read into memory before the
header and then the values have passed their checks, a chunk at a time.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import DirectionFileError, has_surrogates

LARGEST = 512 * 2**20  # bytes of a file
LARGEST_HEADER = 2**20  # bytes of its header, with the metadata
CHUNK = 2**22  # bytes that are looked at together
LARGEST_VALUE = 1e6  # of an embedding; those of text encoders are below a few thousand
DAMAGED = "it is cut off or damaged, or no safetensors file at all (a pickle is never opened)"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE_NUMBERS = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def check_size(path: Path, name: str) -> None:
    """Refuse files that are too large or cut off, without reading their tensors; `name` is for the message."""
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


def parsed(text: str) -> object:
    """The value of a JSON text; NaN and infinities are no JSON, though Python reads and writes them."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text} in the metadata"
        raise ValueError(msg)
    return value


class TensorFile:
    """The tensors of an open file, whose header safetensors has accepted.

    They are read and not mapped: mapped tensors change, or crash the process, when the file does.

    Attributes:
        names: of all its tensors.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._start = 8 + min(LARGEST_HEADER, int.from_bytes(file.read(8), "little"))
        self._header = json.loads(file.read(self._start - 8))
        self.names = self._header.keys() - {"__metadata__"}

    def tensor(
        self,
        name: str,
        least: int,
        most: int,
        types: dict[str, torch.dtype] = FLOATS,
        bounds: tuple[float, float] = (-LARGEST_VALUE, LARGEST_VALUE),
    ) -> Tensor:
        """A tensor of `least` to `most` dimensions.

        Args:
            name: its name in the file.
            least: fewest dimensions.
            most: most dimensions.
            types: the types that it may have.
            bounds: the lowest and the highest value that floating-point numbers may have.

        Raises:
            KeyError: the file has none of this name.
            ValueError: it is of another type or shape, or holds other values.
        """
        if name not in self.names:
            raise KeyError(name)
        shape, kind = self._header[name]["shape"], self._header[name]["dtype"]
        wrong = ""
        if kind not in types:
            wrong = f"is of type {kind}"
        elif not least <= len(shape) <= most or not all(shape):
            wrong = f"has shape {' x '.join(map(str, shape)) or 'of a single number'}"
        elif said := self._wrong_values(name, types[kind], bounds):
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

    def _wrong_values(self, name: str, dtype: torch.dtype, bounds: tuple[float, float]) -> str:
        """What is wrong with the values of a tensor, a chunk at a time; empty where nothing is."""
        begin, end = self._header[name]["data_offsets"]
        only_zeros = True
        for position in range(begin, end, CHUNK):
            data = self._read(position, min(position + CHUNK, end))
            # of whole numbers every value will do
            values = torch.frombuffer(data, dtype=dtype if dtype.is_floating_point else torch.uint8)
            low, high = (float(value) for value in values.aminmax())
            if dtype.is_floating_point and not (bounds[0] <= low and high <= bounds[1]):  # which NaN is not either
                if bounds[0] == -LARGEST_VALUE:
                    return "values that are not numbers, or far too large"
                return f"values that are not numbers from {bounds[0]:.4g} to {bounds[1]:.4g}"
            only_zeros = only_zeros and not (low or high)
        # so large a tensor without a value is a file that was never written to its end
        return "nothing but zeros" if only_zeros and end - begin > CHUNK else ""
