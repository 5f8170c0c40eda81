"""The anchored prediction: it leads every deterministic sampler back to the encoded picture where nothing is moved.

With the reference path x_ref(sigma) = a x0 + b n the sampler sees
    D'(x) = x0 + w { M P [D(x, prompt) - D(x_ref, source)] + sum_j s_j M_j P_j [D(y, towards_j) - D(y, away_j)] }.
The first bracket, the response, is what moves of the noise and of the sampler's own prompt bring about, and what has
been moved already changes further on. The sum is what words add: y is the sampled point x where they are live, and
x_ref where they are recorded. P_j projects off the changes of prediction between the two prompts of each keep pair of
move j, M_j is its mask; words with a range of noise levels are left out of the sum outside of it. P is the projection
of all moves of the noise together, M the cell-wise maximum of all masks, or 1 where the sampler asks with another
prompt than the source, which acts everywhere. w is the weight. Where x is x_ref and the sampler asks with the source
prompt, the response is zero by definition and nothing is evaluated for it: D' = x0 there, and a sampler that is exact
for a constant prediction ends at x0.

Our construction; compare direct inversion (arXiv 2310.01506). The brackets may be averaged over several noises n. With
noise drawn anew at every level Euler's method on D' is FlowEdit (arXiv 2412.08629), and edit-friendly DDPM inversion
without its own noise (arXiv 2304.06140). Live words at strength 1 are FlowEdit's difference; signed strengths, keeps,
masks and recorded words are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .denoiser import SOURCE
from .errors import NoiseLevelsError, NotFiniteError, ShapeError, UnknownNameError, size_in_words
from .inversion import seeded_noise
from .linalg import orthonormal_span, project_off

# Rounding differs between two computations of the same point; below this relative distance they are the same point.
SNAP = 1e-5
# Samplers that work with the logarithm of the noise level give back the levels of their schedule to this, relative.
LEVEL_ROUNDING = 1e-5
STEP_ROUNDING = 1e-6  # of a share times the number of steps: 0.3 of 10 steps are 3
# Noise levels that are closer than this share their fresh noise, relative; rounding is a thousand times smaller.
LEVEL_STEP = 1e-3
Predictions = Callable[[Tensor, float, Sequence[str]], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Move:
    """One thing that an edit moves.

    Attributes:
        strength: how far; 0 moves nothing, negative strengths move the other way.
        keep: pairs of prompts (with, without) whose difference in prediction the edit must not follow.
        mask: where the edit acts, broadcastable to the latent, values 0 to 1; None for everywhere.
    """

    strength: float
    keep: tuple[tuple[str, str], ...] = ()
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NoiseMove(Move):
    """A move of the noise that sampling starts from.

    Attributes:
        displacement: what strength 1 adds to the noisy latent at sigma*, (C, H, W) or (1, C, H, W).
    """

    displacement: Tensor


@dataclass(frozen=True, kw_only=True)
class WordsMove(Move):
    """A move of the prediction, by the difference of two prompts.

    Attributes:
        towards: name of the prompt that strength 1 should show.
        away: name of the prompt that describes the picture as it is.
        recorded: whether the difference is taken on the reference path, once for all runs on a picture, in place of the
            sampled point.
        levels: the noise levels at which the words act, from the first, included, down to the second, left out; None
            for all levels. See `levels_of_steps`.
    """

    towards: str
    away: str = SOURCE
    recorded: bool = False
    levels: tuple[float, float] | None = None

    def acts_at(self, sigma: float) -> bool:
        """Whether the words act at a noise level; levels that differ by rounding are the same."""
        if self.levels is None:
            return True
        highest, lowest = self.levels
        return lowest * (1 + LEVEL_ROUNDING) < sigma <= highest * (1 + LEVEL_ROUNDING)


@dataclass(frozen=True)
class NoisePaths:
    """The noises n of the reference paths a x0 + b n over which the model's change is averaged.

    Attributes:
        base: the noise (B, C, H, W) that sampling starts from when nothing is moved.
        seeds: seeds of the further noises; with `fresh`, of all noises.
        fresh: whether noise is drawn anew at every noise level, in place of `base` too.
    """

    base: Tensor
    seeds: tuple[int, ...] = ()
    fresh: bool = False

    def __post_init__(self):
        if self.fresh and not self.seeds:
            msg = "Fresh noise needs the seeds that it is drawn from, but there are none."
            raise UnknownNameError(msg)

    def at(self, sigma: float) -> list[Tensor]:
        """The noises at one noise level; the same seeds and level give the same noises.

        Fresh noise is the same for levels that differ by rounding, as those of two devices do, but for the few at the
        edge of LEVEL_STEP.
        """
        if not self.fresh:
            return [self.base, *(seeded_noise(self.base, seed) for seed in self.seeds)]
        level = round(math.asinh(1e6 * sigma) / LEVEL_STEP)  # as the logarithm, but defined at 0 too
        return [seeded_noise(self.base, hash((seed, level)) & 0xFFFFFFFFFFFFFFFF) for seed in self.seeds]


@dataclass
class ReferenceCache:
    """Tensors that belong to the reference path, shared by all strengths.

    When it is full, entries of other settings than the newest are dropped; after that it stores no more, because runs
    ask for the same entries in the same order, and dropping the oldest would drop each just before it is used.

    Attributes:
        max_bytes: size of all entries beyond which none is stored.
        bytes: their size now.
        full: whether an entry was not stored, since other settings last gave way.
    """

    max_bytes: int = 512 * 2**20
    _entries: dict[Hashable, dict[Hashable, Tensor]] = field(default_factory=dict)  # settings -> key -> tensor
    bytes: int = 0
    full: bool = False

    def get(
        self, settings: Hashable, keys: Sequence[Hashable], compute: Callable[[list[Hashable]], Iterable[Tensor]]
    ) -> list[Tensor]:
        """The tensors of several keys.

        Args:
            settings: what all tensors of a run depend on.
            keys: what is asked for.
            compute: called once with the keys that are not stored, if there are any; gives their tensors in that order.
        """
        stored = self._entries.setdefault(settings, {})
        missing = [key for key in dict.fromkeys(keys) if key not in stored]
        computed = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        for key, value in computed.items():
            if self.bytes + value.nbytes > self.max_bytes:
                self._drop_all_but(settings)
            if self.bytes + value.nbytes > self.max_bytes:
                self.full = True
            else:
                stored[key] = value
                self.bytes += value.nbytes
        return [stored[key] if key in stored else computed[key] for key in keys]

    def _drop_all_but(self, settings: Hashable) -> None:
        self._entries, self.full = {settings: self._entries[settings]}, False
        self.bytes = sum(value.nbytes for value in self._entries[settings].values())


@dataclass
class AnchoredPrediction:
    """D' of one sampling run.

    Attributes:
        x0: the clean latent of the picture (B, C, H, W), in the model's space.
        paths: the noises of the reference paths; they are moved to x0's device and kept there.
        noised: (x0, noise, sigma) -> a x0 + b n, such as `Denoiser.noised`.
        moves: what is moved. With none, SOURCE as the prompt and a start on the reference path, sampling ends at x0.
        weight: w, how much of the model's change is let through.
        prompt: name of the prompt that the sampler itself asks with, which may be an edited one.
        cache: predictions on the reference paths, for runs on the same x0 and paths.
        key: what cached predictions depend on besides x0, paths, level and prompt.
        snap: distance to x_ref, relative to its largest value, below which x is replaced by x_ref.
    """

    x0: Tensor
    paths: NoisePaths
    noised: Callable[[Tensor, Tensor, float], Tensor]
    moves: Sequence[Move] = ()
    weight: float = 1.0
    prompt: str = SOURCE
    cache: ReferenceCache = field(default_factory=ReferenceCache)
    key: Hashable = ()
    snap: float = SNAP

    def __post_init__(self):
        self._noises = [] if self.paths.fresh else [noise.to(self.x0) for noise in self.paths.at(0.0)]
        self.noise = self._noises[0] if self._noises else self.paths.base.to(self.x0)
        self._moves = [move for move in self.moves if move.strength]

    def reference(self, sigma: float) -> Tensor:
        """x_ref = a x0 + b n of the path that sampling starts on when nothing is moved."""
        return self.noised(self.x0, self.noise, sigma)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float, predictions: Predictions) -> Tensor:
        """D'(x) (B, C, H, W).

        Args:
            x: the point (B, C, H, W) that the sampler asks at.
            sigma: its noise level.
            predictions: (x, sigma, prompt names) -> D(x, sigma, prompt) for each of them. It answers to SOURCE,
                `prompt` and the names in the moves; all prompts of a point are asked for in one call.
        """
        point = _Point(self, x, sigma, predictions)
        words = [move for move in self._moves if isinstance(move, WordsMove) and move.acts_at(sigma)]
        live = [name for move in words if not move.recorded for name in (move.towards, move.away)]
        found = point.at_sample([self.prompt, *live] if point.responds else live)
        change = torch.zeros_like(self.x0)
        if point.responds:
            response = point.responding * (found[self.prompt] - point.on_path([SOURCE])[SOURCE])
            response = point.projected(response, [move for move in self._moves if isinstance(move, NoiseMove)])
            change = _masked(response, union_of_masks(self._moves) if self.prompt == SOURCE else None)
        for move in words:
            told = point.on_path([move.towards, move.away]) if move.recorded else found
            difference = point.projected(told[move.towards] - told[move.away], [move])
            change = change + move.strength * _masked(difference, move.mask)
        return self.x0 + self.weight * change


class _Point:
    """Predictions at one point that the sampler asks at, and on the reference paths at its noise level."""

    def __init__(self, anchor: AnchoredPrediction, x: Tensor, sigma: float, predictions: Predictions):
        self._anchor, self._sigma, self._predictions = anchor, sigma, predictions
        x_ref = anchor.reference(sigma)
        self._displacement = snap_to_reference(x, x_ref, anchor.snap) - x_ref
        moved = self._displacement.flatten(1).any(1)
        self._any_moved = bool(moved.any())
        # the samples of the batch that have a response, as factors: rounding must not give the others one
        self.responding = (moved | (anchor.prompt != SOURCE)).view(-1, *[1] * (x.ndim - 1)).to(x)
        self.responds = self._any_moved or anchor.prompt != SOURCE
        noises = anchor._noises or [noise.to(x) for noise in anchor.paths.at(sigma)]
        self._points = [anchor.noised(anchor.x0, noise, sigma) for noise in noises]

    def at_sample(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Mean predictions beside the reference paths by prompt: at the sampled point and its like on other paths."""
        # the sampler's own prompt is not cached, because another run may ask with another one
        own = self._anchor.prompt
        asked = [name for name in dict.fromkeys(names) if self._any_moved or (name == own and own != SOURCE)]
        known = [name for name in names if name not in asked]
        beside = self._mean(asked, [point + self._displacement for point in self._points]) if asked else []
        return dict(zip(asked, beside, strict=True)) | (self.on_path(known) if known else {})

    def on_path(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Mean predictions on the reference paths by prompt, from the cache where they are known."""
        found = self._cached(names, lambda missing: self._mean(missing, self._points))
        return dict(zip(names, found, strict=True))

    def projected(self, change: Tensor, moves: Sequence[Move]) -> Tensor:
        """The part of a change that is orthogonal to what the moves keep."""
        pairs = tuple(dict.fromkeys(pair for move in moves for pair in move.keep))
        if not pairs:
            return change

        def span(_missing: list) -> list[Tensor]:
            names = list(dict.fromkeys(name for pair in pairs for name in pair))
            found = dict(zip(names, self._mean(names, self._points), strict=True))
            changes = [found[present] - found[absent] for present, absent in pairs]
            if not all(torch.isfinite(change).all() for change in changes):
                msg = (
                    "The model's predictions for what is to be kept hold values that are not numbers (NaN or infinity)."
                )
                raise NotFiniteError(msg)
            return [orthonormal_span(changes)]

        (basis,) = self._cached([pairs], span)
        return project_off(change, basis)

    def _mean(self, names: Sequence[str], points: Sequence[Tensor]) -> list[Tensor]:
        asked = [self._predictions(point, self._sigma, names) for point in points]
        return [_mean(of_name) for of_name in zip(*asked, strict=True)]

    def _cached(self, keys: Sequence[Hashable], compute: Callable[[list], Iterable[Tensor]]) -> list[Tensor]:
        anchor = self._anchor
        settings = (anchor.paths.seeds, anchor.paths.fresh, anchor.key)
        level = float(self._sigma)
        keyed = [(level, key) for key in keys]
        return anchor.cache.get(settings, keyed, lambda missing: compute([key for _, key in missing]))


def levels_of_steps(sigmas: Sequence[float], start: float, end: float) -> tuple[float, float] | None:
    """The noise levels of a share of a run's steps, as `WordsMove.levels` (ours).

    Step k of n goes from sigmas[k] to sigmas[k + 1], and belongs to the share when start <= k / n < end. A sampler that
    predicts several times in a step, also between the levels of the schedule, is decided by the level it predicts at:
    what heun predicts at the end of a step counts as the step after it, which begins there.

    Args:
        sigmas: the n + 1 descending noise levels of the run.
        start: 0 to 1.
        end: 0 to 1, above `start`; with 1 the end of the last step is included.

    Returns:
        The level where the first of the steps begins and the one where the last of them ends; None for all steps.

    Raises:
        NoiseLevelsError: the share holds no step.
    """
    steps = len(sigmas) - 1
    inside = [k for k in range(steps) if start * steps - STEP_ROUNDING <= k < end * steps - STEP_ROUNDING]
    if not inside:
        msg = (
            f"No sampling step begins between {start:g} and {end:g}: this run has {steps} steps, each"
            f" {1 / steps:.2g} of it."
        )
        raise NoiseLevelsError(msg)
    if len(inside) == steps:
        return None
    lowest = -math.inf if inside[-1] == steps - 1 else float(sigmas[inside[-1] + 1])
    return float(sigmas[inside[0]]), lowest


def moved_noise(noise: Tensor, moves: Sequence[Move], b: float) -> Tensor:
    """n + sum_j s_j d_j / b: the noise (B, C, H, W) that puts the noisy latent at x* + sum_j s_j d_j.

    Args:
        noise: n, on any device.
        moves: those of the noise count.
        b: of the noise process x = a x0 + b n at sigma*.

    Raises:
        ShapeError: a move was found on a latent of another size.
    """
    for move in moves:
        if isinstance(move, NoiseMove):
            shape = move.displacement.shape
            if noise.shape[1:] != shape and (1, *noise.shape[1:]) != shape:
                msg = (
                    f"The direction was found on a latent of {size_in_words(move.displacement)}, but this picture's is"
                    f" {size_in_words(noise[0])}."
                )
                raise ShapeError(msg)
            noise = noise + (move.strength / b) * move.displacement.to(noise)
    return noise


def union_of_masks(moves: Sequence[Move]) -> Tensor | None:
    """Where any of several moves acts; None for everywhere, also for no moves at all."""
    masks = [move.mask for move in moves]
    if not masks or any(mask is None for mask in masks):
        return None
    largest, *others = masks
    for mask in others:
        largest = torch.maximum(largest, mask)
    return largest


def snap_to_reference(x: Tensor, x_ref: Tensor, radius: float = SNAP) -> Tensor:
    """x_ref for every sample of the batch that is within the relative distance `radius` of it, x elsewhere.

    Without it rounding in x becomes rounding in D, which half precision makes visible.
    """
    dims = tuple(range(1, x.ndim))
    distance = (x - x_ref).abs().amax(dims, keepdim=True)
    return torch.where(distance <= radius * x_ref.abs().amax(dims, keepdim=True), x_ref, x)


def _masked(change: Tensor, mask: Tensor | None) -> Tensor:
    return change if mask is None else mask.to(change) * change


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tuple(tensors)).mean(0)
