"""Sliders on held-out portraits of the demo world: do they move the attribute, evenly, and what leaks?

Twenty (portrait, attribute) cases by fixed seeds, none chosen by its result. For every method the attribute is read by
the probe at strengths from -3 to 3; leakage is the mean over all other attributes, at the strength where the target has
changed by a third of its 5-95 % range. Then pairs that go together in the world, with and without a keep prompt.

    python -m benchmarks.first [--quick] [--json FILE]
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.command import parser, write
from benchmarks.portraits import Bench, Case, held_out
from benchmarks.tables import print_table
from latent_directions.core.direction import Direction
from latent_directions.demo.world import ATTRIBUTES, caption, sample_portrait

SEED = 70001
ATTRIBUTES_MOVED = ("smile", "mouth_opening", "eye_size", "brow_angle", "hair_length")
LEVEL = 0.5
STRENGTHS = np.array([-3, -2, -1, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3])
METHODS = {
    "text": ("text", {}),
    "HSDS": ("HSDS", {}),
    "HSDS image only": ("HSDS", {"image_share": 1.0, "text_share": 0.0}),
    "DDS image only": ("DDS", {"image_share": 1.0, "text_share": 0.0}),
    "T-LOCO": ("T-LOCO", {"masked": True}),
}


def wanted_change(attribute: str) -> float:
    """A third of the attribute's 5-95 % range; of the whole probability for a class."""
    described = ATTRIBUTES[attribute]
    if described.kind != "continuous":
        return 1 / 3
    low, high = described.range_5_95
    return (high - low) / 3


def change_towards(case: Case, values: np.ndarray, zero: int) -> np.ndarray:
    """How far the target moved from picture number `zero` towards the phrase, whose value may be the low end."""
    described = ATTRIBUTES[case.attribute]
    sign = -1.0 if described.kind == "continuous" and case.phrase == next(iter(described.words)) else 1.0
    return sign * (values - values[zero])


def random_like(direction: Direction, seed: int) -> Direction:
    """A random direction of the same norm that moves the latent alone."""
    noise = torch.randn(direction.latent.shape, generator=torch.Generator().manual_seed(seed))
    return replace(direction, latent=noise / noise.norm(), words=None, keep=())


def cases(count: int) -> Iterator[tuple[int, Case]]:
    """The held-out cases and the number of their portrait: `count` portraits an attribute."""
    for number in range(count):
        for attribute in ATTRIBUTES_MOVED:
            yield number, held_out(attribute, number, SEED)


def row(
    bench: Bench, case: Case, method: str, inversion, sigmas, direction: Direction, strengths=STRENGTHS, weight=1.0
) -> dict:
    """Spearman, change at its largest and leakage at the wanted change of one direction on one case.

    Spearman is None where fewer than five whole strengths were sampled.
    """
    zero = int(np.argmin(np.abs(strengths)))
    values, leaks = bench.measure(case, bench.edit(inversion, sigmas, direction, strengths, weight), zero)
    change, wanted = change_towards(case, values, zero), wanted_change(case.attribute)
    whole = [i for i, s in enumerate(strengths) if s == round(s)]
    forward, total = change[zero:], np.mean(list(leaks.values()), axis=0)
    return {
        "case": case.name,
        "method": method,
        "spearman": float(spearmanr(strengths[whole], change[whole])[0]) if len(whole) >= 5 else None,
        "change": float(forward.max()),
        "share_of_range": float(forward.max() / wanted / 3),
        "reached": bool(forward.max() >= wanted),
        "leakage": at_change(forward, total[zero:], wanted),
        "leaks": {name: at_change(forward, leak[zero:], wanted) for name, leak in leaks.items()},
    }


def at_change(change: np.ndarray, leak: np.ndarray, wanted: float) -> float:
    """Leakage where the change first reaches `wanted` (linear between strengths), or at the largest change."""
    if change.max() < wanted:
        return float(leak[change.argmax()])
    i = int(np.argmax(change >= wanted))
    if i == 0:
        return float(leak[0])
    t = (wanted - change[i - 1]) / (change[i] - change[i - 1])
    return float(leak[i - 1] + t * (leak[i] - leak[i - 1]))


def sliders(bench: Bench, count: int) -> list[dict]:
    """Every method and a random direction on the held-out cases."""
    rows = []
    for number, case in cases(count):
        inversion, sigmas = bench.encode(case, LEVEL)
        found = {name: bench.find(case, inversion, method, **options)[0] for name, (method, options) in METHODS.items()}
        found["random"] = random_like(found["HSDS image only"], number)
        rows += [row(bench, case, name, inversion, sigmas, direction) for name, direction in found.items()]
    return rows


# (what moves, what goes along with it in the world, words without it, words with it)
PAIRS = (
    ("smile", "mouth_opening", "tight-lipped", "open-mouthed"),
    ("hair_colour", "glasses", "without glasses", "with glasses"),
    ("background", "hat", "without hat", "with hat"),
)
TARGETS = {"smile": "smiling", "hair_colour": "grey hair", "background": "yellow background"}


def pair_case(attribute: str, along: str, without: str, present: str, number: int) -> Case:
    """A portrait without both, described by what is to move alone, and the keep prompts of what goes along."""
    rng = np.random.default_rng([SEED, 99, list(ATTRIBUTES).index(attribute), number])
    while True:
        portrait = sample_portrait(rng)
        if not ATTRIBUTES[attribute].names(TARGETS[attribute], getattr(portrait, attribute)) and ATTRIBUTES[
            along
        ].names(without, getattr(portrait, along)):
            break
    source = caption(portrait, attributes=[attribute])
    target = source.replace(ATTRIBUTES[attribute].phrase(getattr(portrait, attribute)), TARGETS[attribute])
    keep = f"{source}, {present} | {source}, {without}"
    return Case(f"{attribute} keep {along} {number}", portrait, attribute, source, target, TARGETS[attribute], keep)


def pairs(bench: Bench, count: int) -> list[dict]:
    """Text alone, and HSDS with a keep, where the world makes something else come along."""
    rows = []
    for number in range(count):
        for attribute, along, without, present in PAIRS:
            case = pair_case(attribute, along, without, present, number)
            inversion, sigmas = bench.encode(case, LEVEL)
            for name, method, keep in (
                ("text", "text", ""),
                ("text + keep", "text", case.keep),
                ("HSDS + keep", "HSDS", case.keep),
            ):
                direction, _ = bench.find(case, inversion, method, keep=keep)
                result = row(bench, case, name, inversion, sigmas, direction)
                rows.append({**result, "leak_along": result["leaks"][along]})
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """One line a method."""
    return [
        {
            "method": method,
            "cases": len(mine),
            "spearman >= 0.9": float(np.mean([r["spearman"] >= 0.9 for r in mine])),
            "median change / range": float(np.median([r["share_of_range"] for r in mine])),
            "reached a third": float(np.mean([r["reached"] for r in mine])),
            "mean leakage there": float(np.mean([r["leakage"] for r in mine])),
        }
        for method, mine in by_method(rows).items()
    ]


def summary_of_pairs(rows: list[dict]) -> list[dict]:
    """One line a method; leakage over the cases in which every method reached the wanted change."""
    reached = {r["case"] for r in rows} - {r["case"] for r in rows if not r["reached"]}
    lines = []
    for method, mine in by_method(rows).items():
        common = [r for r in mine if r["case"] in reached]
        lines.append(
            {
                "method": method,
                "cases": len(mine),
                "reached a third": float(np.mean([r["reached"] for r in mine])),
                "cases that all reached": len(common),
                "mean leakage there": float(np.mean([r["leakage"] for r in common])),
                "leakage of what goes along": float(np.mean([r["leak_along"] for r in common])),
            }
        )
    return lines


def by_method(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each method, in order of first appearance."""
    return {method: [r for r in rows if r["method"] == method] for method in dict.fromkeys(r["method"] for r in rows)}


def main() -> None:
    """Run the benchmark and print its tables."""
    options = parser(__doc__, "one portrait an attribute in place of four").parse_args()
    with torch.inference_mode():
        bench = Bench()
        first = sliders(bench, 1 if options.quick else 4)
        second = pairs(bench, 1 if options.quick else 6)
    print(f"Sliders, level {LEVEL}, leakage at a third of the target's range:\n")
    print_table(summary(first))
    print("\nPairs that go together in the world:\n")
    print_table(summary_of_pairs(second))
    write(first + second, options.json)


if __name__ == "__main__":
    main()
