"""Charts: where bars, lines and shades stand, what cannot be drawn, and texts of all kinds."""

import math
import subprocess
import sys
import warnings

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from latent_directions.core import charts
from latent_directions.core.charts import ACCENT, BAR, INK, LINES, bar_chart, line_chart, table_chart
from latent_directions.core.errors import MissingPackageError
from scripts.environment import ROOT


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def coloured(chart, colour) -> np.ndarray:
    """Which pixels have just that colour."""
    return (np.asarray(chart) == np.round(np.array(to_rgb(colour)) * 255)).all(axis=-1)


def spans(chart, colour=BAR) -> list[tuple[int, int]]:
    """First and last column of every bar of a colour, from above."""
    found = coloured(chart, colour)
    rows = np.flatnonzero(found.sum(axis=1) > 1)
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [
        (int(columns.min()), int(columns.max())) for g in groups for columns in [np.flatnonzero(found[g].any(axis=0))]
    ]


class TestBars:
    def test_they_are_as_long_as_their_values(self):
        chart = bar_chart([("a", 1.0), ("b", 0.5), ("c", -0.5), ("d", -1.0)], limits=(-1, 1))
        bars = spans(chart)
        zero = bars[0][0]
        unit = bars[0][1] - zero
        assert unit > 200
        assert [right - left for left, right in bars] == pytest.approx([unit, unit / 2, unit / 2, unit], abs=2)
        assert [left for left, _ in bars[:2]] == pytest.approx([zero, zero], abs=1)
        assert [right for _, right in bars[2:]] == pytest.approx([zero, zero], abs=2)

    def test_without_limits_the_axis_holds_all_values(self):
        for values in ([0.003, 0.011], [7.3, 120.0], [-0.2, 0.05], [-3.0, -1.0]):
            chart = bar_chart([(str(v), v) for v in values])
            bars = spans(chart)
            assert len(bars) == 2
            assert all(0 < left <= right < chart.width - 10 for left, right in bars)
            lengths = [right - left for left, right in bars]
            assert lengths[0] / lengths[1] == pytest.approx(abs(values[0] / values[1]), rel=0.05)

    def test_beyond_the_limits_they_are_cut_off(self):
        inside, beyond = spans(bar_chart([("a", 1.0), ("b", 50.0)], limits=(-1, 1)))
        assert inside == beyond

    def test_rows_can_be_highlighted_and_a_threshold_drawn(self):
        rows = [("a", 0.7), ("b", 0.1), ("c", 0.4)]
        chart = bar_chart(rows, limits=(-1, 1), highlighted={0, 2})
        assert (len(spans(chart, ACCENT)), len(spans(chart, BAR))) == (2, 1)
        plain = bar_chart([("b", 0.3)], limits=(-1, 1))
        marked = bar_chart([("b", 0.3)], limits=(-1, 1), thresholds=[0.6])
        line = np.flatnonzero(coloured(marked, ACCENT).sum(axis=0) > 10)
        ((zero, end),) = spans(marked)
        assert 1 <= len(line) <= 2
        assert line[0] == pytest.approx(zero + 2 * (end - zero), abs=4)
        assert not coloured(plain, ACCENT).any()

    def test_series_get_a_bar_each_and_a_legend(self):
        rows = [("a", [0.2, 0.5, 1.0]), ("b", [-0.2, None, -1.0])]
        plain, named = bar_chart(rows), bar_chart(rows, series=["x", "y", "z"])
        assert named.height > plain.height
        # the last of a row has the colour itself, and so has the last in the legend
        assert (len(spans(plain)), len(spans(named))) == (2, 3)
        assert bar_chart(rows * 4).height > plain.height

    def test_series_without_an_order_have_colours_of_their_own(self):
        chart = bar_chart([("a", [0.5, 1.0])], limits=(0, 1), series=["x", "y"], graded=False)
        (first, _), (second, _) = spans(chart, LINES[0]), spans(chart, LINES[1])  # each a bar, and its legend below
        assert second[1] - second[0] == pytest.approx(2 * (first[1] - first[0]), abs=3)

    @pytest.mark.parametrize(
        "value", [None, math.nan, math.inf, 1.7e308, pytest.param(10**400, id="huge"), [None, None], []]
    )
    def test_what_is_no_number_has_none(self, value):
        chart = bar_chart([("a", value), ("b", 0.5)], limits=(-1, 1))
        assert len(spans(chart)) == 1
        with_zero = bar_chart([("a", 0.0), ("b", 0.5)], limits=(-1, 1))
        assert not np.array_equal(np.asarray(chart), np.asarray(with_zero))

    def test_long_labels_leave_them_alone(self):
        short, long = (spans(bar_chart([(label, 0.5)], limits=(0, 1))) for label in ("a", "word " * 400))
        assert long[0][0] > short[0][0]
        assert long[0][1] - long[0][0] > 100
        tall = bar_chart([("word " * 400, 0.5)], limits=(0, 1)).height
        assert tall == bar_chart([("word " * 4000, 0.5)], limits=(0, 1)).height

    def test_the_height_does_not_depend_on_the_values(self):
        heights = {bar_chart([("a", v), ("b", -v)], limits=(-1, 1)).height for v in (0.0, 0.5, 1.0)}
        assert len(heights) == 1

    def test_without_rows_there_is_the_note(self):
        empty, noted = bar_chart([]), bar_chart([], note="Nothing was found.")
        assert empty.width == noted.width == 768
        assert coloured(noted, INK).any() and not coloured(empty, INK).any()


class TestLines:
    @pytest.fixture
    def places(self):
        """Where the middles of the markers of each line stand, (column, row) from the left."""

        def find(chart, colour):
            found = coloured(chart, colour)
            found[:, chart.width - 110 :] = False  # the legend
            columns = np.flatnonzero(found.any(axis=0))
            return [(int(x), float(np.flatnonzero(found[:, x]).mean())) for x in (columns[0], columns[-1])]

        return find

    def test_they_go_through_their_points(self, places):
        chart = line_chart([("up", [0.0, 1.0, 2.0]), ("down", [2.0, 1.0, 0.0])], [1, 2, 3])
        (left, low), (right, high) = places(chart, LINES[0])
        (other_left, other_high), (other_right, other_low) = places(chart, LINES[1])
        assert right - left > 200
        assert low - high > 200
        assert (other_left, other_right) == pytest.approx((left, right), abs=1)
        assert (other_low, other_high) == pytest.approx((low, high), abs=1)
        middle = np.flatnonzero(coloured(chart, LINES[1])[:, (left + right) // 2])
        assert middle.mean() == pytest.approx((low + high) / 2, abs=3)

    def test_a_value_that_is_none_is_a_gap(self):
        whole, broken = (line_chart([("a", [0.0, v, 0.0])], [0, 1, 2], limits=(-1, 1)) for v in (0.0, None))
        assert coloured(broken, BAR).sum() < coloured(whole, BAR).sum() / 2

    def test_limits_hold_the_axis(self, places):
        (_, low), _ = places(line_chart([("a", [0.5, 0.5])], [0, 1], limits=(0, 1)), BAR)
        (_, high), _ = places(line_chart([("a", [0.9, 0.9])], [0, 1], limits=(0, 1)), BAR)
        assert low - high > 100

    def test_many_make_it_higher_and_are_all_named(self):
        lines = [("direction with a long name, which needs more than one line", [0.0, k]) for k in range(40)]
        chart = line_chart(lines, [0, 1])
        assert chart.height > line_chart(lines[:2], [0, 1]).height
        named = 0
        for colour in LINES:
            found = coloured(chart, colour)
            right = np.flatnonzero(found.any(axis=0)).max()  # the end of the line before a name
            rows = np.flatnonzero(found[:, right - 12 :].any(axis=1))
            named += 1 + int((np.diff(rows) > 10).sum())
        assert named == len(lines)

    def test_without_any_there_is_the_note(self):
        empty, noted = line_chart([], []), line_chart([], [], note="Nothing was found.")
        assert coloured(noted, INK).any() and not coloured(empty, INK).any()


class TestTables:
    def test_cells_are_the_darker_the_larger_their_values(self):
        chart = np.asarray(table_chart(["a", "b", "c"], [[1.0, 0.5, 0.0], [0.5, 1.0, None], [0.0, math.nan, 1.0]]))
        dark = np.flatnonzero((chart[..., 2] < 140) & (chart[..., 0] < 20))  # the cells of 1
        rows, columns = np.unravel_index(dark, chart.shape[:2])
        left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
        wide, high = (right - left) / 3, (bottom - top) / 3
        # a corner of each cell, beside its number
        shades = [
            [int(chart[round(top + high * (y + 0.15)), round(left + wide * (x + 0.1))].sum()) for x in range(3)]
            for y in range(3)
        ]
        assert (
            shades[0][0] == shades[1][1] == shades[2][2] < shades[0][1] == shades[1][0] < shades[0][2] == shades[2][0]
        )
        assert shades[1][2] == shades[2][1] == 3 * 255

    @pytest.mark.parametrize("count", [0, 1, 40])
    def test_any_number_of_rows(self, count):
        chart = table_chart([str(k) for k in range(count)], [[0.5] * count] * count, note="" if count else "None.")
        assert chart.width == 768


TEXTS = [
    "",
    " ",
    "x" * 5000,
    "très, 笑顔, 😀",
    "two\nlines",
    "\u202e\u200b\0",
    "$x",
    "costs 5$ or 6$",
    r"$\frac{1}$",
    "\ud800",
]


class TestTexts:
    @pytest.mark.parametrize("text", TEXTS)
    def test_any_can_be_drawn(self, text):
        bars = bar_chart([(text, 0.5)], title=text, axis=text, note=text, series=[text, text])
        lines = line_chart([(text, [0.0, 1.0])], [0, 1], title=text, x_axis=text, y_axis=text, note=text)
        table = table_chart([text], [[1.0]], title=text, axis=text, note=text)
        assert {chart.mode for chart in (bars, lines, table)} == {"RGB"}
        assert {chart.width for chart in (bars, lines, table)} == {768}

    def test_none_is_read_as_a_formula(self):
        """As a formula the two would look the same."""
        one, other = (np.asarray(bar_chart([(text, 0.5)])) for text in (r"$a$", r"$ a $"))
        assert not np.array_equal(one, other)

    def test_a_character_that_no_font_has_is_a_box(self):
        one, other = (np.asarray(bar_chart([(f"a{c}b", 0.5)])) for c in ("\U000f0000", charts.BOX))
        assert np.array_equal(one, other)


def test_the_look_does_not_depend_on_settings_of_others():
    """Other nodes may have changed matplotlib's settings, which all of ComfyUI shares."""

    def drawn():
        bars = bar_chart([("a", 0.5), ("b", None)], title="t", axis="x", series=["s"], thresholds=[0.2])
        lines = line_chart([("a", [0.0, 1.0])], [0, 1], title="t", x_axis="x", y_axis="y")
        return [np.asarray(chart) for chart in (bars, lines, table_chart(["a"], [[0.4]], title="t", axis="x"))]

    before = drawn()
    with matplotlib.style.context(["dark_background", {"font.family": "serif", "lines.linewidth": 5}]):
        settings = dict(matplotlib.rcParams)
        after = drawn()
        assert dict(matplotlib.rcParams) == settings
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one, other)


def test_a_matplotlib_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(matplotlib, "__version_info__", (3, 6, 3))
    monkeypatch.setattr(matplotlib, "__version__", "3.6.3")
    with pytest.raises(MissingPackageError, match="'matplotlib' 3.7 or newer, but 3.6.3 is installed"):
        bar_chart([("a", 1.0)])


def test_matplotlib_is_imported_when_a_chart_is_drawn():
    script = """
import sys
from core.charts import bar_chart
assert "matplotlib" not in sys.modules
bar_chart([("a", 1.0)])
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
