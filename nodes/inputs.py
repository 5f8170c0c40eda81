"""The inputs that several nodes share, and the check of a node's inputs against its schema before it runs.

ComfyUI checks the ranges of typed values only: a linked value can be anything. Latents are checked with the model, in
nodes/host.py.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..core.direction import Direction
from ..core.errors import has_surrogates, printable
from .errors import InputError
from .features import MIDDLE
from .sockets import DirectionsSocket, Inversion, InversionSocket

LONGEST_TEXT = 20_000  # characters of a typed text
DIRECTIONS = DirectionsSocket.Input("directions", tooltip="From Find Directions or Load Direction.")
INDEX = io.Int.Input("index", default=0, min=0, max=1000, tooltip="Which direction to use, counted from 0.")
BLOCK = io.Int.Input(
    "block",
    default=MIDDLE,
    min=MIDDLE,
    max=1000,
    optional=True,
    advanced=True,
    tooltip=(
        "The block inside the model whose features are used, counted from 1. 0 takes the one in the middle. A U-Net"
        " has one, its middle block."
    ),
)
STRENGTH_RANGE = {"min": -3.0, "max": 3.0, "step": 0.05}  # of a slider
STRENGTH = io.Float.Input(
    "strength",
    default=1.0,
    **STRENGTH_RANGE,
    display_mode=io.NumberDisplay.slider,
    tooltip="How far to move. 0 is the picture itself, negative goes the other way.",
)


def check_inputs(node: type[io.ComfyNode], values: dict) -> None:
    """Refuse what a node cannot take.

    Args:
        node: the node, whose schema says what its inputs may be.
        values: all inputs by name; the locals() of `execute` as it begins.

    Raises:
        InputError: an input is missing, of a wrong kind or outside its range.
    """
    for declared in node.define_schema().inputs:
        value, wrong = values[declared.id], ""
        if value is None:
            wrong = "" if declared.optional else "is missing. Connect it, or type a value."
        elif (kind := type(declared)) in _CLASSES:
            wrong = "" if isinstance(value, _CLASSES[kind][0]) else _CLASSES[kind][1]
        elif kind in _METHODS:
            wrong = "" if hasattr(value, _METHODS[kind][0]) else _METHODS[kind][1]
        elif kind in _CHECKS:
            wrong = _CHECKS[kind](declared, value)
        if wrong:
            msg = f"'{declared.id}' {wrong}"
            raise InputError(msg)


def in_short(value) -> str:
    """A value as a sentence can quote it."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return printable(value if isinstance(value, str) else repr(value), 60)


def quoted(value) -> str:
    """A value in short, a text in quotation marks."""
    return f"'{in_short(value)}'" if isinstance(value, str) else in_short(value)


def _number(declared, value) -> str:
    whole = isinstance(declared, io.Int.Input)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        return f"is {in_short(value)}, but it must be a {'whole ' if whole else ''}number."
    if not declared.min <= value <= declared.max:  # which NaN is not either
        return f"is {in_short(value)}. It must be {declared.min} to {declared.max}: choose a number in that range."
    return ""


def _text(_declared, value) -> str:
    if not isinstance(value, str):
        return f"is {in_short(value)}, but it must be a text."
    if len(value) > LONGEST_TEXT:
        return f"is a text of {len(value):,} characters. Write at most {LONGEST_TEXT:,}."
    if has_surrogates(value):
        return f"is '{in_short(value)}', which holds an incomplete character (a lone surrogate). Type the text again."
    return ""


def _choice(declared, value) -> str:
    if value not in declared.options:
        return f"is {quoted(value)}, which is none of its choices. Choose one of: {', '.join(declared.options)}."
    return ""


def _mask(_declared, value) -> str:
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or not value.numel():
        return "holds no mask. Connect a MASK."
    if not torch.isfinite(value).all():
        return "holds values that are not numbers (NaN or infinity). Draw the mask again."
    return ""


def _image(_declared, value) -> str:
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[-1] < 3 or not value.numel():
        return "holds no picture. Connect an IMAGE."
    if not torch.isfinite(value).all():
        return "holds values that are not numbers (NaN or infinity). Make the picture again, in a higher precision."
    return ""


def _conditioning(_declared, value) -> str:
    entries = value if isinstance(value, list) else []
    if not entries or not all(
        isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], torch.Tensor) for entry in entries
    ):
        return "holds no text. Connect a prompt, for example from CLIP Text Encode (it may be empty text)."
    if not all(torch.isfinite(tokens).all() for tokens, _ in entries):
        return "holds values that are not numbers (NaN or infinity). Encode the prompt again, in a higher precision."
    return ""


def _sigmas(_declared, value) -> str:
    if not isinstance(value, torch.Tensor) or value.ndim != 1 or len(value) < 2:
        return "holds no noise levels. Connect the sigmas of Encode Picture or of a scheduler."
    if not torch.isfinite(value).all() or (value.diff() > 0).any() or not value[0] > 0 or value[-1] != 0:
        return (
            "must be noise levels that decrease to 0 and start above it. Connect the sigmas of Encode Picture or of a"
            " scheduler, the whole of them."
        )
    return ""


def _directions(_declared, value) -> str:
    if isinstance(value, list) and value and all(isinstance(direction, Direction) for direction in value):
        return ""
    return "holds no direction. Connect Find Directions or Load Direction."


def _truth(_declared, value) -> str:
    return "" if isinstance(value, bool) else f"is {in_short(value)}, but it must be true or false."


_CHECKS: dict[type, Callable] = {
    io.Boolean.Input: _truth,
    io.Int.Input: _number,
    io.Float.Input: _number,
    io.String.Input: _text,
    io.Combo.Input: _choice,
    io.Mask.Input: _mask,
    io.Image.Input: _image,
    io.Conditioning.Input: _conditioning,
    io.Sigmas.Input: _sigmas,
    DirectionsSocket.Input: _directions,
}
_CLASSES: dict[type, tuple[type, str]] = {
    io.Model.Input: (ModelPatcher, "is no diffusion model. Connect a MODEL."),
    InversionSocket.Input: (Inversion, "is no encoded picture. Connect the inversion of Encode Picture."),
}
# Of these any object will do that has the method which the nodes call.
_METHODS: dict[type, tuple[str, str]] = {
    io.Clip.Input: ("tokenize", "is no text encoder. Connect a CLIP."),
    io.ClipVision.Input: ("encode_image", "is no encoder of pictures. Connect Load CLIP Vision."),
    io.Vae.Input: ("decode", "is no VAE. Connect a VAE."),
    io.Noise.Input: ("generate_noise", "is no noise. Connect a NOISE, such as Random Noise."),
}
