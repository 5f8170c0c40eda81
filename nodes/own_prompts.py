"""The prompts that the anchor puts beside the artist's in a guider: what the picture shows, and what is to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ..core.direction import KeepPair
from .prompts import with_prompt

KEY = "latent_directions"
SOURCE = f"{KEY} source"


def converted(source: list, keep: tuple[KeepPair, ...]) -> dict[str, list[dict]]:
    """The source prompt and both prompts of every keep pair by their names, in the form that guiders hold."""
    prompts = {SOURCE: source}
    for pair in keep:
        present, absent = keep_names(pair)
        prompts |= {present: with_prompt(source, pair.present), absent: with_prompt(source, pair.absent)}
    return {name: comfy.sampler_helpers.convert_cond(conds) for name, conds in prompts.items()}


def keep_names(pair: KeepPair) -> tuple[str, str]:
    """Names of a pair's two prompts in a guider; equal prompts have equal names."""
    return tuple(f"{KEY} keep {digest(prompt.tokens)}" for prompt in (pair.present, pair.absent))


def digest(tensor: Tensor) -> str:
    """A key that equal tensors share."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


@contextmanager
def as_positive(guider: comfy.samplers.CFGGuider, name: str) -> Iterator[None]:
    """Let a guider answer for one of our prompts in place of the artist's positive."""
    positive = guider.conds["positive"]
    guider.conds["positive"] = guider.conds[name]
    try:
        yield
    finally:
        guider.conds["positive"] = positive
