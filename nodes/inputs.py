"""The check that every input of a node passes before the node runs.

ComfyUI checks the ranges of typed values only: a linked value can be anything. What each input may be is read from the
node's own schema.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..core.direction import Direction
from ..core.errors import printable
from .errors import InputError, with_advice
from .sockets import DirectionsSocket, Inversion, InversionSocket

LONGEST_TEXT = 20_000  # characters of a typed text


def checked_inputs(execute: Callable) -> Callable:
    """Decorates a node's `execute`: its inputs are checked against its schema, and errors of `core` get advice.

    Raises:
        InputError: an input is missing, of a wrong kind or outside its range.
    """
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def checked(cls, *args, **kwargs):
        with with_advice():
            bound = signature.bind(cls, *args, **kwargs)
            bound.apply_defaults()
            for declared in cls.define_schema().inputs:
                check_input(declared, bound.arguments[declared.id])
            return execute(cls, *args, **kwargs)

    return checked


def check_input(declared: io.Input, value) -> None:
    """Refuse a value that an input of a node cannot take.

    Raises:
        InputError: what is wrong with it, and what it may be.
    """
    if value is None:
        if not declared.optional:
            msg = f"'{declared.id}' is missing. Connect it, or type a value."
            raise InputError(msg)
        return
    check = next((check for kind, check in _CHECKS.items() if isinstance(declared, kind)), None)
    wrong = "" if check is None else check(declared, value)
    if wrong:
        msg = f"'{declared.id}' {wrong}"
        raise InputError(msg)


def in_short(value) -> str:
    """A value as a sentence can quote it."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return printable(value if isinstance(value, str) else repr(value), 60)


def _number(declared, value) -> str:
    whole = isinstance(declared, io.Int.Input)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return f"is {in_short(value)}, but it must be a {'whole ' if whole else ''}number."
    if not declared.min <= value <= declared.max:  # which NaN is not either
        return f"is {in_short(value)}. It must be {declared.min} to {declared.max}: choose a number in that range."
    return ""


def _text(_declared, value) -> str:
    if not isinstance(value, str):
        return f"is {in_short(value)}, but it must be a text."
    if len(value) > LONGEST_TEXT:
        return f"is a text of {len(value):,} characters. Write at most {LONGEST_TEXT:,}."
    if any("\ud800" <= character <= "\udfff" for character in value):
        return f"is {in_short(value)!r}, which holds half of a character. Type the text again."
    return ""


def _choice(declared, value) -> str:
    if value not in declared.options:
        return f"is {in_short(value)!r}, which is none of its choices. Choose one of: {', '.join(declared.options)}."
    return ""


def _latent(_declared, value) -> str:
    samples = value.get("samples") if isinstance(value, dict) else None
    if getattr(samples, "is_nested", False):
        return "is a set of several latents. Give this node the latent of a picture, such as VAE Encode makes it."
    if not isinstance(samples, torch.Tensor) or samples.ndim < 4 or not samples.numel():
        return "holds no picture. Connect the latent of a picture, such as VAE Encode makes it."
    return ""


def _mask(_declared, value) -> str:
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or not value.numel():
        return "holds no mask. Connect a mask as large as the picture."
    if not torch.isfinite(value).all():
        return "holds values that are not numbers (NaN or infinity). Draw the mask again."
    return ""


def _conditioning(_declared, value) -> str:
    if not isinstance(value, list) or not value or any(entry[0] is None for entry in value):
        return "holds no text. Connect a prompt, such as CLIP Text Encode makes it (it may be empty text)."
    return ""


def _model(_declared, value) -> str:
    return "" if isinstance(value, ModelPatcher) else "is no diffusion model. Connect a MODEL."


def _inversion(_declared, value) -> str:
    return "" if isinstance(value, Inversion) else "is no encoded picture. Connect the inversion of Invert Image."


def _directions(_declared, value) -> str:
    if isinstance(value, list) and value and all(isinstance(direction, Direction) for direction in value):
        return ""
    return "holds no direction. Connect Find Directions or Load Direction."


_CHECKS: dict[type, Callable] = {
    io.Int.Input: _number,
    io.Float.Input: _number,
    io.String.Input: _text,
    io.Combo.Input: _choice,
    io.Latent.Input: _latent,
    io.Mask.Input: _mask,
    io.Conditioning.Input: _conditioning,
    io.Model.Input: _model,
    InversionSocket.Input: _inversion,
    DirectionsSocket.Input: _directions,
}
