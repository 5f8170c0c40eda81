"""A sheet of pictures: methods side by side on the first held-out case of some attributes, at about the same change."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.eim.cases import HELD_OUT, cases_of
from benchmarks.eim.editor import Editor
from benchmarks.eim.methods import METHODS
from benchmarks.eim.rows import RowFile
from benchmarks.first import wanted_change
from benchmarks.portraits import Bench
from latent_directions.core.contact_sheet import contact_sheet
from latent_directions.demo.world import ATTRIBUTES

WIDTH = 128


def strength_at(row: dict, wanted: float) -> float:
    """The first strength of a row, from 0 on, at which the target has changed by `wanted`, or that of most change."""
    forward = np.array(row["strengths"]) >= 0
    strengths, changes = np.array(row["strengths"])[forward], np.array(row["changes"])[forward]
    return float(strengths[np.argmax(changes >= min(wanted, changes.max()))])


def sheet(
    bench: Bench, kept: RowFile, methods: dict[str, str], attributes: Sequence[str] = tuple(ATTRIBUTES)
) -> Image.Image:
    """One row an attribute: the picture, and every method where it first changes half the attribute's range, or most.

    Args:
        bench: the demo model.
        kept: rows of the methods on the held-out cases, measured where they are missing.
        methods: label by name of a method.
        attributes: the rows.
    """
    entries = {entry.case.attribute: entry for entry in reversed(cases_of(HELD_OUT, len(ATTRIBUTES)))}
    rows = []
    for attribute in attributes:
        entry = entries[attribute]
        pictures = [("", Editor(bench, entry.case).original())]
        for name, label in methods.items():
            strength = strength_at(kept.get(bench, entry, name, METHODS[name]), 1.5 * wanted_change(attribute))
            pictures.append((label, METHODS[name].edit(bench, entry.case)([strength])[0]))
        rows.append((entry.case.phrase, [(label, Image.fromarray(picture)) for label, picture in pictures]))
    return contact_sheet(rows, WIDTH)
