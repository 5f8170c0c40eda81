"""Words as sliders: our methods and the published ones on the demo model, each tuned by the same rule.

24 tuning cases for all methods, 100 held-out cases for the default and the six published methods that are strongest on
the tuning cases, and the pairs of attributes that go together in the world, with and without keep prompts. With --parts
also what the default is made of, other starts and HSDS on the held-out cases.

Leakage is the mean over all other attributes where the target has changed by a third of its 5-95 % range; pictures are
compared with the original, so a poor reconstruction leaks too. Against the default, leakage is compared case by case at
the same change (a third, or as far as both get), with 95 % bootstrap intervals over the cases. "Without interpolation"
compares at the first setting of the method that changes a third, because between two settings far apart the leakage is
a guess.

    python -m benchmarks.eim [--quick] [--json FILE] [--tune [METHOD ...]] [--parts] [--sheet PICTURE]

Rows are appended to FILE as they are measured (one JSON object a line); a second start with the same file goes on from
there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.command import parser
from benchmarks.eim.cases import FORWARD, HELD_OUT, PAIR, SIGNED, TUNING, cases_of
from benchmarks.eim.methods import DEFAULT, METHODS, PAIR_METHODS, PARTS, Method
from benchmarks.eim.rows import RowFile
from benchmarks.eim.sheet import sheet
from benchmarks.eim.statistics import (
    at_its_setting,
    difference_of_means,
    matched,
    paired_interval,
    ratio_of_means,
    score,
)
from benchmarks.first import by_method, wanted_change
from benchmarks.portraits import Bench
from benchmarks.tables import print_table
from latent_directions.demo.world import ATTRIBUTES

RIVALS, FIRST_ROUND, FINALISTS = 6, 11, 2
QUICK = np.array([-1.0, 0, 2])
ALL_METHODS = tuple(name for name, method in METHODS.items() if not method.keep)
QUICK_METHODS = (DEFAULT, *(name for name, method in METHODS.items() if method.published))


def table_rows(bench: Bench, kept: RowFile, table: str, names: Iterable[str], quick: bool = False) -> list[dict]:
    """Rows of the methods named on the cases of a table, case by case; `quick` takes one case, in few steps."""
    methods = {name: METHODS[name].quick() if quick else METHODS[name] for name in names}
    return [
        kept.get(bench, entry, name, method, QUICK if quick else SIGNED)
        for entry in cases_of(table, 1 if quick else None)
        for name, method in methods.items()
        if entry.case.keep or not method.keep
    ]


def strongest(rows: Sequence[dict], count: int) -> list[str]:
    """The published methods with the lowest score."""
    scores = {name: score(mine) for name, mine in by_method(rows).items() if METHODS[name].published}
    return sorted(scores, key=scores.get)[:count]


def summary(rows: Sequence[dict], default: str = DEFAULT) -> list[dict]:
    """One line a method; the last four columns compare with the default, case by case."""
    found = by_method(rows)
    return [line(name, mine, found.get(default, [])) for name, mine in found.items()]


def line(name: str, mine: Sequence[dict], others: Sequence[dict]) -> dict:
    """One line of a table: a method's rows, and its comparison with the default's rows on the same cases."""
    reached = [r for r in mine if r["reached"]]
    continuous = [r for r in mine if ATTRIBUTES[r["attribute"]].kind == "continuous"]
    return {
        "method": name,
        "cases": len(mine),
        "spearman >= 0.9": float(np.mean([r["spearman"] >= 0.9 for r in mine])),
        "continuous attributes alone": float(np.mean([r["spearman"] >= 0.9 for r in continuous]))
        if continuous
        else "-",
        "strengths": "signed" if min(mine[0]["strengths"]) < 0 else "from 0",
        "median change / range": float(np.median([r["share_of_range"] for r in mine])),
        "reached a third": float(np.mean([r["reached"] for r in mine])),
        "leakage there": mean_of(reached, "leakage"),
        "score": score(mine),
        "largest step / range": float(np.median([largest_step(r) for r in mine])),
        "evaluations once": mean_of(mine, "evaluations_once"),
        "per position": mean_of(mine, "evaluations_per_position"),
        "seconds": mean_of(mine, "seconds"),
        **compared(mine, others),
    }


def in_words(setting: dict) -> str:
    """A setting as one cell of a table."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in setting.items()
    )


def mean_of(rows: Sequence[dict], name: str) -> float | str:
    """Mean of a field, "-" where there are no rows or the field is not theirs."""
    values = [r[name] for r in rows if r[name] is not None]
    return float(np.mean(values)) if values else "-"


def largest_step(row: dict) -> float:
    """Largest change between neighbouring strengths from 0 on, in ranges: how much of the curve is interpolated."""
    forward = np.array(row["changes"])[np.array(row["strengths"]) >= 0]
    return float(np.abs(np.diff(forward)).max() / wanted_change(row["attribute"]) / 3)


def compared(mine: Sequence[dict], others: Sequence[dict]) -> dict:
    """Reached cases and leakage at matched change against another method's rows, with paired intervals."""
    of_case = {r["case"]: r for r in others}
    both = [(r, of_case[r["case"]]) for r in mine if r["case"] in of_case]
    reached = [(float(one["reached"]), float(other["reached"])) for one, other in both]
    leaks = [pair for one, other in both if (pair := matched(one, other)) is not None]
    at_settings = [pair for one, other in both if (pair := at_its_setting(one, other)) is not None]
    return {
        "reached, less default's": with_interval(reached, difference_of_means),
        "leakage / default's": with_interval(leaks, ratio_of_means),
        "the same without interpolation": with_interval(at_settings, ratio_of_means),
        "cases compared": f"{len(leaks)}, {len(at_settings)}",
    }


def with_interval(pairs: Sequence[tuple[float, float]], statistic) -> str:
    """A statistic of pairs and its interval, "-" where there are none."""
    if not pairs:
        return "-"
    low, high = paired_interval(np.array(pairs), statistic)
    return f"{float(statistic(np.array(pairs))):.3f} [{low:.3f}, {high:.3f}]"


def summary_of_pairs(rows: Sequence[dict]) -> list[dict]:
    """One line a method for the pairs: as the others, with the leakage of what goes along."""
    lines = summary(rows)
    for found, mine in zip(lines, by_method(rows).values(), strict=True):
        found["leakage of what goes along"] = mean_of([r for r in mine if r["reached"]], "leak_along")
    return lines


def tune(bench: Bench, kept: RowFile, names: Iterable[str]) -> list[dict]:
    """One line a setting of the grids, by its score on the tuning cases at strengths from 0 on.

    All settings of a method meet the first FIRST_ROUND cases, one of every attribute; the best FINALISTS of them meet
    all. The best of these is the one to use.
    """
    lines = []
    for name in names:
        method = METHODS[name]
        of_setting = [replace(method, setting=setting) for setting in method.grid]

        def rows(setting: Method, first: int | None, name: str = name) -> list[dict]:
            return [kept.get(bench, entry, name, setting, FORWARD) for entry in cases_of(TUNING, first)]

        first = [rows(setting, FIRST_ROUND) for setting in of_setting]
        order = sorted(range(len(first)), key=lambda i: score(first[i]))
        final = {i: rows(of_setting[i], None) for i in order[:FINALISTS]}
        best = min(final, key=lambda i: score(final[i]))
        for i, setting in enumerate(of_setting):
            found = final.get(i, first[i])
            lines.append(
                {
                    "method": name,
                    "setting": in_words(setting.setting),
                    "cases": len(found),
                    "reached a third": float(np.mean([r["reached"] for r in found])),
                    "leakage there": mean_of([r for r in found if r["reached"]], "leakage"),
                    "score": score(found),
                    "evaluations once": mean_of(found, "evaluations_once"),
                    "per position": mean_of(found, "evaluations_per_position"),
                    "seconds": mean_of(found, "seconds"),
                    "best": "x" if i == best else "",
                    "in use": "x" if setting.setting == method.setting else "",
                }
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables, or with --tune the grids."""
    options = _parser().parse_args(arguments)
    kept = RowFile(options.json)
    quick = options.quick
    with torch.inference_mode():
        bench = Bench()
        if options.tune is not None:
            names = options.tune or [name for name, method in METHODS.items() if method.grid]
            print_table(tune(bench, kept, names))
            return
        tuning = table_rows(bench, kept, TUNING, QUICK_METHODS if quick else ALL_METHODS, quick)
        print("Tuning cases, all methods:\n")
        print_table(summary(tuning))
        best = [DEFAULT, *(PARTS if options.parts else ()), *strongest(tuning, 1 if quick else RIVALS)]
        print("\nHeld-out cases:\n", flush=True)
        print_table(summary(table_rows(bench, kept, HELD_OUT, best, quick)))
        print("\nPairs that go together in the world:\n", flush=True)
        of_pairs = PAIR_METHODS[:2] if quick else PAIR_METHODS
        print_table(summary_of_pairs(table_rows(bench, kept, PAIR, of_pairs, quick)))
        if options.sheet and not quick:
            of_sheet = [DEFAULT, *(name for name in best if METHODS[name].published)]
            sheet(bench, kept, {name: "ours" if name == DEFAULT else name for name in of_sheet}).save(options.sheet)


def _parser():
    made = parser(
        __doc__, "one case a table, three strengths, few steps, of ours the default alone; --tune has no quick form"
    )
    made.add_argument(
        "--tune", nargs="*", metavar="METHOD", choices=[*METHODS, []], help="measure the grids of these methods, or all"
    )
    made.add_argument("--parts", action="store_true", help="more of our own methods on the held-out cases")
    made.add_argument(
        "--sheet", type=Path, metavar="PICTURE", help="also write pictures of the held-out cases (not with --quick)"
    )
    return made
