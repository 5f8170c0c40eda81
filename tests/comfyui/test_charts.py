"""Bar charts: where bars, lines and labels stand, and what cannot be drawn."""

import math

import numpy as np
import pytest

from latent_directions.core.charts import ACCENT, BAR, bar_chart


def coloured(chart, colour) -> np.ndarray:
    """Which pixels have just that colour."""
    return (np.asarray(chart) == colour).all(axis=-1)


def spans(chart, colour=BAR) -> list[tuple[int, int]]:
    """First and last column of every bar of a colour, from above."""
    found = coloured(chart, colour)
    rows = np.flatnonzero(found.sum(axis=1) > 1)
    groups = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [(int(columns.min()), int(columns.max())) for g in groups for columns in [np.flatnonzero(found[g[0]])]]


def test_bars_are_as_long_as_their_values():
    chart = bar_chart([("a", 1.0), ("b", 0.5), ("c", -0.5), ("d", -1.0)], limits=(-1, 1))
    bars = spans(chart)
    zero = bars[0][0]
    unit = bars[0][1] - zero
    assert [right - left for left, right in bars] == pytest.approx([unit, unit / 2, unit / 2, unit], abs=1.5)
    assert [left for left, _ in bars[:2]] == [zero, zero]
    assert [right for _, right in bars[2:]] == pytest.approx([zero, zero], abs=1)


def test_limits_hold_all_values():
    for values in ([0.003, 0.011], [7.3, 120.0], [-0.2, 0.05], [-3.0, -1.0]):
        chart = bar_chart([(str(v), v) for v in values])
        bars = spans(chart)
        assert len(bars) == 2
        assert all(0 < left <= right < chart.width - 16 for left, right in bars)
        lengths = [right - left for left, right in bars]
        assert lengths[0] / lengths[1] == pytest.approx(abs(values[0] / values[1]), rel=0.05)


def test_bars_beyond_the_limits_are_cut_off():
    inside, beyond = spans(bar_chart([("a", 1.0), ("b", 50.0)], limits=(-1, 1)))
    assert inside == beyond


def test_rows_can_be_highlighted_and_a_threshold_drawn():
    rows = [("a", 0.7), ("b", 0.1), ("c", 0.4)]
    chart = bar_chart(rows, limits=(-1, 1), highlighted={0, 2})
    assert (len(spans(chart, ACCENT)), len(spans(chart, BAR))) == (2, 1)
    plain = bar_chart([("b", 0.1)], limits=(-1, 1))
    line = np.flatnonzero(coloured(bar_chart([("b", 0.1)], limits=(-1, 1), thresholds=[0.5]), ACCENT).sum(axis=0) > 10)
    ((zero, tenth),) = spans(plain)
    assert len(line) == 2
    assert line[0] == pytest.approx(zero + 5 * (tenth - zero), abs=6)
    assert not coloured(plain, ACCENT).any()


def test_series_get_a_bar_each_and_a_legend():
    rows = [("a", [0.2, 0.5, 1.0]), ("b", [-0.2, None, -1.0])]
    plain, named = bar_chart(rows), bar_chart(rows, series=["x", "y", "z"])
    assert named.height > plain.height
    assert len(spans(plain)) == 2  # the last of a row has the colour itself
    assert bar_chart(rows * 4).height > plain.height


@pytest.mark.parametrize("value", [None, math.nan, math.inf, [None, None], []])
def test_what_is_no_number_has_no_bar(value):
    chart = bar_chart([("a", value), ("b", 0.5)], limits=(-1, 1))
    assert len(spans(chart)) == 1


def test_long_labels_leave_the_bars_alone():
    short, long = (spans(bar_chart([(label, 0.5)], limits=(0, 1))) for label in ("a", "word " * 400))
    assert long[0][0] > short[0][0]
    assert long[0][1] - long[0][0] > 100
    tall = bar_chart([("word " * 400, 0.5)], limits=(0, 1)).height
    assert tall == bar_chart([("word " * 4000, 0.5)], limits=(0, 1)).height


@pytest.mark.parametrize("label", ["", " ", "x" * 5000, "très, 笑顔, 😀", "two\nlines", "\u202e\u200b\0"])
def test_any_text_can_be_drawn(label):
    chart = bar_chart([(label, 0.5)], title=label, axis=label, series=[label, label])
    assert chart.mode == "RGB"
    assert chart.width == 768


def test_the_same_height_whatever_the_values():
    heights = {bar_chart([("a", v), ("b", -v)], limits=(-1, 1)).height for v in (0.0, 0.5, 1.0)}
    assert len(heights) == 1


def test_no_rows():
    assert bar_chart([]).width == 768
