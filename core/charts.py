"""Bar charts: a label a row, with bars to both sides of zero. Needs Pillow."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Sequence

from PIL import Image, ImageDraw, ImageFont

Row = tuple[str, "float | None | Sequence[float | None]"]  # label, and one value or one of each series
Colour = tuple[int, int, int]

INK, MUTED, GRID, ZERO = (38, 42, 50), (112, 118, 128), (226, 229, 234), (140, 146, 156)
BAR, ACCENT = (70, 116, 180), (222, 108, 32)
MARGIN, TEXT, SMALL, LINE = 16, 14, 12, 17  # pixels: edge, font sizes, distance of text lines
NUMBER = 50  # pixels kept free beside the bars for their numbers
MOST_LINES = 3  # of a label
LONGEST_TEXT = 1000  # characters; more never fit into its lines
MOST_NAMES = 6  # of series in the legend; of more it names the first and the last


def bar_chart(
    rows: Sequence[Row],
    *,
    title: str = "",
    axis: str = "",
    limits: tuple[float, float] | None = None,
    thresholds: Sequence[float] = (),
    highlighted: Collection[int] = (),
    series: Sequence[str] = (),
    form: str = "{:+.2f}",
    width: int = 768,
) -> Image.Image:
    """Draw rows of horizontal bars, each with its label on the left and its number at its end.

    Args:
        rows: label and value, or values where there are several series. None and what is no finite number get the word
            "none" in place of a bar.
        title: a line above.
        axis: what the numbers are, below.
        limits: both ends of the axis, with 0 between them or at one of them; None: round numbers that hold all values.
            A bar beyond them is cut off there.
        thresholds: where to draw dashed lines.
        highlighted: rows, counted from 0, to draw in another colour.
        series: names of the values in a row, for a legend. Their colours go from light to dark.
        form: how a number is written, for str.format.
        width: of the picture in pixels; the height follows from the rows.

    Returns:
        The chart, RGB on white.
    """
    data = [(label, _values(value)) for label, value in rows]
    low, high = limits or _round_limits([v for _, values in data for v in values if v is not None])
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(SMALL)
    count = max((len(values) for _, values in data), default=1)
    thick = 18 if count == 1 else 14 if count <= MOST_NAMES else 8

    widest = int(max((font.getlength(_shortened(label)) for label, _ in data), default=0)) + 1
    label_width = min(max(60, widest), int(width * 0.42))
    left = MARGIN + label_width + (NUMBER if low < 0 else 12)
    right = width - MARGIN - (NUMBER if high > 0 else 12)

    def x_of(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    labels = [_wrapped(label, font, label_width) for label, _ in data]
    heights = [max(len(lines) * LINE, len(v) * thick) + 12 for lines, (_, v) in zip(labels, data, strict=True)]
    titles = _wrapped(title, ImageFont.load_default(TEXT + 2), width - 2 * MARGIN) if title else []
    top = MARGIN + len(titles) * (LINE + 4) + (LINE + 8 if series else 0) + (LINE if thresholds else 0)
    bottom = top + sum(heights) + 4
    chart = Image.new("RGB", (width, bottom + LINE + 6 + (LINE + 2 if axis else 0) + MARGIN - 6), "white")
    draw = ImageDraw.Draw(chart)

    for k, line in enumerate(titles):
        draw.text((MARGIN, MARGIN - 4 + k * (LINE + 4)), line, fill=INK, font=ImageFont.load_default(TEXT + 2))
    if series:
        _legend(draw, series, (MARGIN, MARGIN + len(titles) * (LINE + 4)), small)
    for tick in _ticks(low, high):
        draw.line([(x_of(tick), top), (x_of(tick), bottom)], fill=ZERO if tick == 0 else GRID)
        draw.text((x_of(tick), bottom + 4), f"{tick:g}", fill=MUTED, font=small, anchor="ma")
    if axis:
        shown = _wrapped(axis, small, width - 2 * MARGIN, 1)[0]
        middle = min(max((left + right) / 2, MARGIN + small.getlength(shown) / 2), width - MARGIN)
        middle = min(middle, width - MARGIN - small.getlength(shown) / 2)
        draw.text((middle, bottom + 4 + LINE), shown, fill=MUTED, font=small, anchor="ma")

    for threshold in thresholds:
        _dashed(draw, x_of(threshold), top, bottom)
        draw.text((x_of(threshold), top - 3), f"{threshold:g}", fill=ACCENT, font=small, anchor="mb")
    y = top
    for number, ((_, values), lines, height) in enumerate(zip(data, labels, heights, strict=True)):
        if number:
            draw.line([(MARGIN, y), (width - MARGIN, y)], fill=GRID)
        first = y + (height - len(lines) * LINE) / 2
        for k, line in enumerate(lines):
            draw.text((MARGIN, first + k * LINE), line, fill=INK, font=font)
        first = y + (height - len(values) * thick) / 2
        for k, value in enumerate(values):
            middle = first + (k + 0.5) * thick
            if value is None:
                draw.text((x_of(0) + 5, middle), "none", fill=MUTED, font=small, anchor="lm")
                continue
            start, end = sorted((x_of(0), x_of(value)))
            colour = _shade(ACCENT if number in highlighted else BAR, k, len(values))
            half = thick / 2 - (1 if len(values) > 1 else 0)
            draw.rectangle([start, middle - half, max(end, start + 1), middle + half - 1], fill=colour)
            if thick >= SMALL - 1 or k in (0, len(values) - 1):
                at, anchor = ((x_of(value) + 5, middle), "lm") if value >= 0 else ((x_of(value) - 5, middle), "rm")
                text = form.format(value)
                text = form.format(0.0).lstrip("+") if float(text) == 0 else text  # no sign that stands for nothing
                draw.rectangle(draw.textbbox(at, text, font=small, anchor=anchor), fill="white")  # over lines
                draw.text(at, text, fill=INK, font=small, anchor=anchor)
        y += height
    return chart


def _values(value) -> list[float | None]:
    """One value or several as a list, None for what cannot be drawn."""
    given = list(value) if isinstance(value, Sequence) else [value]
    return [float(v) if v is not None and math.isfinite(v) else None for v in given] or [None]


def _round_limits(values: Sequence[float]) -> tuple[float, float]:
    """A round number that holds all values on every side that has any."""
    most = max((abs(v) for v in values), default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(most))
    end = next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * power >= most * (1 - 1e-9))
    return (-end if any(v < 0 for v in values) else 0.0, end if any(v >= 0 for v in values) or not values else 0.0)


def _ticks(low: float, high: float) -> list[float]:
    """Both ends, zero and the middle between them."""
    ends = [end for end in (low, high) if end]
    return sorted({round(v, 10) for end in ends for v in (end, end / 2)} | {0.0})


def _shade(colour: Colour, number: int, count: int) -> Colour:
    """The colour itself where there is one series; of several the first is the lightest."""
    share = 1.0 if count == 1 else 0.45 + 0.55 * number / (count - 1)
    return tuple(round(255 + (part - 255) * share) for part in colour)


def _legend(draw: ImageDraw.ImageDraw, series: Sequence[str], at: tuple[float, float], font) -> None:
    """A square of its colour before the name of every series, or a row of squares between the first and the last."""
    x, y = at
    few = len(series) <= MOST_NAMES
    if not few:
        draw.text((x, y), series[0], fill=INK, font=font)
        x += font.getlength(series[0]) + 6
    for number, name in enumerate(series):
        draw.rectangle([x, y + 2, x + 10, y + 12], fill=_shade(BAR, number, len(series)))
        x += 12
        if few:
            draw.text((x + 4, y), name, fill=INK, font=font)
            x += font.getlength(name) + 20
    if not few:
        draw.text((x + 6, y), series[-1], fill=INK, font=font)


def _dashed(draw: ImageDraw.ImageDraw, x: float, top: float, bottom: float) -> None:
    y = top
    while y < bottom:
        draw.line([(x, y), (x, min(y + 5, bottom))], fill=ACCENT, width=2)
        y += 9


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = MOST_LINES) -> list[str]:
    """A text in lines that fit into so many pixels, broken at spaces where there are any; the last may end in "..."."""
    lines, rest = [], _shortened(text)
    while rest and len(lines) < most:
        fits = max(1, _fitting(rest, font, width))
        if fits < len(rest):
            space = rest.rfind(" ", 1, fits + 1)
            fits = space if space > 0 else fits
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if rest:
        room = width - font.getlength("...")
        lines[-1] = f"{lines[-1][: _fitting(lines[-1], font, room)].rstrip()}..."
    return lines or [""]


def _shortened(text: str) -> str:
    """A text on one line, with no more of it than any label could show."""
    return " ".join(text[: 2 * LONGEST_TEXT].split())[:LONGEST_TEXT]


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many of its first characters fit into so many pixels."""
    return bisect.bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count]))
