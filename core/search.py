"""What every method of finding directions shares: its record, its settings, and the search that it works on."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .anchor import ReferenceCache
from .denoiser import SOURCE, Denoiser
from .errors import EqualPredictionsError, NotFiniteError, NothingInsideError, NothingToMoveError, UnknownNameError
from .operators import DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD, Jacobian, prediction_jacobian
from .self_check import SelfCheck, self_check

EQUAL_PREDICTIONS = (
    "The model's prediction is the same under the source and the target prompt at this noise level, so there is no"
    " direction between them."
)
NO_MOVE = "No move of the latent brings about what the target prompt changes."
OUTSIDE_ALONE = "The source and the target prompt change the prediction only outside the mask."
# The root mean square change of D that strength 1 makes, in standard deviations of D, where no words say how far.
CHANGE = 0.25
FEWER = "Only {} directions were found in place of the {} that were asked for, because there are no more here."
# The note of a direction on that change where its slider acts, to first order, for methods that know it.
CHANGE_NOTE = "change"
TARGET, WORDS_SOURCE, FREE, NEGATIVE = "target", "words source", "free", "negative"
AUTOMATIC, FORWARD_ONLY = "automatic", "forward only"
DERIVATIVES = (AUTOMATIC, FORWARD_ONLY, DIFFERENCES, DOUBLE_BACKWARD)
# When LOCO leaves out what changes the outside of the mask: while it looks for moves (ours), or after that (the paper).
RESTRICT_FIRST, PROJECT_AFTER = "restrict first", "project after"
PROJECTIONS = (RESTRICT_FIRST, PROJECT_AFTER)
# How the pullback method goes along a direction.
STRAIGHT, GUIDED, GEODESIC = "straight", "x-space guidance", "geodesic shooting"
PATHS = (STRAIGHT, GUIDED, GEODESIC)


def keep_prompts(number: int) -> tuple[str, str]:
    """Names of the two prompts of keep pair `number`: with what is to be kept, and without it."""
    return f"keep {number} present", f"keep {number} absent"


@dataclass(frozen=True)
class Settings:
    """How to look for directions.

    Attributes:
        count: directions to find, for methods that find several.
        null_rank: directions outside the mask that are projected off.
        keep: number of keep pairs among the denoiser's prompts, named by `keep_prompts`.
        guidance: guidance of the differences between prompts.
        damping: damping of the least-squares methods, relative to K = 1.
        max_pairs: bound on the products with J and J' of the least-squares methods.
        seed: of the vector that the self-check draws, from which searches start.
        words_source: name of the prompt that the target is compared with.
        derivatives: AUTOMATIC, FORWARD_ONLY (no backward pass), DIFFERENCES (neither that nor forward AD: memory as in
            sampling) or DOUBLE_BACKWARD (no forward AD). T-LOCO and pullback take a backward pass with any of them.
        guided: whether the Jacobian is that of the prediction under `guidance`, at twice the evaluations.
        projection: RESTRICT_FIRST or PROJECT_AFTER.
        path: STRAIGHT, GUIDED or GEODESIC.
        path_steps: steps of a path that is not straight.
        path_delta: length of the move that x-space guidance probes the predicted noise with, of a latent with
            a^2 + b^2 = 1.
        path_gamma: share of the change of the predicted noise that each of its steps adds to such a latent.
    """

    count: int = 1
    null_rank: int = 5
    keep: int = 0
    guidance: float = 1.0
    damping: float = 0.01
    max_pairs: int = 16
    seed: int = 0
    words_source: str = SOURCE
    derivatives: str = AUTOMATIC
    guided: bool = False
    projection: str = RESTRICT_FIRST
    path: str = STRAIGHT
    path_steps: int = 16
    path_delta: float = 1.0
    path_gamma: float = 1.0

    def __post_init__(self):
        for what, value, choices in (
            ("derivatives", self.derivatives, DERIVATIVES),
            ("projection", self.projection, PROJECTIONS),
            ("path", self.path, PATHS),
        ):
            if value not in choices:
                msg = f"There is no choice of {what} {value!r}. The choices are: {', '.join(choices)}."
                raise UnknownNameError(msg)

    @property
    def mode(self) -> str:
        """The mode of products with J that is tried first."""
        return self.derivatives if self.derivatives in (DIFFERENCES, DOUBLE_BACKWARD) else FORWARD_AD

    @property
    def jacobian_guidance(self) -> float:
        """Guidance of the prediction whose Jacobian LOCO and T-LOCO take; 1 is none."""
        return self.guidance if self.guided else 1.0

    @property
    def backward(self) -> bool:
        """Whether a backward pass may be taken by methods that can do without."""
        return self.derivatives in (AUTOMATIC, DOUBLE_BACKWARD)


@dataclass(frozen=True)
class FoundDirection:
    """A move of the noisy latent that a search has found.

    Attributes:
        vector: unit-norm, shaped as the latent (1, C, H, W).
        step: norm of the move at strength 1, in units of the noisy latent.
        notes: what is known of it, for a report.
        mask: where it acts at every sampling step, with one channel and values 0 to 1; None for everywhere.
        effect: J v, shaped as the vector, where a method hands it on to be named.
        feature: unit-norm change of the features that the move brings about, (1, ...), where a method looks at them.
    """

    vector: Tensor
    step: float
    notes: dict
    mask: Tensor | None = None
    effect: Tensor | None = None
    feature: Tensor | None = None

    def __post_init__(self):
        object.__setattr__(self, "vector", self.vector.detach())
        if not (torch.isfinite(self.vector).all() and math.isfinite(self.step)):
            msg = "The search ended in values that are not numbers (NaN or infinity)."
            raise NotFiniteError(msg)
        if not self.step > 0:
            msg = "The move that was found has no measurable effect on the prediction, so its length is unknown."
            raise NothingToMoveError(msg)


@dataclass
class Search:
    """A point and its settings, on which a method looks for moves.

    Attributes:
        denoiser: answers to the prompts SOURCE and, as the method needs them, TARGET, WORDS_SOURCE, FREE, NEGATIVE and
            keep pairs.
        x: the noisy latent (1, C, H, W), at noise level `sigma`.
        mask: where the change should happen, (1, 1, H, W) with values 0 to 1, in cells of the latent, or with `decode`
            in pixels; None for everywhere.
        settings: how to look.
        notes: what the report says of the search as a whole.
        remarks: sentences on what an artist should know of it.
        cache: products that another search at the same point may know already.
        key: what these depend on besides point, prompt and settings, such as the model.
        decode: D (p, C, H, W) -> its pictures (p, 3, H', W'), differentiable, for LOCO and T-LOCO, whose Jacobian is
            then that of the decoded prediction, as in the paper; None where they look at the latent.
    """

    denoiser: Denoiser
    x: Tensor
    sigma: float
    mask: Tensor | None = None
    settings: Settings = field(default_factory=Settings)
    notes: dict = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    cache: ReferenceCache = field(default_factory=ReferenceCache)
    key: Hashable = ()
    decode: Callable[[Tensor], Tensor] | None = None

    def jacobian(self, prompt: str = SOURCE, like: Jacobian | None = None, *, as_chosen: bool = False) -> Jacobian:
        """The Jacobian of the prediction here under a prompt, with mode, step and `checked` of `like` where given.

        With `as_chosen` it is that of the prediction under the settings' `jacobian_guidance`, and of its picture where
        there is a `decode`; else that of the plain prediction.
        """
        guidance = self.settings.jacobian_guidance if as_chosen else 1.0
        mode = self.settings.mode if like is None else like.mode
        made = prediction_jacobian(self.denoiser, self.x, self.sigma, prompt, guidance, mode=mode)
        if as_chosen and self.decode is not None:
            predict, decode = made.function, self.decode
            made = replace(made, function=lambda points: decode(predict(points)))
        return made if like is None else replace(made, difference_step=like.difference_step, checked=like.checked)

    @contextmanager
    def checked(
        self,
        *,
        backward: bool,
        prompt: str = SOURCE,
        like: Jacobian | None = None,
        note: str = "self_check",
        as_chosen: bool = False,
    ) -> Iterator[SelfCheck]:
        """The Jacobian after its self-check, which the report tells under `note`; its graphs are freed at the end.

        The check starts from the mode of `like`, or where that is None from the one that the settings ask for.
        `as_chosen` is that of `jacobian`.
        """
        with self.checking(self.jacobian(prompt, like, as_chosen=as_chosen), backward=backward, note=note) as check:
            yield check

    @contextmanager
    def checking(self, candidate: Jacobian, *, backward: bool, note: str = "self_check") -> Iterator[SelfCheck]:
        """The self-check of any Jacobian at this point, told and freed as `checked` does."""
        try:
            with torch.no_grad():  # products that need a graph build their own
                check = self_check(candidate, self.settings.seed, backward=backward)
                self.notes[note] = check.report()
                yield check
        finally:
            candidate.release()


@dataclass(frozen=True)
class Method:
    """All that the rest of the package knows of one method: a row of core/methods.py.

    Attributes:
        name: what it is called in lists, files and reports.
        summary: what it does, in a clause that can follow "name: ".
        run: finds the moves; None where the change of the words themselves is all there is.
        evaluations: (settings, whether there is a mask) -> model evaluations that `run` is expected to take, for a
            progress bar.
        reads: names of the settings that `run` depends on: fields of Settings, "mask", "decode", "features", and "free"
            for the prompt FREE.
        compares_words: whether it needs the target prompt.
        moves_words: whether the change of the words is a part of the direction.
        finds_several: whether it finds as many directions as `count` says.
        is_named: whether each of several directions gets a name, from the words with the most similar effect or else
            from its place; otherwise they are numbered.
        label: what a page shows in place of the name, for readers who do not know the paper; empty: the name.
    """

    name: str
    summary: str
    run: Callable[[Search], list[FoundDirection]] | None
    evaluations: Callable[[Settings, bool], float]
    reads: tuple[str, ...]
    compares_words: bool = True
    moves_words: bool = False
    finds_several: bool = False
    is_named: bool = False
    label: str = ""


def prediction(search: Search, prompt: str) -> Tensor:
    """D(x, prompt) under the guidance of the settings.

    Raises:
        NotFiniteError: it holds values that are not numbers.
    """
    predicted = search.denoiser(search.x, search.sigma, prompt, search.settings.guidance)
    if not torch.isfinite(predicted).all():
        under = _prompt_in_words(prompt)
        msg = f"The model's prediction under {under} holds values that are not numbers (NaN or infinity)."
        raise NotFiniteError(msg)
    return predicted


def _prompt_in_words(name: str) -> str:
    """What an artist calls a prompt of a search."""
    if name.startswith("keep "):
        _, number, which = name.split()
        return f"the {'first' if which == 'present' else 'second'} prompt of kept pair {int(number) + 1}"
    return f"the prompt '{'source' if name == WORDS_SOURCE else name}'"


def words_difference(search: Search, value: Tensor, *, as_chosen: bool = False) -> Tensor:
    """q = D(x, target) - D(x, words source) at the same point: what the words change, in x0 units, shaped as x.

    With `as_chosen` and a `decode` it is the difference of the two pictures, shaped as they are.

    Args:
        search: the point; the guidance of both predictions, and the prompt compared with, are those of its settings.
        value: of the Jacobian that `search` gives with the same `as_chosen` under the source prompt: D(x, source)
            under its guidance, or the picture of that. It is known from the self-check.
        as_chosen: see there.

    Raises:
        NotFiniteError: a prediction holds values that are not numbers.
        EqualPredictionsError: q is zero.
    """
    guidance, source = search.settings.guidance, search.settings.words_source
    known = search.settings.jacobian_guidance if as_chosen else 1.0
    decode = search.decode if as_chosen else None

    def seen(prompt: str) -> Tensor:
        predicted = prediction(search, prompt)
        return predicted if decode is None else decode(predicted)

    before = value if guidance == known and source == SOURCE else seen(source)
    q = seen(TARGET) - before
    if not q.any():
        raise EqualPredictionsError(EQUAL_PREDICTIONS)
    return q


def inside(q: Tensor, mask: Tensor | None) -> Tensor:
    """What the words change inside the mask.

    Raises:
        NothingInsideError: that is nothing.
    """
    q = q if mask is None else mask * q
    if not q.any():
        raise NothingInsideError(OUTSIDE_ALONE)
    return q


def matching_step(image: Tensor, q: Tensor, mask: Tensor | None) -> float:
    """The step at which the effect J v = `image` of a move is, inside the mask, as large as q.

    Raises:
        NothingInsideError: the move has no effect inside the mask.
    """
    effect = image if mask is None else mask * image
    if not effect.any():
        msg = "The move that was found changes the prediction only outside the mask."
        raise NothingInsideError(msg)
    return float(q.norm() / effect.norm())


# What the parts of a search are expected to cost, in evaluations; a progress bar adds them up.


def check_evaluations(settings: Settings, backward: bool) -> int:
    """Evaluations of a self-check."""
    return (10 if backward else 7) + 2 * (settings.mode != FORWARD_AD)


def words_evaluations(settings: Settings, known: float = 1.0) -> int:
    """Evaluations of the differences between prompts; the source's prediction under the guidance `known` is known."""
    is_known = settings.guidance == known and settings.words_source == SOURCE
    return (2 * settings.keep + (1 if is_known else 2)) * guidance_evaluations(settings.guidance)


def guidance_evaluations(guidance: float) -> int:
    """Evaluations of one prediction under guidance."""
    return 1 if guidance == 1 else 2


def pairs_evaluations(count: int) -> float:
    """Evaluations for so many singular vectors, four a pair of products.

    The number of pairs depends on the model; this is the demo model's. Random weights take two to three times as many.
    """
    return 4 * min(60.0, 2 + 5 * count**0.6) if count else 0.0
