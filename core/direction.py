"""The Direction object: what one slider moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from .anchor import Move, NoiseMove, WordsMove
from .denoiser import SOURCE
from .errors import printable

LONGEST_NAME = 200  # characters of a direction's name, method and family


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conditioning as tensors, which nothing changes once it is made.

    It is compared by identity, so that it can be the key of what was computed from its tensors.

    Attributes:
        tokens: (1, T, W), or more dimensions where a text encoder stacks layers.
        pooled: (1, P) where the model has a pooled vector.
        extra: all other tensors that the text encoder gives, by its names for them: a second encoder's tokens, masks,
            token ids.
        is_change: whether the tensors are a change to be added to those of the picture's own prompt, as in direction
            files of format 1.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    is_change: bool = False

    def parts(self) -> dict[str, Tensor]:
        """All tensors by name."""
        pooled = {} if self.pooled is None else {"pooled": self.pooled}
        return {"tokens": self.tokens, **pooled, **self.extra}


@dataclass(frozen=True)
class Words:
    """A change of words: strength s adds s * share * (D(x, target) - D(x, source)) to the prediction D.

    Attributes:
        target: what strength 1 shows.
        source: what the picture shows; None for the prompt that the picture was encoded with.
        share: factor on the strength.
    """

    target: Prompt
    source: Prompt | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Distilled:
    """What a direction does to one picture, as moves of its clean latent in ComfyUI's latent space.

    Attributes:
        above: change per unit of strength for positive strengths, (C, h, w).
        below: the same for negative strengths: the latent moves by s * below where s < 0.
        picture: digest of the clean latent that it belongs to.
        bend: |z(0) - (z(-1) + z(1)) / 2| / |z(1) - z(-1)|, z(s) the latent sampled at strength s: 0 on a straight line,
            1/2 where all change is on one side.
    """

    above: Tensor
    below: Tensor
    picture: str
    bend: float


@dataclass(frozen=True)
class Feature:
    """What a direction changes inside the network, by which it can be carried over to other pictures.

    Attributes:
        change: unit-norm change of the inner activations h, shaped as those of one picture.
        layer: the layer of the network that they belong to, as the host calls it.
    """

    change: Tensor
    layer: str


@dataclass(frozen=True)
class Fingerprint:
    """What tells the models of one family apart: how the network is built, and a few of its weights.

    Attributes:
        structure: digest of the names and shapes of all parameters.
        weights: values at fixed places of fixed parameters; empty for a parameter that could not be read.
        rounding: how far the format in which the weights are stored may move them, relative.
    """

    structure: str
    weights: tuple[tuple[float, ...], ...] = ()
    rounding: float = 0.0

    def differs_from(self, other: Fingerprint) -> bool:
        """Whether the two are of different models, as far as the formats in which their weights are stored can tell.

        A quarter of the parameters must differ: a LoRA that was merged changes some of them, and a format may keep a
        few badly.
        """
        if self.structure != other.structure:
            return True
        distances = sorted(
            math.dist(mine, others) / max(math.hypot(*mine), math.hypot(*others), 1e-30)
            for mine, others in zip(self.weights, other.weights, strict=False)
            if mine and len(mine) == len(others)
        )
        return bool(distances) and distances[3 * len(distances) // 4] > max(self.rounding, other.rounding)


@dataclass(frozen=True)
class KeepPair:
    """Two prompts that differ in one thing that an edit is to leave as it is: 'with' it and 'without' it."""

    name: str
    present: Prompt
    absent: Prompt


@dataclass(frozen=True)
class Direction:
    """What one slider moves: strength s moves the noisy latent by s * step * latent, and the prediction by its words.

    Attributes:
        name: what an artist sees, such as "smiling" or "direction 1".
        method: how it was found.
        family: model family it was found on, such as "SD3".
        sigma: noise level sigma* it was found at.
        latent: unit-norm move of the noisy latent (C, H, W), model space, or None.
        step: norm of the move at strength 1, in units of the noisy latent.
        words: change of the words, or None.
        keep: what the sampler is to leave alone at every step.
        mask: where the direction acts, in cells of the latent with values 0 to 1: (1, h, w), or (B, h, w) for the
            pictures of a batch; None for everywhere.
        distilled: what it does to the picture that it was distilled for, or None.
        feature: what it changes inside the network, or None where that was not looked at.
        model: fingerprint of the model that it was found on, or None where that is not known.
        notes: singular value, prompts, evaluations and so on; JSON-serialisable.
    """

    name: str
    method: str
    family: str
    sigma: float
    latent: Tensor | None = None
    step: float = 0.0
    words: Words | None = None
    keep: tuple[KeepPair, ...] = ()
    mask: Tensor | None = None
    distilled: Distilled | None = None
    feature: Feature | None = None
    model: Fingerprint | None = None
    notes: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("name", "method", "family"):
            object.__setattr__(self, name, printable(getattr(self, name), LONGEST_NAME))

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

    def prompts(self) -> list[Prompt]:
        """All prompts that a slider along this direction asks the model for."""
        words = [] if self.words is None else [self.words.target, self.words.source]
        kept = [prompt for pair in self.keep for prompt in (pair.present, pair.absent)]
        return [prompt for prompt in (*words, *kept) if prompt is not None]

    def moves(
        self,
        strength: float,
        name_of: Callable[[Prompt], str],
        *,
        recorded: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Move, ...]:
        """What a slider at this strength moves.

        Args:
            strength: 0 moves nothing.
            name_of: the names under which prompts are asked for.
            recorded: whether words are taken on the reference path (see `WordsMove`).
            mask: where the moves act, broadcastable to the latent; the direction's own is for the caller to fit.
        """
        keep = tuple((name_of(pair.present), name_of(pair.absent)) for pair in self.keep)
        moves: tuple[Move, ...] = ()
        if self.latent is not None:
            moves += (NoiseMove(strength=strength, keep=keep, mask=mask, displacement=self.step * self.latent),)
        if self.words is not None:
            away = SOURCE if self.words.source is None else name_of(self.words.source)
            moves += (
                WordsMove(
                    strength=strength * self.words.share,
                    keep=keep,
                    mask=mask,
                    towards=name_of(self.words.target),
                    away=away,
                    recorded=recorded,
                ),
            )
        return moves
