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
    """The strength from 0 on at which the target first changes by `wanted`, or most; linear between strengths."""
    forward = np.array(row["strengths"]) >= 0
    strengths, changes = np.array(row["strengths"])[forward], np.array(row["changes"])[forward]
    if changes.max() < wanted:
        return float(strengths[changes.argmax()])
    last = int(np.argmax(changes >= wanted))
    if last == 0:
        return float(strengths[0])
    return float(np.interp(wanted, changes[last - 1 : last + 1], strengths[last - 1 : last + 1]))


def sheet(
    bench: Bench, kept: RowFile, methods: dict[str, str], attributes: Sequence[str] = tuple(ATTRIBUTES)
) -> Image.Image:
    """One row an attribute: the picture, and every method where it changes half of the attribute's range, or most.

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
