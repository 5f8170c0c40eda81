"""One row for a method on a portrait: its direction, edits at the wanted change, and where else it acts."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.jacobian.measures import (
    at_wanted_change,
    composition_error,
    find_strengths,
    outside_change,
    parts_of_change,
)
from benchmarks.jacobian.methods import FINDERS, Found, found_by, longest_strength
from benchmarks.jacobian.subjects import REGIONS, Encoded, Subject
from latent_directions.core.denoiser import EvaluationCounter
from latent_directions.core.direction import Direction
from latent_directions.nodes.host import counted

LOWER = 0.3  # how far below its own level a direction is tried for homogeneity
EVERY = 9  # of so many portraits the first three, one of each region, are used for all measures
SIGNS = (1, -1)


class RowFile:
    """Rows by their keys, in memory and as lines of JSON in a file (none without a path).

    A row is on the disk before the next is measured. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._rows = path, {}
        if path is not None and path.exists():
            whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
            if cut:
                path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            self._rows = {_key(row["key"]): row for row in map(json.loads, whole.splitlines())}

    def get(self, key: dict, measure: Callable[[], dict]) -> dict:
        """The row of a key, measured unless it is there already."""
        if _key(key) not in self._rows:
            row = {"key": key, **measure()}
            self._rows[_key(key)] = row
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
        return self._rows[_key(key)]


def _key(key: dict) -> str:
    return json.dumps(key, sort_keys=True)


def edited(here: Encoded, direction: Direction, sign: int) -> dict:
    """The edit along a direction to one side at the wanted change inside the region.

    Returns:
        strength (signed), norms of the pixel change inside and outside, and the changes of the attributes; all None but
        `longest` and `reached` where the wanted change is not reached.
    """
    runs: list[tuple[float, float, np.ndarray]] = []

    def change_at(strength: float) -> float:
        picture = here.sampled((direction, sign * strength)).picture
        rms, inside, outside = parts_of_change(picture, here.unmoved.picture, here.pixels)
        figures = np.array([inside, outside, *here.changes([picture])[0]])
        runs.append((strength, rms, figures))
        return rms

    longest = longest_strength(here, direction)
    find_strengths(change_at, here.wanted, longest)
    at = at_wanted_change(runs, here.wanted)
    row = {"runs": len(runs), "longest": longest, "reached": at is not None}
    if at is None:
        return row | dict.fromkeys(("strength", "inside", "outside", "changes"))
    inside, outside, *changes = (float(value) for value in at[1])
    return row | {"strength": sign * at[0], "inside": inside, "outside": outside, "changes": changes}


def measured(subject: Subject, method: str, number: int, partner: int) -> dict:
    """One row. Everything after the search happens at the strength of the edit that reaches the wanted change.

    Where both signs reach it, that is the one that changes the attributes outside the region less in comparison with
    those inside it.
    """
    here, counter = subject.encoded(number), EvaluationCounter()
    found = found_by(FINDERS[method], method, here, number)
    with counted(subject.bench.model, counter):
        edits = [edited(here, found.directions[0], sign) for sign in SIGNS]
        reached = [edit for edit in edits if edit["reached"]]
        best = min(reached, key=lambda edit: _share_outside(edit, here.attributes), default=None)
        elsewhere = {} if best is None else _elsewhere(subject, number, partner, found, best)
    return {
        "region": here.region,
        "attributes": here.attributes,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "sampling_evaluations": counter.evaluations,
        "step": found.looks[0].step,
        "share_inside": found.looks[0].share_inside,
        "linearity": found.looks[0].linearity,
        "edits": edits,
        "best": None if best is None else edits.index(best),
        "on_another_picture": None,
        "on_another_level": None,
        "composition_error": None,
    } | elsewhere


def _share_outside(edit: dict, inside: list[str]) -> float:
    outside, total = outside_change(edit["changes"], inside), float(np.abs(edit["changes"]).sum())
    return outside / max(total, 1e-12)


def _elsewhere(subject: Subject, number: int, partner: int, found: Found, best: dict) -> dict:
    """The direction on another picture, and for some portraits at another level and with the second direction."""
    direction, strength = found.directions[0], best["strength"]

    def changes_at(place: Encoded) -> list[float]:
        return place.changes([place.sampled((direction, strength)).picture])[0].tolist()

    measures = {"on_another_picture": changes_at(subject.encoded(partner))}
    if number % EVERY < len(REGIONS):
        measures["on_another_level"] = changes_at(subject.encoded(number, subject.level - LOWER))
        if len(found.directions) > 1:
            here, one, other = subject.encoded(number), (direction, strength), (found.directions[1], strength)
            first, second, both = (here.sampled(*sliders).latent for sliders in ([one], [other], [one, other]))
            measures["composition_error"] = composition_error(here.unmoved.latent, first, second, both)
    return measures
