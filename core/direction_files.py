"""Direction files: the tensors of one direction as safetensors, the rest as JSON in the metadata.

docs/direction_files.md describes the format for readers in other programs. A direction is a list of parts, each of a
kind of its own; a reader refuses kinds that it does not know, since without one of its parts a direction is another.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from .direction import LONGEST_NAME, Direction, Distilled, Feature, Fingerprint, KeepPair, Prompt, Words
from .errors import (
    DirectionFileError,
    DirectionFormatError,
    DirectionNotSavedError,
    DirectionNotWrittenError,
    DirectionTooLargeError,
    SeveralMasksError,
    printable,
)
from .tensor_file import DAMAGED, FLOATS, LARGEST, LARGEST_HEADER, WHOLE_NUMBERS, TensorFile, check_size, parsed

FORMAT = "latent-directions/2"
FIRST_FORMAT = "latent-directions/1"
MOST_PARTS = 16
MOST_WEIGHTS = 64  # parameters of a model that a fingerprint samples, and values of each
LARGEST_STEP = 1e6  # norm of a move; that of a picture's noise at sigma 1 is around a thousand
LARGEST_TOKEN_ID = 2**20  # vocabularies of text encoders have a few hundred thousand words
LARGEST_SHARE = 1e3
LARGEST_BEND_IN_FILE = 1e6
LARGEST_THUMBNAIL = 128 * 2**10  # bytes
DIGEST = re.compile("[0-9a-f]{64}")
NOT_UNIT = 1e-2  # how far the norm of a change of features may be from 1: half precision
MOST_DIMENSIONS = 6  # of features; those of a video have channels, time, height and width
MOVING = {"latent", "words", "distilled", "feature"}  # the kinds of parts of which there must be one
PICTURE, STORED = "picture", "stored"  # what the target's words are compared with
TEXTS = ("source", "target")  # notes that are stored as the direction's prompts
KINDS_OF_JSON = {dict: "object", list: "list", str: "text", bool: "truth value"}


def save(direction: Direction, path: Path, thumbnail: bytes | None = None) -> None:
    """Write a direction to a safetensors file.

    The file appears whole and readable, or not at all: it is written beside its place, read, and moved there.

    Args:
        direction: what to write.
        path: where to; its folder is made.
        thumbnail: a JPEG that shows what the direction does; programs that list files may show it.

    Raises:
        DirectionTooLargeError: it would be larger than `load` reads.
        SeveralMasksError: it has a mask for each of several pictures.
        DirectionNotSavedError: `load` would refuse the file for another reason.
        DirectionNotWrittenError: the folder cannot be written.
    """
    if direction.latent is not None and not direction.step * float(direction.latent.norm()) <= LARGEST_STEP:
        msg = f"The direction moves the latent by {direction.step:.4g}, further than any picture reaches."
        raise DirectionTooLargeError(msg)
    if direction.mask is not None and direction.mask.ndim == 3 and len(direction.mask) > 1:
        msg = (
            f"The direction acts in a place of its own in each of {len(direction.mask)} pictures, but a file holds one."
        )
        raise SeveralMasksError(msg)
    if thumbnail is not None and len(thumbnail) > LARGEST_THUMBNAIL:
        msg = f"The thumbnail is larger than a direction file takes ({LARGEST_THUMBNAIL // 2**10} kB)."
        raise DirectionTooLargeError(msg)
    described, tensors = _described(direction)
    try:
        metadata = {"format": FORMAT, "direction": json.dumps(described, allow_nan=False)}
    except ValueError:
        msg = "The direction cannot be saved, because its numbers or notes hold NaN or infinity."
        raise DirectionNotSavedError(msg) from None
    if thumbnail is not None:
        metadata["thumbnail"] = f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}"
    # the header holds the metadata as strings in JSON, quotes escaped, and some 100 bytes a tensor beside its name
    if len(json.dumps(metadata)) + sum(200 + len(name) for name in tensors) > LARGEST_HEADER:
        msg = "The direction's prompts and names are too long for a direction file."
        raise DirectionTooLargeError(msg)
    if sum(tensor.nbytes for tensor in tensors.values()) + LARGEST_HEADER > LARGEST:
        msg = f"The direction and the prompts that it keeps are larger than a file may be ({LARGEST // 2**20} MB)."
        raise DirectionTooLargeError(msg)
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, partial, metadata)
        _loaded(partial)
        partial.replace(path)
    except _Refused as refused:
        msg = f"The direction cannot be saved, because its file could not be loaded again ({refused})."
        raise DirectionNotSavedError(msg) from None
    except (OSError, safetensors.SafetensorError) as error:
        msg = f"'{printable(path.name, 100)}' could not be written ({printable(str(error), 200)})."
        raise DirectionNotWrittenError(msg) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        DirectionFormatError: it is of a format, or has a part of a kind, that this version does not know.
        DirectionFileError: the file is missing, no safetensors file (a pickle, say), cut off, too large, or not one of
            ours.
    """
    name = printable(path.name, 100)
    if not path.is_file():
        msg = f"There is no direction file '{name}'."
        raise DirectionFileError(msg)
    try:
        check_size(path, name)
        return _loaded(path)
    except (safetensors.SafetensorError, OSError) as error:
        msg = f"'{name}' is not a readable safetensors file ({printable(str(error), 200)}): {DAMAGED}."
        raise DirectionFileError(msg) from error
    except _Unknown as unknown:
        msg = f"'{name}' {unknown}."
        raise DirectionFormatError(msg) from None
    except _Refused as refused:
        msg = f"'{name}' is a safetensors file, but not a direction (missing or wrong: {refused})."
        raise DirectionFileError(msg) from None


class _Refused(Exception):
    """What is missing or wrong in a safetensors file."""


class _Unknown(_Refused):
    """What this version does not know."""


def _loaded(path: Path) -> Direction:
    """Read a file whose size has been checked."""
    with safetensors.safe_open(path, framework="pt") as file:  # checks the header, and opens no pickle
        metadata = file.metadata() or {}
    try:
        if metadata["format"] not in (FORMAT, FIRST_FORMAT):
            said = printable(str(metadata["format"]), 60)
            msg = f"has format '{said}', but this version reads '{FORMAT}' and '{FIRST_FORMAT}'"
            raise _Unknown(msg)
        described = _checked(parsed(metadata["direction"]), dict, "the description of the direction")
        with path.open("rb") as file:
            tensors = TensorFile(file)
            fields = (_read if metadata["format"] == FORMAT else _read_first_format)(described, tensors)
        direction = Direction(**fields)
        if not MOVING.intersection(fields):
            msg = "neither a move of the latent nor of the words, nor a change of features"
            raise _Refused(msg)
        _check_widths(direction.prompts())
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        said = "values nested too deeply" if isinstance(error, RecursionError) else printable(str(error), 200)
        raise _Refused(said) from None
    return direction


def _described(direction: Direction) -> tuple[dict, dict[str, Tensor]]:
    """What goes into the metadata, and the tensors by their names."""
    parts, tensors = [], {}
    for kind, row in KINDS.items():
        if (written := row.write(direction)) is not None:
            values, own = written
            parts.append({"kind": kind, **values})
            # safetensors takes no views
            tensors |= {f"{kind}.{name}": tensor.detach().cpu().clone().contiguous() for name, tensor in own.items()}
    texts = {name: text for name in TEXTS if isinstance(text := direction.notes.get(name), str)}
    model = {"family": direction.family}
    if direction.model is not None:
        made = direction.model
        model |= {"structure": made.structure, "weights": made.weights, "rounding": made.rounding}
    described = {
        "name": direction.name,
        "method": direction.method,
        "sigma": direction.sigma,
        "model": model,
        "prompts": texts,
        "parts": parts,
        "notes": {name: note for name, note in direction.notes.items() if name not in texts},
    }
    return described, tensors


def _read(described: dict, tensors: TensorFile) -> dict:
    """The fields of a direction, by their names."""
    model = _checked(described["model"], dict, "model")
    texts = _checked(described["prompts"], dict, "prompts")
    fields = {
        "name": str(described["name"]),
        "method": str(described["method"]),
        "family": str(model["family"]),
        "sigma": _number(described, "sigma", 1e-9, 1e9),
        "model": _fingerprint(model) if "structure" in model else None,
        "notes": _checked(described["notes"], dict, "notes")
        | {name: str(texts[name]) for name in TEXTS if name in texts},
    }
    parts = _checked(described["parts"], list, "parts")
    if len(parts) > MOST_PARTS:
        msg = f"{len(parts)} parts, more than {MOST_PARTS}"
        raise ValueError(msg)
    kinds = [_checked(_checked(part, dict, "a part")["kind"], str, "the kind of a part") for part in parts]
    for kind in kinds:
        if kind not in KINDS:
            said = f"has a part of the kind '{printable(kind, 60)}', which this version of the pack does not know"
            raise _Unknown(said)
        if kinds.count(kind) > 1:
            msg = f"more than one part of the kind '{kind}'"
            raise ValueError(msg)
    for kind, part in zip(kinds, parts, strict=True):
        fields |= KINDS[kind].read(part, tensors)
    return fields


def _read_first_format(described: dict, tensors: TensorFile) -> dict:
    """The fields of a direction from a file of format 1, whose words are a change to be added to embeddings."""
    fields = {name: str(described[name]) for name in ("name", "method", "family")}
    fields["sigma"] = _number(described, "sigma", 1e-9, 1e9)
    fields["notes"] = _checked(described["notes"], dict, "notes")
    step = _number(described, "step", 0.0, LARGEST_STEP)
    fields["keep"] = _keep_pairs(_checked(described["keep"], list, "keep"), tensors)
    if "text.tokens" in tensors.names:
        fields["words"] = Words(_prompt(tensors, "text", is_change=True))
    if "latent" in tensors.names:
        fields |= {"latent": _move(tensors, "latent", step), "step": step}
    return fields


@dataclass(frozen=True)
class _Kind:
    """A kind of part.

    Attributes:
        write: what the part says, and its tensors by their names inside it; None where the direction has no such part.
        read: (what it says, tensors of the file) -> fields of the direction.
    """

    write: Callable[[Direction], tuple[dict, dict[str, Tensor]] | None]
    read: Callable[[dict, TensorFile], dict]


def _write_latent(direction: Direction):
    return None if direction.latent is None else ({"step": direction.step}, {"move": direction.latent})


def _read_latent(part: dict, tensors: TensorFile) -> dict:
    step = _number(part, "step", 0.0, LARGEST_STEP)
    return {"latent": _move(tensors, "latent.move", step), "step": step}


def _write_words(direction: Direction):
    words = direction.words
    if words is None:
        return None
    said = {
        "share": words.share,
        "source": PICTURE if words.source is None else STORED,
        "change": words.target.is_change,
    }
    return said, {
        **_prompt_tensors("target", words.target),
        **({} if words.source is None else _prompt_tensors("source", words.source)),
    }


def _read_words(part: dict, tensors: TensorFile) -> dict:
    share = _number(part, "share", -LARGEST_SHARE, LARGEST_SHARE)
    if part["source"] not in (PICTURE, STORED):
        msg = f"source of the words is neither '{PICTURE}' nor '{STORED}'"
        raise ValueError(msg)
    target = _prompt(tensors, "words.target", is_change=_checked(part["change"], bool, "change"))
    source = None if part["source"] == PICTURE else _prompt(tensors, "words.source")
    return {"words": Words(target, source, share)}


def _write_distilled(direction: Direction):
    made = direction.distilled
    if made is None:
        return None
    return {"picture": made.picture, "bend": made.bend}, {"above": made.above, "below": made.below}


def _read_distilled(part: dict, tensors: TensorFile) -> dict:
    if not DIGEST.fullmatch(part["picture"]):
        msg = "the field 'picture' of the part 'distilled' (made by Prepare Quick Slider) is no SHA-256 digest"
        raise ValueError(msg)
    above, below = (_move(tensors, f"distilled.{side}", 1.0) for side in ("above", "below"))
    if above.shape != below.shape:
        msg = "'above' and 'below' of the part 'distilled' differ in shape"
        raise ValueError(msg)
    return {"distilled": Distilled(above, below, part["picture"], _number(part, "bend", 0.0, LARGEST_BEND_IN_FILE))}


def _write_feature(direction: Direction):
    made = direction.feature
    return None if made is None else ({"layer": made.layer}, {"change": made.change})


def _read_feature(part: dict, tensors: TensorFile) -> dict:
    layer = printable(_checked(part["layer"], str, "layer of the features"), LONGEST_NAME)
    change = tensors.tensor("feature.change", 1, MOST_DIMENSIONS)
    norm = float(change.double().norm())
    if abs(norm - 1) > NOT_UNIT:
        msg = f"tensor feature.change has the norm {norm:.4g}, not 1"
        raise ValueError(msg)
    return {"feature": Feature(change, layer)}


def _write_keep(direction: Direction):
    if not direction.keep:
        return None
    tensors = {}
    for number, pair in enumerate(direction.keep):
        tensors |= _prompt_tensors(f"{number}.present", pair.present) | _prompt_tensors(f"{number}.absent", pair.absent)
    return {"names": [pair.name for pair in direction.keep]}, tensors


def _read_keep(part: dict, tensors: TensorFile) -> dict:
    return {"keep": _keep_pairs(_checked(part["names"], list, "names of keep"), tensors)}


def _write_mask(direction: Direction):
    return None if direction.mask is None else ({}, {"cells": direction.mask})


def _read_mask(_part: dict, tensors: TensorFile) -> dict:
    mask = tensors.tensor("mask.cells", 2, 3, bounds=(0.0, 1.0))
    if mask.ndim == 3 and len(mask) != 1:
        msg = f"tensor mask.cells holds {len(mask)} masks"
        raise ValueError(msg)
    return {"mask": mask}


# The kinds of parts of a direction; to add one, add a row and describe it in docs/direction_files.md.
KINDS: dict[str, _Kind] = {
    "latent": _Kind(_write_latent, _read_latent),
    "words": _Kind(_write_words, _read_words),
    "distilled": _Kind(_write_distilled, _read_distilled),
    "feature": _Kind(_write_feature, _read_feature),
    "keep": _Kind(_write_keep, _read_keep),
    "mask": _Kind(_write_mask, _read_mask),
}


def _prompt_tensors(key: str, prompt: Prompt) -> dict[str, Tensor]:
    return {
        f"{key}.{name}" if name in ("tokens", "pooled") else f"{key}.extra.{name}": tensor
        for name, tensor in prompt.parts().items()
    }


def _prompt(tensors: TensorFile, key: str, *, is_change: bool = False) -> Prompt:
    """The prompt whose tensors are named key.tokens, key.pooled and key.extra."""
    prefix = f"{key}.extra."
    tokens = tensors.tensor(f"{key}.tokens", 3, 4)  # some text encoders stack several layers
    pooled = tensors.tensor(f"{key}.pooled", 2, 2) if f"{key}.pooled" in tensors.names else None
    extra = {
        name.removeprefix(prefix): tensors.tensor(name, 1, 5, FLOATS | WHOLE_NUMBERS)
        for name in sorted(tensors.names)
        if name.startswith(prefix)
    }
    for name, part in extra.items():
        # token ids beyond a model's vocabulary stop a CUDA device for the rest of the process
        if not part.is_floating_point() and not ((part >= 0) & (part < LARGEST_TOKEN_ID)).all():
            msg = f"tensor {key}.extra.{name} holds numbers outside 0 to {LARGEST_TOKEN_ID}"
            raise ValueError(msg)
    return Prompt(tokens, pooled, extra, is_change)


def _keep_pairs(names: list, tensors: TensorFile) -> tuple[KeepPair, ...]:
    return tuple(
        KeepPair(printable(str(name)), _prompt(tensors, f"keep.{i}.present"), _prompt(tensors, f"keep.{i}.absent"))
        for i, name in enumerate(names)
    )


def _move(tensors: TensorFile, name: str, step: float) -> Tensor:
    """A move of a latent, which strength 1 makes `step` times as long."""
    move = tensors.tensor(name, 3, 4)
    if (moved := step * float(move.double().norm())) > LARGEST_STEP:
        msg = f"the latent moves by {moved:.4g}"
        raise ValueError(msg)
    return move


def _fingerprint(model: dict) -> Fingerprint:
    if not DIGEST.fullmatch(model["structure"]):
        msg = "structure of the model is no digest"
        raise ValueError(msg)
    weights = [_checked(values, list, "weights of the model") for values in _checked(model["weights"], list, "weights")]
    if max([len(weights), *map(len, weights)]) > MOST_WEIGHTS:
        msg = "too many weights of the model"
        raise ValueError(msg)
    values = tuple(tuple(_bounded(value, "a weight", -1e6, 1e6) for value in part) for part in weights)
    return Fingerprint(model["structure"], values, _number(model, "rounding", 0.0, 1.0))


def _checked(value, kind: type, what: str):
    """A value of the metadata, where it is of the right kind."""
    if not isinstance(value, kind):
        msg = f"{what} is no {KINDS_OF_JSON[kind]}"
        raise TypeError(msg)
    return value


def _number(values: dict, key: str, least: float, most: float) -> float:
    return _bounded(values[key], key, least, most)


def _bounded(value, what: str, least: float, most: float) -> float:
    value = float(value)
    if not least <= value <= most:
        msg = f"{what} is {value:.4g}, outside {least:.4g} to {most:.4g}"
        raise ValueError(msg)
    return value


def _check_widths(prompts: list[Prompt]) -> None:
    """All prompts are of one text encoder: one prompt each, of the same dimensions and width."""
    tokens = {(len(prompt.tokens), prompt.tokens.ndim, prompt.tokens.shape[-1]) for prompt in prompts}
    pooled = {prompt.pooled.shape for prompt in prompts if prompt.pooled is not None}
    if len(tokens) > 1 or len(pooled) > 1:
        msg = "its prompts differ in width, as those of different text encoders do"
        raise ValueError(msg)
