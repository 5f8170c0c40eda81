"""A slider's effect at one picture as one move of the clean latent, and pictures between a few true runs [ours].

z(s) is what sampling at strength s ends at, z(0) = x0. The move is the central difference of two runs,
    move = (z(h) - z(-h)) / 2h,
the derivative at 0 where h is small, the secant where h is 1; the preview at strength s is x0 + s move, and those of
several sliders add up. What it does not show at strength 1 is x0 + move - z(1), half of how z bends between the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .linalg import in_float64, relative_error

SPAN = 1.0  # h: nearer to the true runs at strengths 1 and 2 than smaller ones, see `python -m benchmarks.quick`
LARGEST_ERROR = 1000.0  # beyond it an error says no more


def distil(run: Callable[[float], Tensor], x0: Tensor, span: float = SPAN) -> tuple[Tensor, float]:
    """A slider's move of the clean latent at strength 1, and how far its preview is from a true run there.

    Args:
        run: strength -> z (B, ...), the end of a true run; asked for each strength once.
        x0: the clean latent (B, ...).
        span: h, the strengths of the runs between which the difference is taken.

    Returns:
        the move (B, ...) in float64 on the CPU; |x0 + move - z(1)| / |z(1) - x0|, of a batch the largest.
    """
    ends = {strength: in_float64(run(strength)) for strength in dict.fromkeys((-span, span, 1.0))}
    move = (ends[span] - ends[-span]) / (2 * span)
    change = ends[1.0] - in_float64(x0)
    error = max(relative_error(mine, true) for mine, true in zip(move, change, strict=True))
    return move, min(error, LARGEST_ERROR)


def evenly_spaced(first: float, last: float, count: int) -> list[float]:
    """`count` strengths from first to last; 0 is exactly 0 where it is one of them."""
    steps = count - 1
    return [round(((steps - k) * first + k * last) / steps, 9) for k in range(count)]


def between(keyframes: Sequence[Tensor], count: int) -> list[Tensor]:
    """`count` latents at even distances along the line from each keyframe to the next; keyframes stay as they are.

    Piecewise linear: a cubic came no nearer to true runs where the difference could be seen (benchmarks/README.md).
    """
    found = []
    for number in range(count):
        # whole numbers, so that a picture at a keyframe is that keyframe
        key, rest = divmod(number * (len(keyframes) - 1), count - 1)
        here = keyframes[key]
        found.append(here + rest / (count - 1) * (keyframes[key + 1] - here) if rest else here)
    return found


def bends(keyframes: Sequence[Tensor]) -> list[float]:
    """For each inner keyframe its distance from the mean of its neighbours over their distance; of a batch the largest.

    0 where the latent moves evenly along a line, 1/2 where all change lies on one side of the keyframe.
    """
    found = []
    for before, here, after in zip(keyframes, keyframes[1:], keyframes[2:], strict=False):
        off = in_float64(here) - (in_float64(before) + in_float64(after)) / 2
        apart = in_float64(after) - in_float64(before)
        ratios = [float(o.norm() / a.norm().clamp_min(1e-30)) for o, a in zip(off, apart, strict=True)]
        found.append(min(max(ratios), LARGEST_ERROR))
    return found
