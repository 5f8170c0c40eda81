"""What words change at a picture, before anything is sampled: what else they move, and where (ours).

The words change the prediction by q = D(x, target) - D(x, source), a candidate for keeping by
p = D(x, present) - D(x, absent), both on the reference path. Where the cosine of the two is large, of whatever
sign, words and candidate move together, and projecting q off p at every step (core/anchor.py) holds the candidate
still. The mean is one of absolute values: cosines may change their sign from level to level. Where |q| is large is
where the words act; compare the masks of LEDITS++ (arXiv 2311.16711), which are cut to 0 and 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .anchor import ReferenceCache
from .denoiser import Denoiser
from .errors import EqualPredictionsError, NotFiniteError
from .linalg import in_float64
from .search import EQUAL_PREDICTIONS

# Cells on the shorter side of the grid on which it is found where words act; one cell of a larger latent is too small.
COARSE = 16


@dataclass(frozen=True)
class PathPoint:
    """A point of the reference path: noise level sigma and the latent (B, C, H, W) there."""

    sigma: float
    x: Tensor


def soft_mask(size: Tensor) -> Tensor:
    """Where something is large, (B, 1, H, W) with values 0 to 1, from its size (B, 1, H, W) in every cell.

    On a grid of at most COARSE cells on the shorter side, smoothed over 3 x 3 cells of it, and stretched for each
    picture so that its least value is 0 and half of its range is 1; 1 everywhere where it is the same everywhere.
    """
    cells = size.shape[-2:]
    if min(cells) > COARSE:
        grid = [round(count * COARSE / min(cells)) for count in cells]
        size = torch.nn.functional.interpolate(size, grid, mode="area")
    padded = torch.nn.functional.pad(size, (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([1.0, 2.0, 1.0]).to(padded)
    smooth = torch.nn.functional.conv2d(padded, (kernel[:, None] * kernel / 16)[None, None])
    low, high = smooth.amin((1, 2, 3), keepdim=True), smooth.amax((1, 2, 3), keepdim=True)
    stretched = torch.where(high > low, 2 * (smooth - low) / (high - low).clamp_min(1e-30), 1.0).clamp(0, 1)
    return torch.nn.functional.interpolate(stretched, cells, mode="bilinear")


def likeness_of_effects(
    denoiser: Denoiser,
    point: PathPoint,
    effects: Tensor,
    pairs: Sequence[tuple[str, str]],
    cache: ReferenceCache,
    settings: Hashable = (),
) -> Tensor:
    """The cosines, with their signs, of effects J v and what words change at the same point; float64 on the CPU.

    It takes 2 evaluations for each pair that the cache does not know.

    Args:
        denoiser: answers to the prompts.
        point: of one picture.
        effects: (k, C, ..., H, W), none of them zero.
        pairs: names of the prompts (with it, without it); equal names are equal prompts.
        cache: differences of pairs at the same point.
        settings: what these depend on besides point and prompts, such as the model.

    Returns:
        (k, pairs); 0 for words that change nothing.

    Raises:
        NotFiniteError: a prediction holds values that are not numbers.
    """
    changes = cache.get(
        ("words beside effects", settings),
        [(point.sigma, pair) for pair in pairs],
        lambda missing: [difference(denoiser, point, pair) for _, pair in missing],
    )
    rows, columns = (in_float64(these.flatten(1)) for these in (effects, torch.cat(changes)))
    return torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(columns, dim=1).T


def difference(denoiser: Denoiser, point: PathPoint, pair: tuple[str, str]) -> Tensor:
    """D(x, first prompt) - D(x, second prompt) at a point of the reference path.

    Raises:
        NotFiniteError: a prediction holds values that are not numbers.
    """
    towards, away = denoiser.predictions(point.x, point.sigma, pair)
    change = towards - away
    if not torch.isfinite(change).all():
        msg = "The model's predictions hold values that are not numbers (NaN or infinity)."
        raise NotFiniteError(msg)
    return change


class WordsChange:
    """What the words change at some points of the reference path.

    Making it takes 2 evaluations a point and picture.
    """

    def __init__(self, denoiser: Denoiser, points: Sequence[PathPoint], words: tuple[str, str]):
        """Compare two prompts at every point.

        Args:
            denoiser: answers to both.
            points: one or more.
            words: names of the target and of the source prompt.

        Raises:
            NotFiniteError: a prediction holds values that are not numbers.
            EqualPredictionsError: the words change nothing.
        """
        self._denoiser, self._points = denoiser, points
        self._changes = [difference(denoiser, point, words) for point in points]
        if not torch.stack([q.flatten(1).any(1) for q in self._changes]).any(0).all():
            raise EqualPredictionsError(EQUAL_PREDICTIONS)

    def likeness(self, candidates: Sequence[tuple[str, str]], cache: ReferenceCache, settings: Hashable = ()) -> Tensor:
        """Mean over the points of |cos(q, p)|, (B, candidates), float64 on the CPU.

        It takes 2 evaluations a point for each candidate that the cache does not know.

        Args:
            candidates: names of the prompts (with it, without it) of each candidate. Equal names are equal prompts.
            cache: differences of candidates at the same points.
            settings: what these depend on besides point and prompts, such as the model.

        Raises:
            NotFiniteError: a prediction holds values that are not numbers.
        """
        found = []
        for point, q in zip(self._points, self._changes, strict=True):
            changes = cache.get(
                ("what else words move", settings),
                [(point.sigma, pair) for pair in candidates],
                lambda missing, point=point: [difference(self._denoiser, point, pair) for _, pair in missing],
            )
            cosines = [torch.cosine_similarity(q.flatten(1), p.flatten(1), dim=1) for p in changes]
            found.append(torch.stack(cosines, dim=1).cpu().double().abs())
            found[-1][~q.flatten(1).any(1).cpu()] = torch.nan  # a point where the words change nothing tells nothing
        return torch.stack(found).nanmean(0)

    def mask(self) -> Tensor:
        """Where the words act, (B, H, W) with values 0 to 1, on the CPU: `soft_mask` of the mean |q|.

        The mean is over points and channels.
        """
        size = torch.stack([q.abs().float().flatten(1, -3).mean(1) for q in self._changes]).mean(0)
        return soft_mask(size[:, None])[:, 0].cpu()
