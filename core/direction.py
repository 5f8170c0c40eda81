"""The Direction object: what one slider moves, and its safetensors file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import DirectionFileError, InputError

FORMAT = "latent-directions/1"


@dataclass(frozen=True)
class Prompt:
    """A conditioning as tensors: tokens (1, T, W) and, where the model has one, a pooled vector (1, P)."""

    tokens: Tensor
    pooled: Tensor | None = None

    def __sub__(self, other: Prompt) -> Prompt:
        """Slot-wise difference; token slots must be aligned."""
        if self.tokens.shape != other.tokens.shape:
            msg = (
                f"The prompts have different lengths for this text encoder ({self.tokens.shape[1]} and "
                f"{other.tokens.shape[1]} slots), so their words cannot be compared slot by slot. Write 'source' and "
                "'target' with the same number of words."
            )
            raise InputError(msg)
        pooled = None if self.pooled is None or other.pooled is None else self.pooled - other.pooled
        return Prompt(self.tokens - other.tokens, pooled)

    def scaled(self, factor: float) -> Prompt:
        """The same change, `factor` times as large."""
        return Prompt(factor * self.tokens, None if self.pooled is None else factor * self.pooled)


@dataclass(frozen=True)
class KeepPair:
    """Two prompts that differ in one thing that an edit is to leave as it is: 'with' it and 'without' it."""

    name: str
    present: Prompt
    absent: Prompt


@dataclass(frozen=True)
class Direction:
    """One direction of the joint latent; strength s moves x by s * step * latent and the prompt by s * text.

    Attributes:
        name: what an artist sees, such as "smiling" or "direction 1".
        method: how it was found.
        family: model family it was found on, such as "SD3".
        sigma: noise level sigma* it was found at.
        latent: unit-norm move of the noisy latent (C, H, W), model space, or None.
        step: norm of the move at strength 1, in units of the noisy latent.
        text: change of the prompt's embedding at strength 1, or None.
        keep: what the sampler is to leave alone at every step.
        notes: singular value, prompts, evaluations and so on; JSON-serialisable.
    """

    name: str
    method: str
    family: str
    sigma: float
    latent: Tensor | None = None
    step: float = 0.0
    text: Prompt | None = None
    keep: tuple[KeepPair, ...] = ()
    notes: dict = field(default_factory=dict)

    def moved_noise(self, noise: Tensor, strength: float, b: float) -> Tensor:
        """n + s step d / b: the noise that puts the latent at x* + s step d; noise is (B, C, H, W), any device."""
        if self.latent is None:
            return noise
        if noise.shape[1:] != self.latent.shape:
            msg = (
                f"The direction was found on a latent of {_size(self.latent.shape)}, but this picture's is "
                f"{_size(noise.shape[1:])}. Find the direction again on a picture of this size."
            )
            raise InputError(msg)
        return noise + (strength * self.step / b) * self.latent.to(noise)


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
        msg = f"There is no direction file '{path.name}'. Choose one from the list, or save one with Save Direction."
        raise DirectionFileError(msg)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        msg = (
            f"'{path.name}' is not a readable safetensors file ({error}): it is damaged, or of another kind such as a "
            "pickle, which this pack never opens. Save the direction again."
        )
        raise DirectionFileError(msg) from error
    try:
        if metadata["format"] != FORMAT:
            msg = (
                f"'{path.name}' has format {metadata['format']!r}, this version reads {FORMAT!r}. Update the pack or"
                " save it again."
            )
            raise DirectionFileError(msg)
        return _assemble(json.loads(metadata["direction"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DirectionFileError):
            raise
        msg = (
            f"'{path.name}' is a safetensors file, but not a direction (missing or wrong: {error}). Choose a file made"
            " by Save Direction."
        )
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
            msg = f"tensor {key} has shape {_size(tensor.shape)}"
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


def _size(shape: torch.Size) -> str:
    return " x ".join(str(n) for n in shape)
