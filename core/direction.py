"""The Direction object: what one slider moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from .anchor import Move, NoiseMove, WordsMove
from .errors import PromptLengthError


@dataclass(frozen=True)
class Prompt:
    """A conditioning as tensors: tokens (1, T, W) and, where the model has one, a pooled vector (1, P)."""

    tokens: Tensor
    pooled: Tensor | None = None

    def __sub__(self, other: Prompt) -> Prompt:
        """Slot-wise difference; token slots must be aligned.

        Raises:
            PromptLengthError: the prompts fill a different number of slots.
        """
        if self.tokens.shape != other.tokens.shape:
            msg = (
                f"The prompts have different lengths for this text encoder ({self.tokens.shape[1]} and "
                f"{other.tokens.shape[1]} slots), so their words cannot be compared slot by slot."
            )
            raise PromptLengthError(msg)
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

    def moves(self, strength: float, name_of: Callable[[Prompt], str]) -> tuple[Move, ...]:
        """What a slider at this strength moves; `name_of` gives the names under which the keep prompts are asked for.

        The change of the words is left to whoever asks for predictions: c' = c + strength * text.
        """
        keep = tuple((name_of(pair.present), name_of(pair.absent)) for pair in self.keep)
        if self.latent is None:
            return (WordsMove(strength=strength, keep=keep),)
        return (NoiseMove(strength=strength, keep=keep, displacement=self.step * self.latent),)
