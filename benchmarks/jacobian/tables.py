"""The tables: one line for a method on a model, and whether the order that the paper claims holds."""

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.eim.statistics import difference_of_means, paired_interval
from benchmarks.jacobian.measures import (
    FEWEST,
    attribute_changed,
    carries_over,
    cosine,
    leakage_ratio,
    outside_change,
    verdict,
)
from benchmarks.jacobian.methods import FACTORS

FIRST = "LOCO"
# (the method that should be better, the other), in the paper's order
ORDER = {
    "null space helps": ("LOCO", "LOCO, no null space"),
    "LOCO above pullback": ("LOCO", "pullback"),
    "pullback above random": ("pullback", "random"),
    "LOCO above random": ("LOCO", "random"),
}


def succeeded(row: dict) -> bool:
    """Whether an edit to either side changed an attribute of the region alone."""
    return any(
        edit["reached"] and attribute_changed(np.array(edit["changes"]), row["attributes"]) for edit in row["edits"]
    )


def leakage(row: dict) -> float | None:
    """Mean leakage ratio of the edits that reach the wanted change; None where none does."""
    found = [leakage_ratio(edit["inside"], edit["outside"]) for edit in row["edits"] if edit["reached"]]
    return float(np.mean(found)) if found else None


def best_change(row: dict) -> np.ndarray | None:
    """Changes of the attributes by the edit that was carried over."""
    return None if row["best"] is None else np.array(row["edits"][row["best"]]["changes"])


def transferred(row: dict) -> bool | None:
    """Whether a local edit changed the same on another picture; None where it was no local edit."""
    change = best_change(row)
    if change is None or not attribute_changed(change, row["attributes"]):
        return None
    return carries_over(change, np.array(row["on_another_picture"]))


def likeness(row: dict, place: str) -> float | None:
    """Cosine of the attributes' changes here and elsewhere: homogeneity (ours); None where that was not measured."""
    change = best_change(row)
    return None if change is None or row[place] is None else cosine(change, np.array(row[place]))


def mean(values: Iterable) -> float | str:
    """Mean of those that are not None, "-" where there are none."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else "-"


def pairs_of(rows: Sequence[dict], first: str, second: str, value) -> np.ndarray:
    """(N, 2): a value of two methods on all portraits of all models where both have it."""
    of_case = {(row["key"]["model"], row["key"]["picture"]): row for row in rows if row["key"]["method"] == second}
    found = []
    for row in rows:
        other = of_case.get((row["key"]["model"], row["key"]["picture"]))
        if row["key"]["method"] == first and other is not None:
            pair = value(row), value(other)
            if None not in pair:
                found.append(pair)
    return np.array(found, dtype=float).reshape(-1, 2)


def difference(pairs: np.ndarray) -> str:
    """Mean difference of pairs with its 95 % interval, "-" where there are fewer than FEWEST."""
    if len(pairs) < FEWEST:
        return "-"
    low, high = paired_interval(pairs, difference_of_means)
    return f"{float(difference_of_means(pairs)):+.3f} [{low:+.3f}, {high:+.3f}]"


def by_method(rows: Sequence[dict]) -> list[dict]:
    """One line for a method on a model: what its edits do at the wanted change."""
    lines = []
    for model, method in dict.fromkeys((row["key"]["model"], row["key"]["method"]) for row in rows):
        of_model = [row for row in rows if row["key"]["model"] == model]
        mine = [row for row in of_model if row["key"]["method"] == method]
        carried = [one for row in mine if (one := transferred(row)) is not None]
        outside = [
            outside_change(np.array(edit["changes"]), row["attributes"])
            for row in mine
            for edit in row["edits"]
            if edit["reached"]
        ]
        against = [(method, FIRST, value) for value in (succeeded, leakage)]
        success, leaks = (difference(pairs_of(of_model, *which)) for which in against)
        lines.append(
            {
                "model": model,
                "method": method,
                "portraits": len(mine),
                "reached": mean(edit["reached"] for row in mine for edit in row["edits"]),
                "local success": mean(map(succeeded, mine)),
                "less LOCO's": "" if method == FIRST else success,
                "leakage ratio": mean(map(leakage, mine)),
                "leakage less LOCO's": "" if method == FIRST else leaks,
                "attributes outside": mean(outside),
                "transfer success": f"{sum(carried)} of {len(carried)}",
                "evaluations": mean(row["evaluations"] for row in mine),
                "seconds": mean(row["seconds"] for row in mine),
            }
        )
    return lines


def by_property(rows: Sequence[dict]) -> list[dict]:
    """One line for a method on a model: linearity at the strengths of FACTORS, homogeneity and composability."""
    lines = []
    for model, method in dict.fromkeys((row["key"]["model"], row["key"]["method"]) for row in rows):
        mine = [row for row in rows if (row["key"]["model"], row["key"]["method"]) == (model, method)]
        linear = np.mean([row["linearity"] for row in mine], axis=0)
        lines.append(
            {"model": model, "method": method}
            | {f"linearity error at {factor:g}": float(linear[i, 0]) for i, factor in enumerate(FACTORS)}
            | {
                f"norm ratio, cosine at {FACTORS[-1]:g}": f"{linear[-1, 1]:.3f}, {linear[-1, 2]:.3f}",
                "effect inside": mean(row["share_inside"] for row in mine),
                "homogeneity, pictures": mean(likeness(row, "on_another_picture") for row in mine),
                "homogeneity, levels": mean(likeness(row, "on_another_level") for row in mine),
                "composition error": mean(row["composition_error"] for row in mine),
            }
        )
    return lines


def order(rows: Sequence[dict]) -> list[dict]:
    """Whether each claim of the paper's order holds, for a model and for all together."""
    models = list(dict.fromkeys(row["key"]["model"] for row in rows))
    lines = []
    for claim, (better, other) in ORDER.items():
        for model in [*models, *(["all"] if len(models) > 1 else [])]:
            mine = [row for row in rows if model in (row["key"]["model"], "all")]
            lines.append(
                {
                    "claim": claim,
                    "model": model,
                    "by local success": verdict(pairs_of(mine, better, other, succeeded)),
                    "by leakage": verdict(pairs_of(mine, better, other, leakage)[:, ::-1]),
                }
            )
    return lines
