"""The Direction object: what one slider moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .anchor import Move, NoiseMove, WordsMove
from .errors import PromptLengthError, PromptPartsError, printable

LONGEST_NAME = 200  # characters of a direction's name, method and family
MASK = "attention_mask"  # how the names of masks over token slots begin
PARTS_DIFFER = "The two prompts' embeddings do not match in '{}' (token ids, for example), which cannot be subtracted."


@dataclass(frozen=True)
class Prompt:
    """A conditioning as tensors.

    Attributes:
        tokens: (1, T, W), or more dimensions where a text encoder stacks layers.
        pooled: (1, P) where the model has a pooled vector.
        extra: all other tensors that the text encoder gives, by its names for them: a second encoder's tokens, masks,
            token ids.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __sub__(self, other: Prompt) -> Prompt:
        """Slot-wise difference; token slots must be aligned.

        Masks over token slots are left out of the result. Other integer and boolean tensors cannot be subtracted: they
        must be equal in both prompts, and are left out too.

        Raises:
            PromptLengthError: the prompts fill a different number of slots.
            PromptPartsError: a tensor of `extra` is missing in one of them, has another shape, or cannot be subtracted.
        """
        if self.tokens.shape != other.tokens.shape:
            msg = (
                f"The prompts have different lengths for this text encoder ({self.tokens.shape[1]} and "
                f"{other.tokens.shape[1]} slots), so their words cannot be compared slot by slot."
            )
            raise PromptLengthError(msg)
        pooled = None if self.pooled is None or other.pooled is None else self.pooled - other.pooled
        extra = {}
        for name in sorted(self.extra.keys() | other.extra.keys()):
            if name.startswith(MASK):
                continue
            mine, others = self.extra.get(name), other.extra.get(name)
            match = mine is not None and others is not None and mine.shape == others.shape
            if match and mine.is_floating_point():
                extra[name] = mine - others
            elif not (match and torch.equal(mine, others)):
                raise PromptPartsError(PARTS_DIFFER.format(printable(name, 60)))
        return Prompt(self.tokens - other.tokens, pooled, extra)

    def same_slots(self, other: Prompt) -> bool:
        """Whether both prompts fill the same token slots, as far as their masks tell."""
        for name in self.extra.keys() | other.extra.keys():
            if name.startswith(MASK):
                first, *second = (prompt.extra[name] for prompt in (self, other) if name in prompt.extra)
                # encoders leave out a mask of ones
                if not torch.equal(first, second[0] if second else torch.ones_like(first)):
                    return False
        return True

    def scaled(self, factor: float) -> Prompt:
        """The same change, `factor` times as large."""
        pooled = None if self.pooled is None else factor * self.pooled
        return Prompt(factor * self.tokens, pooled, {name: factor * part for name, part in self.extra.items()})

    def parts(self) -> dict[str, Tensor]:
        """All tensors by name."""
        pooled = {} if self.pooled is None else {"pooled": self.pooled}
        return {"tokens": self.tokens, **pooled, **self.extra}


@dataclass(frozen=True)
class KeepPair:
    """Two prompts that differ in one thing that an edit is to leave as it is: 'with' it and 'without' it."""

    name: str
    present: Prompt
    absent: Prompt


@dataclass(frozen=True)
class Direction:
    """One direction of latent and prompt embedding; strength s moves x by s * step * latent and the prompt by s * text.

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

    def __post_init__(self):
        for words in ("name", "method", "family"):
            object.__setattr__(self, words, printable(getattr(self, words), LONGEST_NAME))

    def at(self, sigma: float, scale: Callable[[float], tuple[float, float]]) -> Direction:
        """The direction for a start at noise level `sigma`, its step scaled by b(sigma) / b(own sigma) (ours).

        So the noise n of x = a x0 + b n moves equally far. Unscaled, a direction found at a high level would move the
        noise at a low level far too much.

        Args:
            sigma: the level to start at.
            scale: noise level -> (a, b).
        """
        if self.latent is None or math.isclose(sigma, self.sigma, rel_tol=1e-6):
            return self
        return replace(self, sigma=sigma, step=self.step * scale(sigma)[1] / scale(self.sigma)[1])

    def moves(self, strength: float, name_of: Callable[[Prompt], str]) -> tuple[Move, ...]:
        """What a slider at this strength moves; `name_of` gives the names under which the keep prompts are asked for.

        The change of the words is left to whoever asks for predictions: c' = c + strength * text.
        """
        keep = tuple((name_of(pair.present), name_of(pair.absent)) for pair in self.keep)
        if self.latent is None:
            return (WordsMove(strength=strength, keep=keep),)
        return (NoiseMove(strength=strength, keep=keep, displacement=self.step * self.latent),)
