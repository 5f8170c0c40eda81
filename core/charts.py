"""Charts as pictures: bars to both sides of zero, lines, and tables of shades. Drawing one needs matplotlib.

Figures are made without pyplot, and every colour and size is given here, so that nothing global is read or set.
"""

from __future__ import annotations

import bisect
import functools
import math
import textwrap
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from .errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

Row = tuple[str, "float | None | Sequence[float | None]"]  # label, and one value or one of each series

INK, MUTED, GRID, ZERO = "#262a32", "#707680", "#e2e5ea", "#8c929c"
BAR, ACCENT = "#4674b4", "#de6c20"
LINES = (BAR, ACCENT, "#4e9a6b", "#8d68ab", "#b39a2f", "#3d9da3", "#b5586c", "#6c7480")
STYLES = ("-", "--", ":")  # of lines, when there are more than colours
SHADES = "Blues"  # of a table, from white for 0 to the darkest for 1
# The first is matplotlib's own. The others have Chinese, Japanese and Korean letters, and come with a system.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans GB",
    "Hiragino Sans",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
BOX = "□"  # for a character that no font has
DPI, MARGIN = 96, 10  # pixels in an inch, and around a chart
LABELS, NAMES = 0.4, 0.25  # of the width, at most: labels of rows, and names of lines
TITLE, TEXT, SMALL, LINE = 14, 12.5, 11, 20  # points of the fonts, and pixels from a line of text to the next
MOST_LINES = 3  # of a label
LONGEST_TEXT = 1000  # characters; more never fit into its lines
MOST_NUMBERED = 6  # series whose bars have their numbers; bars of more are too thin
MOST_COLUMNS = 5  # of a legend below
OLDEST_MATPLOTLIB = (3, 7)  # the first with legends outside of the axes
LARGEST = 1e300  # of values: matplotlib cannot make an axis for larger ones
LARGEST_NUMBERED = 12  # rows of a table whose cells have their numbers


def require_matplotlib() -> None:
    """Check that charts can be drawn, before the work whose results they are to show.

    Raises:
        MissingPackageError: matplotlib is missing or too old.
    """
    try:
        import matplotlib  # on first use only: it takes half a second
    except ImportError as error:
        msg = "Charts need the Python package 'matplotlib', which is missing."
        raise MissingPackageError(msg) from error
    if getattr(matplotlib, "__version_info__", (0,))[:2] < OLDEST_MATPLOTLIB:
        needed = ".".join(map(str, OLDEST_MATPLOTLIB))
        msg = (
            f"Charts need the Python package 'matplotlib' {needed} or newer, but {matplotlib.__version__} is installed."
        )
        raise MissingPackageError(msg)


def bar_chart(
    rows: Sequence[Row],
    *,
    title: str = "",
    axis: str = "",
    note: str = "",
    limits: tuple[float, float] | None = None,
    thresholds: Sequence[float] = (),
    highlighted: Collection[int] = (),
    series: Sequence[str] = (),
    graded: bool = True,
    form: str = "{:+.2f}",
    width: int = 768,
) -> Image.Image:
    """Draw rows of horizontal bars, each with its label on the left and its number at its end.

    Args:
        rows: label and value, or values where there are several series. None, what is no number and what is beyond
            LARGEST get the word "none" in place of a bar.
        title: a line above.
        axis: what the numbers are, below.
        note: a sentence in the middle, for a chart without bars.
        limits: both ends of the axis, with 0 between them or at one of them; None: as far as the values go. A bar
            beyond them is cut off there.
        thresholds: where to draw dashed lines.
        highlighted: rows, counted from 0, to draw in another colour.
        series: names of the values in a row, for a legend.
        graded: whether the colours of several series go from light to dark, for those that have an order; else each
            has a colour of its own.
        form: how a number is written, for str.format.
        width: of the picture in pixels; the height follows from the rows.

    Returns:
        The chart, RGB on white.

    Raises:
        MissingPackageError: matplotlib is missing or too old.
    """
    require_matplotlib()
    data = [(_wrapped(label, LABELS * width, TEXT), _values(value)) for label, value in rows]
    count = max((len(values) for _, values in data), default=1)

    def colour_of(k: int, of: int):
        return _shade(BAR, k, of) if graded else LINES[k % len(LINES)]

    thick = 21 if count == 1 else 17 if count <= MOST_NUMBERED else 8
    heights = [max(LINE * (1 + label.count("\n")), thick * len(values)) + 12 for label, values in data]
    ends = [0, *accumulate(heights)]
    columns = max(1, min(len(series), MOST_COLUMNS))
    legend = 30 + 24 * -(-len(series) // columns) if series else 0
    figure, axes = _figure(width, max(ends[-1], 4 * LINE) + 2 * LINE + legend, title, axis, note)

    axes.set_ylim(max(ends[-1], 1), 0)
    middles = [end - height / 2 for end, height in zip(ends[1:], heights, strict=True)]
    axes.set_yticks(middles, [label for label, _ in data])
    axes.grid(axis="x", color=GRID)
    if data:
        axes.axvline(0, color=ZERO, linewidth=1, zorder=0.9)  # below the bars
    if limits is not None:
        axes.set_xlim(limits)
    for at in thresholds:
        axes.axvline(at, color=ACCENT, linestyle="--", linewidth=1.5)
        axes.text(
            at, 1, f"{at:g}", color=ACCENT, size=SMALL, ha="center", va="bottom", transform=axes.get_xaxis_transform()
        )
    for number, (_, values) in enumerate(data):
        first = middles[number] - (len(values) - 1) / 2 * thick
        for k, value in enumerate(values):
            middle = first + k * thick
            if value is None:
                axes.text(0, middle, " none", color=MUTED, size=SMALL, va="center")
                continue
            shown = value if limits is None else min(max(value, limits[0]), limits[1])
            colour = _shade(ACCENT, k, len(values)) if number in highlighted else colour_of(k, len(values))
            bar = axes.barh(middle, shown, height=thick - 2 * (count > 1), color=colour)
            if count <= MOST_NUMBERED:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1} if count == 1 else None
                axes.bar_label(bar, [_number(value, form)], padding=4, color=INK, size=SMALL, bbox=box)
    if series:
        from matplotlib.patches import Patch

        patches = [Patch(color=colour_of(k, len(series)), label=name) for k, name in enumerate(series)]
        _legend(figure, patches, "outside lower left", width / columns - 66, columns)
    return _picture(figure)


def line_chart(
    series: Sequence[tuple[str, Sequence[float | None]]],
    at: Sequence[float],
    *,
    title: str = "",
    x_axis: str = "",
    y_axis: str = "",
    note: str = "",
    limits: tuple[float | None, float | None] = (None, None),
    width: int = 768,
    height: int = 500,
) -> Image.Image:
    """Draw lines through points that all have the same places on the horizontal axis, with a legend.

    Args:
        series: name of each line, and its values; None, what is no number and what is beyond LARGEST are gaps.
        at: the places of the values, in ascending order.
        title: a line above.
        x_axis: what the places are.
        y_axis: what the values are.
        note: a sentence in the middle, for a chart that is empty.
        limits: lower and upper end of the vertical axis; None: as far as the values go.
        width: of the picture in pixels.
        height: the least in pixels; many lines make the picture higher.

    Returns:
        The chart, RGB on white.

    Raises:
        MissingPackageError: matplotlib is missing or too old.
    """
    require_matplotlib()
    needed = sum(_height(_wrapped(name, NAMES * width, SMALL)) for name, _ in series)
    figure, axes = _figure(width, max(height, needed), title, x_axis, note)
    axes.set_ylabel(_wrapped(y_axis, 0.8 * height, SMALL), color=MUTED, size=SMALL)
    axes.grid(color=GRID)
    axes.tick_params(axis="y", labelsize=SMALL, labelcolor=MUTED)
    drawn = []
    for number, (name, values) in enumerate(series):
        style = STYLES[number // len(LINES) % len(STYLES)]
        gaps = [math.nan if value is None else value for value in _values(values)]
        drawn += axes.plot(
            at,
            gaps,
            style,
            color=LINES[number % len(LINES)],
            marker="o",
            markersize=4,
            linewidth=1.5,
            clip_on=False,
            label=name,
        )
    axes.set_ylim(*limits)
    if drawn:
        _legend(figure, drawn, "outside right center", NAMES * width)
    return _picture(figure)


def table_chart(
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    title: str = "",
    axis: str = "",
    note: str = "",
    width: int = 768,
) -> Image.Image:
    """Draw a square table of values 0 to 1 in shades, whose columns have the numbers of the rows.

    Args:
        rows: labels; each is shown with its number, counted from 0.
        values: of each row, for each column; None, what is no number and what is beyond LARGEST are empty.
        title: a line above.
        axis: what the values are.
        note: a sentence in the middle, for a chart that is empty.
        width: of the picture in pixels; the height follows from the rows.

    Returns:
        The chart, RGB on white.

    Raises:
        MissingPackageError: matplotlib is missing or too old.
    """
    require_matplotlib()
    numbered = len(rows) <= LARGEST_NUMBERED
    labels = [f"{_wrapped(name, LABELS * width, TEXT)}  {number}" for number, name in enumerate(rows)]
    lines = max((1 + label.count("\n") for label in labels), default=1)
    cell = max(LINE * lines + 6, 40 if numbered else 26)
    figure, axes = _figure(width, cell * max(1, len(rows)) + 3 * LINE, title, axis, note)
    cells = [[math.nan if value is None else value for value in _values(row)] for row in values]
    if cells:
        axes.imshow(cells, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(rows)), labels)
    axes.set_xticks(range(len(rows)), [str(number) for number in range(len(rows))])
    axes.tick_params(axis="x", top=False, labeltop=True, bottom=False, labelbottom=False, labelcolor=INK)
    for y, row in enumerate(cells if numbered else ()):
        for x, value in enumerate(row):
            if not math.isnan(value):
                colour = "white" if value > 0.6 else INK
                axes.text(x, y, f"{value:.2f}", color=colour, size=SMALL, ha="center", va="center")
    return _picture(figure)


def _figure(width: int, height: int, title: str, axis: str, note: str) -> tuple[Figure, Axes]:
    """A figure with what all charts share; the texts around the axes are added to the height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    room = width - 2 * MARGIN
    title, axis, note = (
        _wrapped(title, room, TITLE),
        _wrapped(axis, 0.8 * room, SMALL),
        _wrapped(note, 0.8 * room, TEXT),
    )
    height = MARGIN + max(height, _height(note)) + _height(title) + _height(axis)
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=MARGIN / DPI, h_pad=MARGIN / DPI)
    if title:
        figure.suptitle(title, x=MARGIN / width, ha="left", color=INK, size=TITLE, weight="normal")
    axes = figure.add_subplot(facecolor="white")
    if note:
        axes.text(0.5, 0.5, note, color=INK, size=TEXT, ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(axis, color=MUTED, size=SMALL)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", length=0, labelsize=SMALL, labelcolor=MUTED)
    axes.tick_params(axis="y", length=0, labelsize=TEXT, labelcolor=INK)
    return figure, axes


def _legend(figure: Figure, handles: Sequence, place: str, width: float, columns: int = 1) -> None:
    """A legend outside of the axes, whose names are so many pixels wide at most."""
    names = [_wrapped(handle.get_label(), width, SMALL) for handle in handles]
    figure.legend(handles, names, loc=place, ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK)


def _picture(figure: Figure) -> Image.Image:
    """The figure as it is drawn, no text of it read as a formula."""
    from matplotlib.text import Text
    from PIL import Image

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(_fonts())
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    return Image.frombuffer("RGBA", (width, height), figure.canvas.buffer_rgba()).convert("RGB")


def _values(value) -> list[float | None]:
    """One value or several as a list, None for what cannot be drawn."""
    given = list(value) if isinstance(value, Sequence) else [value]
    return [float(v) if v is not None and abs(v) <= LARGEST else None for v in given] or [None]


def _number(value: float, form: str) -> str:
    """A value as it is written, without a sign that stands for nothing."""
    text = form.format(value)
    return form.format(0.0).lstrip("+") if float(text) == 0 else text


def _shade(colour: str, number: int, count: int) -> tuple[float, ...]:
    """The colour itself where there is one series; of several the first is the lightest."""
    from matplotlib.colors import to_rgb

    share = 1.0 if count == 1 else 0.45 + 0.55 * number / (count - 1)
    return tuple(1 + (part - 1) * share for part in to_rgb(colour))


@functools.cache
def _fonts() -> list[str]:
    """Those of FONTS that this system has, in their order."""
    from matplotlib import font_manager

    known = set(font_manager.get_font_names())
    return [name for name in FONTS if name in known]


@functools.cache
def _characters() -> frozenset[int]:
    """All characters that these fonts can draw."""
    from matplotlib import font_manager

    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _fonts()]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def _wrapped(text: str, room: float, size: float) -> str:
    """A text in at most MOST_LINES lines that fit into so many pixels, the last with "..." where it is cut.

    Characters that no font has become boxes.
    """
    text = " ".join(text[: 2 * LONGEST_TEXT].split())[:LONGEST_TEXT]
    text = "".join(character if ord(character) in _characters() else BOX for character in text)
    start = text[:100]  # all of a long text takes long to measure
    fitting = room * len(start) / max(1.0, _length(start, size))  # characters a line, on average
    widths = range(4, max(4, int(1.5 * fitting)) + 1)  # in characters; the widest whose lines fit is taken

    def lines_of(columns: int) -> list[str]:
        return textwrap.wrap(text, columns, max_lines=MOST_LINES, placeholder="...")

    def too_wide(columns: int) -> bool:
        return any(_length(line, size) > room for line in lines_of(columns))

    fit = bisect.bisect_left(widths, True, key=too_wide)
    return "\n".join(lines_of(widths[fit - 1])) if fit else "..."


def _height(text: str) -> int:
    """Pixels of a text above or below the axes."""
    return LINE * (1 + text.count("\n")) + 8 if text else 0


@functools.lru_cache(maxsize=4096)
def _length(text: str, size: float) -> float:
    """Pixels of a line of text."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=_fonts(), size=size)
    return _renderer().get_text_width_height_descent(text, font, ismath=False)[0]


@functools.cache
def _renderer():
    """What texts are measured with."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, DPI)
