"""A slider's effect at one picture as two moves of the clean latent, and pictures between a few true runs [ours].

z(s) is what sampling at strength s ends at, z(0) = x0. The moves are
    above = z(1) - x0,    below = x0 - z(-1),
and the preview at strength s is x0 + s above where s > 0, x0 + s below where s < 0: the line through z(-1), z(0) and
z(1), which is exact there. Those of several sliders add up. How much the line bends at 0 is what two runs tell about
the strengths between and beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .linalg import in_float64

BEND_LIMIT = 1000.0  # larger values are cut off here, so that reports and files hold finite numbers


def distil(run: Callable[[float], Tensor], x0: Tensor) -> tuple[Tensor, Tensor, float]:
    """A slider's moves of the clean latent for each unit of strength, and how much they bend at 0.

    Args:
        run: strength -> z (B, ...), the end of a true run; asked for -1 and 1.
        x0: the clean latent (B, ...).

    Returns:
        the moves above and below 0, (B, ...) in float64 on the CPU; what `bends` says of z(-1), x0, z(1).
    """
    ends = [in_float64(end) for end in (run(-1.0), x0, run(1.0))]
    return ends[2] - ends[1], ends[1] - ends[0], bends(ends)[0]


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
        found.append(min(max(ratios), BEND_LIMIT))
    return found
