"""The measures, on plain arrays. LOCO is arXiv 2409.02374; where its text has people judge, the probe judges here."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from benchmarks.eim.statistics import difference_of_means, paired_interval
from latent_directions.demo.world import ATTRIBUTES

PLAIN = 0.5  # change of an attribute that is plain: in standard deviations, or of a class's probability
NEAR = 0.05  # relative distance from the wanted change that ends the search for a strength
STRIDE = 6.0  # the most by which the next strength is larger than the last
FEWEST = 6  # pairs without which nothing is decided
PAPER_ENERGY = 0.99**2
NAMES = list(ATTRIBUTES)


def parts_of_change(picture: np.ndarray, unmoved: np.ndarray, pixels: np.ndarray) -> tuple[float, float, float]:
    """Root mean square change inside a region, and the norms of the change inside and outside, in 8-bit steps.

    Args:
        picture: 8-bit, HWC.
        unmoved: the same at strength 0.
        pixels: the region, (H, W) of 0 and 1.
    """
    square = np.square(picture.astype(float) - unmoved)
    inside, outside = square[pixels > 0], square[pixels == 0]
    return float(inside.mean() ** 0.5), float(inside.sum() ** 0.5), float(outside.sum() ** 0.5)


def leakage_ratio(inside: float, outside: float) -> float:
    """|change outside| / (|change outside| + |change inside|), norms over pixels (ours)."""
    return outside / max(inside + outside, 1e-12)


def attribute_changed(change: np.ndarray, inside: Sequence[str]) -> str | None:
    """The attribute of a region that an edit has changed alone, or None: local-edit success.

    It changes plainly, and by more than all attributes outside the region together. The paper's people say whether only
    one feature of the face has been edited (appendix G.2); the probe and this rule are ours.

    Args:
        change: of every attribute, in the order of ATTRIBUTES.
        inside: names of the attributes of the region.
    """
    size = dict(zip(NAMES, np.abs(change), strict=True))
    most = max(inside, key=size.get)
    return most if size[most] >= PLAIN and size[most] > outside_change(change, inside) else None


def outside_change(change: np.ndarray, inside: Sequence[str]) -> float:
    """Sum of the sizes of the changes of all attributes that are not of the region."""
    return float(sum(abs(value) for name, value in zip(NAMES, change, strict=True) if name not in inside))


def carries_over(change: np.ndarray, other: np.ndarray) -> bool:
    """Whether a direction changes the same on another picture: transfer success.

    The attribute that changes most is the same, changes plainly and to the same side. The paper's people say whether
    the same features have changed (appendix G.2); this rule is ours.
    """
    most, most_there = int(np.abs(change).argmax()), int(np.abs(other).argmax())
    return most == most_there and abs(other[most]) >= PLAIN and bool(change[most] * other[most] > 0)


def cosine(one: np.ndarray | Tensor, other: np.ndarray | Tensor) -> float:
    """Cosine of two vectors; 0 where one of them is zero."""
    norms = float((one**2).sum() ** 0.5) * float((other**2).sum() ** 0.5)
    return float((one * other).sum()) / norms if norms else 0.0


def composition_error(unmoved: Tensor, first: Tensor, second: Tensor, both: Tensor) -> float:
    """|z(v1 + v2) - (z(v1) + z(v2) - z(0))| / |z(v1 + v2) - z(0)| of sampled latents: composability (ours)."""
    return float((both - (first + second - unmoved)).norm() / (both - unmoved).norm().clamp_min(1e-12))


def linearity(value: Tensor, effect: Tensor, moved: Tensor) -> tuple[float, float, float]:
    """How nearly D(x + l v) = D(x) + l J v.

    Args:
        value: D(x).
        effect: l J v.
        moved: D(x + l v).

    Returns:
        |D(x + l v) - D(x) - l J v| / |l J v| (ours); and, as in section 3.1 of the paper, the ratio of the norms of
        D(x + l v) and D(x) + l J v, and their cosine.
    """
    expected = value + effect
    error = float((moved - expected).norm() / effect.norm().clamp_min(1e-12))
    return error, float(moved.norm() / expected.norm()), cosine(moved, expected)


def find_strengths(change_at: Callable[[float], float], wanted: float, longest: float, tries: int = 4) -> None:
    """Ask for the change at strengths that come ever nearer to the one where it is `wanted`.

    Until the wanted change lies between two of them, the first of which is 0, the next strength is where a power law
    through the last two has it, or at first a straight line, and at most STRIDE times as far; then it is where a
    straight line between the two has it. It ends within NEAR of the wanted change, at `longest`, or after so many
    `tries`.
    """
    below, above, power = (0.0, 0.0), None, 1.0
    strength = min(1.0, longest)
    for _ in range(tries):
        change = change_at(strength)
        if abs(change - wanted) <= NEAR * wanted or (change < wanted and above is None and strength >= longest):
            return
        if change >= wanted:
            above = strength, change
        else:
            if below[1] > 0 and above is None:
                slope = math.log(max(change, 1e-9) / below[1]) / math.log(strength / below[0])
                power = min(max(slope, 1 / 3), 2.0)
            below = strength, change
        if above is None:
            factor = (wanted / max(change, 1e-9)) ** (1 / power)
            strength = min(longest, strength * min(max(factor, 1.2), STRIDE))
        else:
            share = (wanted - below[1]) / max(above[1] - below[1], 1e-9)
            strength = below[0] + (above[0] - below[0]) * min(max(share, 0.1), 0.9)


def at_wanted_change(runs: Sequence[tuple[float, float, np.ndarray]], wanted: float) -> tuple[float, np.ndarray] | None:
    """Strength and figures where the change is `wanted`, or None where it is not reached.

    Straight lines between the first strength that reaches it and the one before, which is 0 for the first of all. A run
    that comes within NEAR of the wanted change stands for it where none reaches it.

    Args:
        runs: (strength, change, figures) of every run, all of one sign; figures are 0 at strength 0.
        wanted: see above.
    """
    if not runs:
        return None
    first = sorted(runs, key=lambda one: one[0])
    before = 0.0, 0.0, np.zeros_like(first[0][2])
    for run in first:
        if run[1] >= wanted:
            share = (wanted - before[1]) / (run[1] - before[1])
            return before[0] + share * (run[0] - before[0]), before[2] + share * (run[2] - before[2])
        before = run
    nearest = max(first, key=lambda one: one[1])
    return (nearest[0], nearest[2]) if nearest[1] >= (1 - NEAR) * wanted else None


def verdict(pairs: np.ndarray) -> str:
    """Whether the first of each pair is larger on average, by the 95 % bootstrap interval of the mean difference."""
    if len(pairs) < FEWEST:
        return f"not decided, {len(pairs)} pairs"
    low, high = paired_interval(pairs, difference_of_means)
    said = "holds" if low > 0 else "does not hold" if high < 0 else "not decided"
    return f"{said}, {(pairs[:, 0] - pairs[:, 1]).mean():+.3f} [{low:+.3f}, {high:+.3f}]"
