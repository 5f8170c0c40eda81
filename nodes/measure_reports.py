"""What the reports and plots of the nodes that measure share: rounded numbers, and which pictures a plot shows."""

from __future__ import annotations

MOST_PLOTTED = 12  # pictures in a plot; the report has all


def plotted(count: int) -> list[int]:
    """The pictures that a plot shows: all, or the first, the last and some evenly between them."""
    if count <= MOST_PLOTTED:
        return list(range(count))
    return [round(k * (count - 1) / (MOST_PLOTTED - 1)) for k in range(MOST_PLOTTED)]


def picture_names(shown: list[int]) -> list[str]:
    """What a plot calls these pictures; nothing where there is one."""
    return [f"picture {k + 1}" for k in shown] if len(shown) > 1 else []


def rounded(value) -> float | None:
    """A number for a report, in six significant digits; None where it is none."""
    value = float(value)
    return float(f"{value:.6g}") if value == value else None


def rounded_all(values) -> list[float | None]:
    """Numbers for a report, each as `rounded` gives it."""
    return [rounded(value) for value in values]
