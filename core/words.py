"""What else words move, before anything is sampled: how much of their change is also a change of other things (ours).

The words change the prediction by q = D(x, target) - D(x, source), a candidate for keeping by
p = D(x, present) - D(x, absent), both on the reference path. Where the cosine of the two is large, of whatever
sign, words and candidate move together, and projecting q off p at every step (core/anchor.py) holds the candidate
still. The mean is one of absolute values: cosines may change their sign from level to level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .anchor import ReferenceCache
from .denoiser import Denoiser
from .errors import EqualPredictionsError, NotFiniteError
from .search import EQUAL_PREDICTIONS


@dataclass(frozen=True)
class Level:
    """A point of the reference path: noise level sigma and the latent (B, C, H, W) there."""

    sigma: float
    x: Tensor


def cosines_along_words(
    denoiser: Denoiser,
    levels: Sequence[Level],
    words: tuple[str, str],
    candidates: Sequence[tuple[str, str]],
    cache: ReferenceCache,
) -> Tensor:
    """Mean over the levels of |cos(q, p)|, (B, candidates), float64 on the CPU.

    It takes 2 evaluations a level, and as many for each candidate that the cache does not know.

    Args:
        denoiser: answers to all prompts named here.
        levels: where to compare; one or more.
        words: names of the target and of the source prompt.
        candidates: names of the prompts (with it, without it) of each candidate. Equal names are equal prompts.
        cache: differences of candidates at the same points.

    Raises:
        NotFiniteError: a prediction holds values that are not numbers.
        EqualPredictionsError: the words change nothing.
    """

    def difference(level: Level, pair: tuple[str, str]) -> Tensor:
        with_it, without = denoiser.predictions(level.x, level.sigma, pair)
        change = with_it - without
        if not torch.isfinite(change).all():
            msg = "The model's predictions hold values that are not numbers (NaN or infinity)."
            raise NotFiniteError(msg)
        return change

    found = []
    for level in levels:
        q = difference(level, words).flatten(1)
        changes = cache.get(
            "what else words move",
            [(level.sigma, pair) for pair in candidates],
            lambda missing, level=level: [difference(level, pair) for _, pair in missing],
        )
        found.append(torch.stack([torch.cosine_similarity(q, p.flatten(1), dim=1) for p in changes], dim=1))
        found[-1][q.norm(dim=1) == 0] = torch.nan
    cosines = torch.stack(found).cpu().double()
    if cosines.isnan().all(0).any():
        raise EqualPredictionsError(EQUAL_PREDICTIONS)
    return cosines.abs().nanmean(0)
