"""Rows of the benchmark: measured one by one, and kept in a file from which a stopped run goes on."""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from benchmarks.eim.cases import SIGNED, Entry
from benchmarks.eim.editor import Editor
from benchmarks.eim.methods import Method
from benchmarks.eim.statistics import figures
from benchmarks.portraits import Bench
from latent_directions.core.denoiser import EvaluationCounter
from latent_directions.nodes.host import counted


def measured(bench: Bench, entry: Entry, name: str, method: Method, strengths: np.ndarray = SIGNED) -> dict:
    """One row: a method on a case.

    Evaluations are counted by a hook on the network. The first position runs once more at the end: what it cost more
    at first was computed once for all and counts as such. Those of a position are the mean over the strengths other
    than 0. Seconds are of the CPU (one thread): the preparation and every position once.
    """
    strengths = strengths if method.signed else strengths[strengths >= 0]
    moved = strengths[strengths != 0]
    original = Editor(bench, entry.case).original()
    counter, started = EvaluationCounter(), time.process_time()

    def counting(work: Callable):
        before = counter.evaluations
        return work(), counter.evaluations - before

    with counted(bench.model, counter):
        edit, prepared = counting(lambda: method.edit(bench, entry.case))
        first, of_first = counting(lambda: edit(moved[:1]))
        unmoved, _ = counting(lambda: edit(np.zeros(1)))
        others, of_others = counting(lambda: edit(moved[1:]) if len(moved) > 1 else [])
        seconds = time.process_time() - started
        _, again = counting(lambda: edit(moved[:1]))
    zero = int((strengths < 0).sum())
    pictures = [*first, *others]
    pictures = [*pictures[:zero], *unmoved, *pictures[zero:]]
    found = figures(bench, entry.case, strengths, pictures, original)
    return {
        "table": entry.table,
        "case": entry.case.name,
        "attribute": entry.case.attribute,
        "method": name,
        "setting": method.setting,
        "keep": entry.case.keep if method.keep else "",
        "mask": method.mask,
        **found,
        "leak_along": found["leaks"][entry.along] if entry.along else None,
        "evaluations_once": prepared + of_first - again,
        "evaluations_per_position": (again + of_others) / len(moved),
        "seconds": round(seconds, 3),
    }


def key_of(table: str, case: str, method: str, setting: dict, strengths: Iterable[float]) -> str:
    """What a row must not be measured twice for."""
    return json.dumps([table, case, method, setting, [float(s) for s in strengths]], sort_keys=True)


class RowFile:
    """Rows by what they were measured for, in memory and as lines of JSON in a file (none without a path).

    A row is on the disk before the next is measured. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._rows = path, {}
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            whole, _, cut = text.rpartition("\n")
            if cut:
                path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            for line in whole.splitlines():
                row = json.loads(line)
                self._rows[_key(row)] = row

    def get(self, bench: Bench, entry: Entry, name: str, method: Method, strengths: np.ndarray = SIGNED) -> dict:
        """The row of a method on a case, measured unless it is there already."""
        wanted = strengths if method.signed else strengths[strengths >= 0]
        key = key_of(entry.table, entry.case.name, name, method.setting, wanted)
        if key not in self._rows:
            row = measured(bench, entry, name, method, strengths)
            self._rows[key] = row
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
        return self._rows[key]


def _key(row: dict) -> str:
    return key_of(row["table"], row["case"], row["method"], row["setting"], row["strengths"])
