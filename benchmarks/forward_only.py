"""Directions without a backward pass against those by the SVD: do edits reach as far, what leaks, what do they cost?

Twenty (portrait, attribute) cases by fixed seeds, none chosen by its result. LOCO finds five directions inside a mask
and has no words, so the probe names the direction and the sign: those that move the attribute furthest towards the
case's word at strengths -3, -1.5, 1.5 or 3, by the same rule for every search. HSDS has words and needs no choice.
Searches are compared at a matched change: a third of the attribute's 5-95 % range, or as far as the automatic search's
slider gets within strength 3 where that is less. Leakage is the mean over all other attributes there.

    python -m benchmarks.forward_only [--quick] [--json FILE]
"""

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.command import parser, write
from benchmarks.first import LEVEL, at_change, by_method, cases, change_towards, wanted_change
from benchmarks.portraits import REGION, Bench, Case
from benchmarks.tables import print_table
from latent_directions.core.direction import Direction
from latent_directions.core.search import AUTOMATIC, FORWARD_ONLY

COUNT = 5
COARSE, FINE = np.array([-3, -1.5, 1.5, 3]), np.linspace(0, 3, 7)
MASKS = {**REGION, "brow_angle": "face"}  # the brows lie above the mask of the eyes


@dataclass(frozen=True)
class Slider:
    """Change of the target and mean leakage of the others at the strengths of FINE, and what the search cost."""

    change: np.ndarray
    leakage: np.ndarray
    number: int
    sign: int
    evaluations: int
    seconds: float


def curve(bench: Bench, case: Case, encoded: tuple, direction: Direction, strengths: np.ndarray):
    """Change of the target towards the case's word and mean leakage at the strengths, both against strength 0."""
    inversion, sigmas, unmoved = encoded
    values, leaks = bench.measure(case, [unmoved, *bench.edit(inversion, sigmas, direction, strengths)], 0)
    return change_towards(case, values, 0)[1:], np.mean(list(leaks.values()), axis=0)[1:]


def loco_slider(bench: Bench, case: Case, encoded: tuple, derivatives: str) -> Slider:
    """The direction and sign of LOCO's five that move the attribute furthest."""
    directions, report = bench.find_all(
        case, encoded[0], "LOCO", region=MASKS[case.attribute], count=COUNT, derivatives=derivatives
    )
    changes = [curve(bench, case, encoded, direction, COARSE)[0] for direction in directions]
    number, strength = np.unravel_index(np.argmax(changes), (len(directions), len(COARSE)))
    sign = int(np.sign(COARSE[strength]))
    change, leakage = curve(bench, case, encoded, directions[number], sign * FINE)
    return Slider(change, leakage, int(number), sign, report["model_evaluations"], report["seconds"])


def hsds_slider(bench: Bench, case: Case, encoded: tuple, derivatives: str) -> Slider:
    """The slider of HSDS towards the case's word."""
    direction, report = bench.find(case, encoded[0], "HSDS", derivatives=derivatives)
    change, leakage = curve(bench, case, encoded, direction, FINE)
    return Slider(change, leakage, 0, 1, report["model_evaluations"], report["seconds"])


def compare(case: Case, method: str, sliders: dict[str, Slider]) -> list[dict]:
    """One row a search, at the change that the automatic search sets."""
    third = wanted_change(case.attribute)
    wanted = min(third, float(sliders[AUTOMATIC].change.max()))
    return [
        {
            "case": case.name,
            "method": f"{method}, {derivatives}",
            "direction": slider.number,
            "sign": slider.sign,
            "share_of_range": float(slider.change.max()) / third / 3,
            "matched_share_of_range": wanted / third / 3,
            "reached": bool(slider.change.max() >= wanted),
            "leakage": at_change(slider.change, slider.leakage, wanted),
            "evaluations": slider.evaluations,
            "seconds": slider.seconds,
        }
        for derivatives, slider in sliders.items()
    ]


def rows(bench: Bench, count: int) -> list[dict]:
    """LOCO and HSDS, each searched with and without a backward pass, on `count` portraits an attribute."""
    found = []
    for _, case in cases(count):
        inversion, sigmas = bench.encode(case, LEVEL)
        encoded = inversion, sigmas, bench.unmoved(inversion, sigmas)
        for method, slider in (("LOCO", loco_slider), ("HSDS", hsds_slider)):
            searches = {
                derivatives: slider(bench, case, encoded, derivatives) for derivatives in (AUTOMATIC, FORWARD_ONLY)
            }
            found += compare(case, method, searches)
    return found


def summary(found: list[dict]) -> list[dict]:
    """One line a search; leakage over the cases in which it reached the change, and over the automatic search's there.

    "automatic reached its" is the reverse comparison: at its own change, or a third where that is less.
    """
    lines = []
    for method, mine in by_method(found).items():
        automatic = {r["case"]: r for r in found if r["method"] == f"{method.split(', ')[0]}, {AUTOMATIC}"}
        theirs = [automatic[r["case"]] for r in mine]
        common = [i for i, r in enumerate(mine) if r["reached"]]
        leaks, others = (np.array([lot[i]["leakage"] for i in common]) for lot in (mine, theirs))
        shares, other_shares = (np.array([r["share_of_range"] for r in lot]) for lot in (mine, theirs))
        lines.append(
            {
                "search": method,
                "cases": len(mine),
                "median change / range": float(np.median(shares)),
                "reached a third": float(np.mean(shares >= 1 / 3)),
                "reached automatic's change": float(np.mean([r["reached"] for r in mine])),
                "automatic reached its": float(np.mean(other_shares >= np.minimum(shares, 1 / 3))),
                "leakage there": float(leaks.mean()),
                "over automatic's": float(leaks.mean() / others.mean()),
                "median of that": float(np.median(leaks / others)),
                "evaluations": float(np.mean([r["evaluations"] for r in mine])),
                "most": max(r["evaluations"] for r in mine),
                "seconds": float(np.mean([r["seconds"] for r in mine])),
            }
        )
    return lines


def main() -> None:
    """Run the benchmark and print its table."""
    options = parser(__doc__, "one portrait an attribute in place of four").parse_args()
    with torch.inference_mode():
        found = rows(Bench(), 1 if options.quick else 4)
    print_table(summary(found))
    write(found, options.json)


if __name__ == "__main__":
    main()
