"""A sheet of pictures: the methods side by side at the same change inside the region."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from benchmarks.jacobian.methods import FINDERS, found_by
from benchmarks.jacobian.rows import SIGNS
from benchmarks.jacobian.subjects import REGIONS, Subject
from latent_directions.core.contact_sheet import contact_sheet

WIDTH = 72


def sheet(subjects: Sequence[Subject], rows: Sequence[dict]) -> Image.Image:
    """One row for a method on a model: for every region's first portrait the edit to both sides, the portrait between.

    Where an edit does not reach the wanted change there is none, and an empty picture stands for it.
    """
    lines = []
    for subject in subjects:
        mine = [row for row in rows if row["key"]["model"] == subject.name]
        for method in dict.fromkeys(row["key"]["method"] for row in mine):
            pictures = [("", _title(f"{subject.name}: {method}"))]
            for row in mine:
                if row["key"]["method"] == method and row["key"]["picture"] < len(REGIONS):
                    pictures += _of_row(subject, method, row)
            lines.append(("", pictures))
    return contact_sheet(lines, WIDTH)


def _title(name: str) -> Image.Image:
    """A name as a picture, in lines of a few letters."""
    picture = Image.new("RGB", (WIDTH, WIDTH), "white")
    lines = textwrap.fill(name, 11, break_long_words=False)
    ImageDraw.Draw(picture).multiline_text((2, 2), lines, "black", ImageFont.load_default(10), spacing=2)
    return picture


def _of_row(subject: Subject, method: str, row: dict) -> list[tuple[str, Image.Image]]:
    number = row["key"]["picture"]
    here = subject.encoded(number)
    direction = found_by(FINDERS[method], method, here, number).directions[0]
    shown = [("", Image.fromarray(here.unmoved.picture))]
    for sign, edit in zip(SIGNS, row["edits"], strict=True):
        if edit["reached"]:
            picture = Image.fromarray(here.sampled((direction, edit["strength"])).picture)
            label = f"{edit['strength']:+.1f}"
        else:
            picture, label = Image.new("RGB", shown[0][1].size, "white"), "not reached"
        shown.insert(len(shown) if sign > 0 else 0, (label, picture))
    size = (WIDTH, WIDTH)
    return [(label, picture.resize(size, Image.Resampling.NEAREST)) for label, picture in shown]
