"""A direction for another picture: resampled to its size, and measured at it (ours).

How well a move v carries over is measured with the model at the other picture. Its effect J v is compared with that of
a random move, with its mask, and with what the move really changes at strength 1. What it did at the picture where it
was found is not known any more: a move can be strong, inside its mask and linear, and yet show something else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import CutOffError, NothingToMoveError
from .exploration import FARTHEST
from .linalg import in_float64
from .self_check import SelfCheck

WELL, PARTLY, BADLY = "well", "partly", "badly"
# Below WEAK a move does no more than a random one: in `python -m benchmarks.transfer` random moves came to at most 1.2,
# those that were found on another portrait to 1.8 and more. STRONG is above the weakest of these.
WEAK, STRONG = 1.5, 2.0
# Bounds on the nonlinearity, and on the share of its effect that a move still has, by judgement: with half of the
# change unexpected, or half of the effect gone, a move is not well carried; with all of the change unexpected, badly.
EVEN, BENT, HALF = 0.5, 1.0, 0.5


@dataclass(frozen=True)
class Measured:
    """What a move does at a picture.

    Attributes:
        step: its length at strength 1, so that D changes as asked for.
        step_before: that of the move as it was given.
        strength: |M J v| relative to that of a random move of the same length, M the mask.
        share_inside: share of |J v|^2 inside the mask, 0 to 1; None without a mask.
        area: share of the cells inside the mask; None without a mask.
        nonlinearity: |D(x + s v) - D(x) - s J v| / |s J v|, s the step.
        change_before: what the step before changes of D inside the mask, as `change`, to first order.
        change: what the step changes: root mean square in standard deviations of D.
        wanted: what strength 1 is to change; None where the step is kept.
    """

    step: float
    step_before: float
    strength: float
    share_inside: float | None
    area: float | None
    nonlinearity: float
    change_before: float
    change: float
    wanted: float | None

    @property
    def kept(self) -> float | None:
        """The share of its effect at the picture where it was found that it has here; None where that is not known."""
        return None if self.wanted is None else self.change_before / self.wanted

    @property
    def bounded(self) -> bool:
        """Whether strength 1 changes less than is wanted, because the step would become too long."""
        return self.wanted is not None and self.change < 0.999 * self.wanted

    @property
    def carries(self) -> str:
        """WELL, PARTLY or BADLY."""
        inside = None if self.area is None else self.share_inside / self.area
        if self.strength < WEAK or self.nonlinearity > BENT or (inside is not None and inside < 1):
            return BADLY
        faint = self.kept is not None and self.kept < HALF
        return WELL if self.strength >= STRONG and self.nonlinearity <= EVEN and not faint else PARTLY


def resampled(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """A move or mask (..., h, w) on another grid of cells (..., H, W), linearly interpolated.

    It is scaled by one factor, so that shapes keep their proportions, until it covers the new grid; what reaches beyond
    it is cut, half on each side. That is what resizing a picture with the crop in the middle does. Where the sizes are
    equal it is returned as it is.
    """
    before = cells.shape[-2:]
    if tuple(before) == tuple(size):
        return cells
    factor = max(new / old for new, old in zip(size, before, strict=True))
    covering = [max(new, round(factor * old)) for new, old in zip(size, before, strict=True)]
    flat = cells.float().reshape(1, -1, *before)
    scaled = torch.nn.functional.interpolate(flat, covering, mode="bilinear", antialias=True)
    top, left = ((have - need) // 2 for have, need in zip(covering, size, strict=True))
    cut = scaled[..., top : top + size[0], left : left + size[1]]
    return cut.reshape(*cells.shape[:-2], *size).to(cells)


def resampled_move(vector: Tensor, step: float, size: tuple[int, int]) -> tuple[Tensor, float]:
    """A unit move (C, ..., h, w) and its step on another grid: unit norm again, and as large a move in each cell.

    The root mean square of step times vector over the cells stays the same: the step grows with the square root of the
    number of cells.

    Raises:
        CutOffError: nothing of the move is left, as where all of it was cut.
    """
    if tuple(vector.shape[-2:]) == tuple(size):
        return vector, step
    moved = resampled(vector, size)
    norm = float(moved.float().norm())
    if not norm > 0:
        msg = "Nothing of the move is left at this picture's size."
        raise CutOffError(msg)
    cells = math.prod(size) / math.prod(vector.shape[-2:])
    return moved / norm, step * cells**0.5


@torch.no_grad()
def measure_move(
    denoiser: Denoiser,
    check: SelfCheck,
    sigma: float,
    vector: Tensor,
    step: float,
    mask: Tensor | None = None,
    *,
    change: float | None,
) -> Measured:
    """What a move does at the point of a checked Jacobian: 3 evaluations.

    The new step changes D by `change` inside the mask, to first order. It is no longer than the step before, or than
    FARTHEST times the noise's norm where that is more: a move of little effect would else be stretched beyond what the
    model knows.

    Args:
        denoiser: the model.
        check: its Jacobian J at x (1, C, ..., H, W), and the random move that was taken to check it.
        sigma: noise level of x.
        vector: v, unit norm, shaped as x.
        step: norm of the move at strength 1 before.
        mask: where the move acts, broadcastable to x, values 0 to 1; None for everywhere.
        change: see `Measured.change`; None keeps the step.

    Raises:
        NothingToMoveError: the move does not change the prediction inside the mask.
    """
    jacobian, probe = check.jacobian, check.probe
    effect = jacobian.matvec(vector)
    weights = torch.ones_like(effect[:, :1]) if mask is None else mask.to(effect).expand_as(effect[:, :1])
    inside = float((weights * effect).norm())
    if not inside > 0:
        msg = "The move does not change the model's prediction of this picture where it acts."
        raise NothingToMoveError(msg)
    channels = effect.shape[1]
    rms = float(((weights * effect.square()).sum() / (channels * weights.sum())).sqrt())
    deviation = float(jacobian.value.std())
    wanted = step if change is None else change * deviation / rms
    longest = max(step, FARTHEST * denoiser.scale(sigma)[1] * vector.numel() ** 0.5)
    length = wanted if change is None else min(wanted, longest)
    moved = denoiser(jacobian.x + length * vector, sigma) - jacobian.value
    random = float((weights * probe.image).norm() / probe.vector.norm())
    return Measured(
        step=length,
        step_before=step,
        strength=inside / max(random, 1e-30),
        share_inside=None if mask is None else float(((weights * effect).norm() / effect.norm()) ** 2),
        area=None if mask is None else float(in_float64(weights).square().mean()),
        nonlinearity=float((moved - length * effect).norm() / (length * effect).norm()),
        change_before=step * rms / deviation,
        change=length * rms / deviation,
        wanted=change,
    )
