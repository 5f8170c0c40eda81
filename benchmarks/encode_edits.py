"""Edits at a third of the target's range: what leaks, by the noise they start from and by the weight of the change.

The cases are those of `benchmarks.first`. Differences in leakage are paired by case, against the default: for the
starts over the cases in which all of them reached the change, for a weight over those in which it and the default did.
"""

import time

import numpy as np

from benchmarks.first import LEVEL, METHODS, cases, row
from benchmarks.portraits import INVERTED, STEPS, Bench
from benchmarks.tables import print_table
from latent_directions.core.inversion import INVERSIONS
from latent_directions.nodes.encode import CONTROLLED, FRESH, SEEDED

STARTS = [(method, 1) for method in (INVERTED, "euler", "heun", CONTROLLED)]
STARTS += [(SEEDED, seeds) for seeds in (1, 2, 8)] + [(FRESH, seeds) for seeds in (1, 2)]
WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5)
DIRECTIONS = ("text", "HSDS")
STRENGTHS = np.array([0, 0.5, 1, 2, 3])


def rows(bench: Bench, count: int) -> list[dict]:
    """Every start with weight 1, and the default start with every weight, on `count` portraits an attribute."""
    found = []
    for number, case in cases(count):
        directions = {}
        for method, seeds in STARTS:
            inversion, sigmas = bench.encode(case, LEVEL, method, seed=number, seeds=seeds)
            for name in DIRECTIONS:
                # a direction depends on the first noise alone, which these two share for all seeds
                key = name, SEEDED if method == FRESH else method
                if key not in directions:
                    kind, options = METHODS[name]
                    directions[key], _ = bench.find(case, inversion, kind, **options)
                for weight in WEIGHTS if method == INVERTED else (1.0,):
                    edit = measured(bench, case, (method, seeds, name, weight), inversion, sigmas, directions[key])
                    found.append(edit)
    return found


def measured(bench: Bench, case, setting: tuple, inversion, sigmas, direction) -> dict:
    """Change and leakage of one direction from one start, in the fields that all rows of `benchmarks.encode` share."""
    method, seeds, name, weight = setting
    started = time.perf_counter()
    start = f"{method} x {seeds}" if method in (SEEDED, FRESH) else method
    result = row(bench, case, start, inversion, sigmas, direction, STRENGTHS, weight)
    return {
        "family": "demo (SD3)",
        "sampler": "euler",
        "schedule": "simple",
        "guidance": 1.0,
        "evaluations": encoding_cost(method),
        "psnr_db": None,
        "vae_psnr_db": None,
        "zero_strength_max_abs_diff": None,
        "zero_strength_pixels_changed": None,
        "seconds": round(time.perf_counter() - started, 2),
        **result,
        "direction": name,
        "weight": weight,
        "evaluations_of_a_run": inversion.statistics.last_evaluations,
    }


def encoding_cost(method: str) -> int:
    """Evaluations of Encode Picture: two for the first step, then those of the method; instant methods take none."""
    if method in (SEEDED, FRESH):
        return 0
    each = INVERSIONS[method].evaluations if method in INVERSIONS else 1
    return 2 + (STEPS - 1) * each


def print_tables(found: list[dict]) -> None:
    """The two tables, each line by direction."""
    print("\nEdits at a third of the target's range, by the noise they start from:\n")
    print_table(summary([r for r in found if r["weight"] == 1], "method", INVERTED))
    print("\nThe same by the weight of the model's change, from the noise of backward euler:\n")
    print_table(summary([r for r in found if r["method"] == INVERTED], "weight", 1.0))


def summary(found: list[dict], by: str, default) -> list[dict]:
    """One line a direction and value of `by`."""
    lines, values = [], dict.fromkeys(r[by] for r in found)
    for name in DIRECTIONS:
        by_case = {v: {r["case"]: r for r in found if (r["direction"], r[by]) == (name, v)} for v in values}
        for value, mine in by_case.items():
            compared = by_case.values() if by == "method" else (mine, by_case[default])
            cases = [case for case in mine if all(line[case]["reached"] for line in compared)]
            leaks, usual = (np.array([line[case]["leakage"] for case in cases]) for line in (mine, by_case[default]))
            error = (leaks - usual).std(ddof=1) / len(cases) ** 0.5 if len(cases) > 1 else np.nan
            some = next(iter(mine.values()))
            lines.append(
                {
                    "direction": name,
                    {"method": "start"}.get(by, by): value,
                    "cases": len(mine),
                    "reached a third": float(np.mean([r["reached"] for r in mine.values()])),
                    "cases compared": len(cases),
                    "leakage": float(leaks.mean()) if cases else None,
                    "more than backward euler, weight 1": f"{(leaks - usual).mean():+.4f} ± {error:.4f}"
                    if cases
                    else None,
                    "evaluations to encode": some["evaluations"],
                    "of a run": some["evaluations_of_a_run"],
                }
            )
    return lines
