"""Several directions made into one: their sum, and one of them without what would change what the others change (ours).

Moves v and w_1 ... w_k of the latent have effects J v and J w_i on the prediction D. With the coefficients c that make
|M (J v - sum_i c_i J w_i)| least, the move
    v' = v - sum_i c_i w_i
has an effect that is orthogonal to that of every w_i inside the mask M of v: to first order, what the others change is
held. With the identity in place of J it is the projection of v off the w_i in the latent itself, which needs no model
but does not hold what the others change: moves at right angles may well change the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import NothingLeftError
from .linalg import damped_least_squares, in_float64

# Relative to effects of length 1. Others whose effects differ by less than its root count as one, so that rounding in
# their products cannot make their coefficients large.
DAMPING = 1e-6
# Below this share of a move or of its effect what is left is the inexactness of products.
LEFT = 0.01


@dataclass(frozen=True)
class Combined:
    """A move made of several.

    Attributes:
        vector: its unit vector, shaped as the moves.
        step: its norm at strength 1.
    """

    vector: Tensor
    step: float


@dataclass(frozen=True)
class Held(Combined):
    """A move without what would change what others change.

    Attributes:
        move_left: norm of what is left of the unit move v, |v'|; it can be above 1.
        effect_left: the share |M J v'| / |M J v| that is left of its effect.
        before: cosines of the effect of v with those of the others, inside the mask.
        after: the same of v'.
    """

    move_left: float
    effect_left: float
    before: list[float]
    after: list[float]


def added(moves: Sequence[Tensor]) -> Combined:
    """The sum of moves, each with the length that it has in the sum.

    Raises:
        NothingLeftError: they cancel.
    """
    total = in_float64(torch.stack(tuple(moves))).sum(0)
    step, longest = float(total.norm()), max(float(move.norm()) for move in moves)
    if not step > LEFT * longest:
        msg = "The moves that were added cancel each other, so nothing is left to move."
        raise NothingLeftError(msg)
    return Combined((total / step).to(moves[0]), step)


def held(
    vector: Tensor, step: float, others: Tensor, effect: Tensor, effects: Tensor, mask: Tensor | None = None
) -> Held:
    """The part v' of a move whose effect is orthogonal to the effects of others, inside the mask.

    Its step makes the effect inside the mask as large as that of the move before, to first order. With `vector` and
    `others` in place of the effects it is the projection in the latent, and the step is that of the move before.

    Args:
        vector: v, unit norm, (C, H, W).
        step: norm of the move at strength 1.
        others: w_i, (k, C, H, W).
        effect: J v, shaped as v.
        effects: J w_i, (k, C, H, W).
        mask: M, where the move acts, broadcastable to the effects, values 0 to 1; None for everywhere.

    Raises:
        NothingLeftError: the effect of the move is nothing but what the others do too, or it has none.
    """
    v, w = in_float64(vector).flatten(), in_float64(others).flatten(1)
    weights = torch.ones((), dtype=torch.float64) if mask is None else in_float64(mask)
    seen, of_others = (weights * in_float64(effect)).flatten(), (weights * in_float64(effects)).flatten(1)
    before = float(seen.norm())
    lengths = of_others.norm(dim=1)
    working = lengths > 0
    if not before > 0:
        msg = "The move changes nothing where it acts, so it cannot be combined."
        raise NothingLeftError(msg)
    unit = of_others[working] / lengths[working, None]
    coefficients = damped_least_squares(unit.T, seen, DAMPING) if len(unit) else v.new_zeros(0)
    left = seen - unit.T @ coefficients
    moved = v - (coefficients / lengths[working]) @ w[working]
    effect_left, move_left = float(left.norm()) / before, float(moved.norm())
    if not (effect_left > LEFT and move_left > 0):
        msg = (
            "Nothing of the move is left: all that it changes is what the others change too (only"
            f" {effect_left:.1%} of its effect remains)."
        )
        raise NothingLeftError(msg)
    return Held(
        (moved / move_left).view_as(vector).to(vector),
        step * move_left / effect_left,
        move_left,
        effect_left,
        _cosines(seen, of_others),
        _cosines(left, of_others),
    )


def _cosines(effect: Tensor, others: Tensor) -> list[float]:
    """Of an effect (N,) with each of others (k, N); 0 with one that is zero."""
    lengths = (effect.norm() * others.norm(dim=1)).clamp_min(1e-300)
    return (others @ effect / lengths).tolist()
