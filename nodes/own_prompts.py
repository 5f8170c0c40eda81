"""The prompts that the anchor puts beside the artist's in a guider: what the picture shows, and what is to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ..core.denoiser import SOURCE
from ..core.direction import KeepPair, Prompt
from .prompts import with_prompt

KEY = "latent_directions"
EDITED = "edited"  # the artist's own positive prompt in a sampling run, edited or not


def converted(source: list, keep: tuple[KeepPair, ...]) -> dict[str, list[dict]]:
    """The source prompt and both prompts of every keep pair, in the form and under the keys that guiders have them."""
    prompts = {SOURCE: source}
    for pair in keep:
        for prompt in (pair.present, pair.absent):
            prompts[prompt_name(prompt)] = with_prompt(source, prompt)
    return {_key(name): comfy.sampler_helpers.convert_cond(conds) for name, conds in prompts.items()}


def prompt_name(prompt: Prompt) -> str:
    """A name that equal prompts share, by which the anchored prediction asks for them."""
    pooled = "" if prompt.pooled is None else digest(prompt.pooled)
    return f"keep {digest(prompt.tokens)} {pooled}"


def _key(name: str) -> str:
    return f"{KEY} {name}"


def digest(tensor: Tensor) -> str:
    """A key that equal tensors share."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


@contextmanager
def as_positive(guider: comfy.samplers.CFGGuider, name: str) -> Iterator[None]:
    """Let a guider answer for a prompt by its name: one of ours, or EDITED for the artist's positive itself."""
    positive = guider.conds["positive"]
    guider.conds["positive"] = positive if name == EDITED else guider.conds[_key(name)]
    try:
        yield
    finally:
        guider.conds["positive"] = positive
