"""Direction files: the tensors of one direction as safetensors, the rest as JSON in the metadata."""

from __future__ import annotations

import json
import math
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .direction import Direction, KeepPair, Prompt
from .errors import DirectionFileError, DirectionFormatError, size_in_words

FORMAT = "latent-directions/1"


def save(direction: Direction, path: Path) -> None:
    """Write a direction to a safetensors file.

    The file appears whole or not at all: it is written beside its place and moved there.
    """
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        safetensors.torch.save_file(tensors, partial, {"format": FORMAT, "direction": json.dumps(meta)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        DirectionFileError: the file is missing, no safetensors file (a pickle, say), cut off, or not one of ours.
    """
    if not path.is_file():
        msg = f"There is no direction file '{path.name}'."
        raise DirectionFileError(msg)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copied into memory: tensors that stay mapped change, or crash the process, when the file does
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        msg = (
            f"'{path.name}' is not a readable safetensors file ({error}): it is damaged, or of another kind such as a "
            "pickle, which is never opened."
        )
        raise DirectionFileError(msg) from error
    try:
        if metadata["format"] != FORMAT:
            msg = f"'{path.name}' has format {metadata['format']!r}, but this version reads {FORMAT!r}."
            raise DirectionFormatError(msg)
        return _assemble(json.loads(metadata["direction"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DirectionFileError):
            raise
        msg = f"'{path.name}' is a safetensors file, but not a direction (missing or wrong: {error})."
        raise DirectionFileError(msg) from error


def _tensors(direction: Direction):
    parts = {"text": direction.text}
    for i, pair in enumerate(direction.keep):
        parts |= {f"keep.{i}.present": pair.present, f"keep.{i}.absent": pair.absent}
    if direction.latent is not None:
        yield "latent", direction.latent.detach().cpu().contiguous()
    for key, prompt in parts.items():
        if prompt is not None:
            yield f"{key}.tokens", prompt.tokens.detach().cpu().contiguous()
            if prompt.pooled is not None:
                yield f"{key}.pooled", prompt.pooled.detach().cpu().contiguous()


def _assemble(meta: dict, tensors: dict[str, Tensor]) -> Direction:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            msg = f"tensor {key} holds values that are not numbers"
            raise ValueError(msg)

    def checked(key: str, least: int, most: int) -> Tensor | None:
        tensor = tensors.get(key)
        if tensor is not None and not least <= tensor.ndim <= most:
            msg = f"tensor {key} has shape {size_in_words(tensor)}"
            raise ValueError(msg)
        return tensor

    def prompt(key: str) -> Prompt:
        tokens = checked(f"{key}.tokens", 3, 4)  # some text encoders stack several layers
        if tokens is None:
            msg = f"{key}.tokens"
            raise KeyError(msg)
        return Prompt(tokens, checked(f"{key}.pooled", 2, 2))

    def number(key: str) -> float:
        value = float(meta[key])
        if not math.isfinite(value):
            msg = f"{key} is {value}"
            raise ValueError(msg)
        return value

    if not isinstance(meta["keep"], list):
        msg = "keep is no list"
        raise TypeError(msg)
    if "latent" not in tensors and "text.tokens" not in tensors:
        msg = "neither a move of the latent nor of the words"
        raise ValueError(msg)
    keep = tuple(
        KeepPair(str(name), prompt(f"keep.{i}.present"), prompt(f"keep.{i}.absent"))
        for i, name in enumerate(meta["keep"])
    )
    return Direction(
        name=str(meta["name"]),
        method=str(meta["method"]),
        family=str(meta["family"]),
        sigma=number("sigma"),
        latent=checked("latent", 3, 4),
        step=number("step"),
        text=prompt("text") if "text.tokens" in tensors else None,
        keep=keep,
        notes=dict(meta["notes"]),
    )
