"""The anchored prediction: it leads every deterministic sampler back to the encoded picture where nothing is moved.

With the reference path x_ref(sigma) = a x0 + b n the sampler sees
    D'(x) = x0 + w { M P [D(x, prompt) - D(x_ref, source)] + sum_j s_j M_j P_j [D(x, towards_j) - D(x, away_j)] }.
The first bracket is what moves of the noise and of the sampler's own prompt bring about, the sum what moves of the
prediction add. P_j projects off the changes of prediction between the two prompts of each keep pair of move j, M_j is
its mask. P and M belong to all moves of the noise and of the sampler's prompt together: the union of their keep pairs,
and the largest of their masks. w is the weight. On the reference path with the source prompt D' = x0, and a sampler
that is exact for a constant prediction ends at x0.

Our construction; compare direct inversion (arXiv 2310.01506). The brackets may be averaged over several noises n. With
noise drawn anew at every level Euler's method on D' is FlowEdit (arXiv 2412.08629), and edit-friendly DDPM inversion
without its own noise (arXiv 2304.06140). A move of the prediction at strength 1 is
FlowEdit's difference; signed strengths, keeps and masks are ours.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .denoiser import SOURCE
from .errors import ShapeError, UnknownNameError, size_in_words
from .inversion import seeded_noise
from .linalg import orthonormal_span, project_off

# Rounding differs between two computations of the same point; below this relative distance they are the same point.
SNAP = 1e-5
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
    """A change of the sampler's own prompt. The caller changes that prompt; this has its keep pairs and mask."""


@dataclass(frozen=True, kw_only=True)
class PredictionMove(Move):
    """A move of the prediction itself, by the difference of two prompts at the sampled point; no node makes one yet.

    The mask acts on this difference alone: once the sampled point has moved, the model also changes what it predicts
    outside, which the first bracket of the formula lets through.

    Attributes:
        towards: name of the prompt that strength 1 should show.
        away: name of the prompt that describes the picture as it is.
    """

    towards: str
    away: str = SOURCE


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
    """Predictions on the reference path, shared by all strengths; the least recently used entry is evicted first.

    Attributes:
        max_bytes: size of all entries beyond which entries are evicted.
        bytes: their size now.
    """

    max_bytes: int = 512 * 2**20
    _entries: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)
    bytes: int = 0

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The prediction stored under `key`, computed on the first call."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        value = compute()
        self._entries[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.max_bytes and len(self._entries) > 1:
            _, old = self._entries.popitem(last=False)
            self.bytes -= old.nbytes
        return value


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
        start_moves = [move for move in self.moves if not isinstance(move, PredictionMove)]
        # a move at strength 0 beside others moves nothing, so what it keeps and its mask do not count either
        self._start_moves = [move for move in start_moves if move.strength] or start_moves
        self._prediction_moves = [move for move in self.moves if isinstance(move, PredictionMove) and move.strength]

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
        x_ref = self.reference(sigma)
        displacement = snap_to_reference(x, x_ref, self.snap) - x_ref
        noises = self._noises or [noise.to(x) for noise in self.paths.at(sigma)]
        points = [self.noised(self.x0, noise, sigma) for noise in noises]

        def mean(prompts: Sequence[str], moved: Tensor | None) -> dict[str, Tensor]:
            """Mean predictions over the reference paths by prompt, on the paths or beside them."""
            names = list(dict.fromkeys(prompts))
            asked = [predictions(point if moved is None else point + moved, sigma, names) for point in points]
            return {name: _mean(of_name) for name, of_name in zip(names, zip(*asked, strict=True), strict=True)}

        def cached(name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
            return self.cache.get((name, self.paths.seeds, self.paths.fresh, float(sigma), self.key), compute)

        def projected_and_masked(change: Tensor, moves: Sequence[Move]) -> Tensor:
            """The part of a change that the moves' keeps and masks let through."""
            pairs = tuple(dict.fromkeys(pair for move in moves for pair in move.keep))
            if pairs:

                def span() -> Tensor:
                    on_path = mean([name for pair in pairs for name in pair], None)
                    return orthonormal_span([on_path[present] - on_path[absent] for present, absent in pairs])

                change = project_off(change, cached(pairs, span))
            mask = union_of_masks(moves)
            return change if mask is None else mask.to(change) * change

        compared = (name for move in self._prediction_moves for name in (move.towards, move.away))
        at_sample = mean([self.prompt, *compared], displacement)
        source = cached(SOURCE, lambda: mean([SOURCE], None)[SOURCE])
        change = projected_and_masked(at_sample[self.prompt] - source, self._start_moves)
        for move in self._prediction_moves:
            change = change + move.strength * projected_and_masked(
                at_sample[move.towards] - at_sample[move.away], [move]
            )
        return self.x0 + self.weight * change


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


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tuple(tensors)).mean(0)
