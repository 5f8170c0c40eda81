"""Directions found without words on held-out portraits: does each change one thing, and how many things are found?

Portraits of a fixed seed under the prompt "a face", level 0.8, fresh noise, 10 steps, euler at guidance 1; twelve
directions a search. A direction is looked at where it first changes an attribute plainly (by 0.5 standard deviations,
or 0.5 of a class's probability) at strengths 0.5, 1 and 2 of either sign; it changes one thing when that attribute
changes more than all others together. LOCO's strengths are half of these, for its steps are twice as long. "random" are
random orthonormal mixes of LOCO's directions. A name is right when it is of the attribute that changes most. The
evaluations of explore include 22 for the eleven pairs of words of the demo's list, which give the names. "prepared" is
what Prepare Quick Slider takes with four steps for a direction of explore, and how near Quick Slider's picture at
strength 1 is to a sampled one of ten steps.

    python -m benchmarks.explore [--quick] [--json FILE]
"""

import json
from dataclasses import replace

import numpy as np
import torch

from benchmarks.command import parser, write
from benchmarks.portraits import Bench, Case, eight_bit
from benchmarks.tables import print_table
from latent_directions.core.anchor import ReferenceCache
from latent_directions.core.direction import Direction
from latent_directions.core.metrics import psnr
from latent_directions.core.search import AUTOMATIC, FORWARD_ONLY
from latent_directions.demo.measures import changes, named_in
from latent_directions.demo.world import ATTRIBUTES, sample_portrait
from latent_directions.nodes.quick import PrepareQuickSlider, QuickSlider

SEED, LEVEL, PROMPT = 70311, 0.8, "a face"
COUNT, PORTRAITS = 12, 6
STRENGTHS = np.array([0.5, 1.0, 2.0])
PLAIN = 0.5
SEARCHES = {
    "explore": ("explore", AUTOMATIC, 1.0),
    "explore, forward only": ("explore", FORWARD_ONLY, 1.0),
    "LOCO": ("LOCO", AUTOMATIC, 0.5),
}
RANDOM = "random"
PREPARED_STEPS = 4  # of each of the two runs from which a direction is prepared for Quick Slider


def portrait_case(number: int) -> Case:
    """A portrait of the correlated world under a prompt that names nothing of it."""
    portrait = sample_portrait(np.random.default_rng([SEED, number]))
    return Case(f"portrait {number}", portrait, "", PROMPT, "", "")


def mixed(directions: list[Direction], seed: int) -> list[Direction]:
    """Random orthonormal mixes of directions, each with the mean of their steps."""
    count = len(directions)
    rotation = torch.linalg.qr(torch.randn(count, count, generator=torch.Generator().manual_seed(seed)))[0]
    moves = torch.einsum("ij,i...->j...", rotation, torch.stack([direction.latent for direction in directions]))
    step = float(np.mean([direction.step for direction in directions]))
    return [replace(directions[0], latent=move, step=step) for move in moves]


def seen_in(change: np.ndarray) -> dict:
    """What a direction changes.

    Args:
        change: of every attribute at every strength and sign, (strengths, 2, attributes).

    Returns:
        The attribute that changes most where that is first plain, or at the last strength; whether it is plain; and its
        share of all changes.
    """
    size = np.abs(change)
    plain = size.max((1, 2)) >= PLAIN
    at = int(plain.argmax()) if plain.any() else len(size) - 1
    sizes = size[at, size[at].max(1).argmax()]
    return {
        "attribute": list(ATTRIBUTES)[int(sizes.argmax())],
        "plain": bool(plain.any()),
        "share": float(sizes.max() / sizes.sum()),
        "one_thing": bool(plain.any() and sizes.max() > sizes.sum() / 2),
    }


def changes_of(bench: Bench, encoded: tuple, direction: Direction, strengths: np.ndarray) -> np.ndarray:
    """(strengths, 2, attributes) of one direction's slider."""
    inversion, sigmas, unmoved = encoded
    signed = [sign * strength for strength in strengths for sign in (1, -1)]
    read = bench.reader.read([unmoved, *bench.edit(inversion, sigmas, direction, signed)])
    before, after = (
        {name: part(values) for name, values in read.items()} for part in (lambda v: v[:1], lambda v: v[1:])
    )
    found = changes(before, after)
    return np.stack([found[name].change for name in ATTRIBUTES], -1).reshape(len(strengths), 2, len(ATTRIBUTES))


def find_anew(bench: Bench, case: Case, inversion, method: str, derivatives: str) -> tuple[list[Direction], dict]:
    """The directions of a search that finds nothing in the picture's cache, and its report."""
    alone = replace(inversion, cache=ReferenceCache())
    return bench.find_all(case, alone, method, count=COUNT, find_keeps="demo portraits", derivatives=derivatives)


def prepared(bench: Bench, inversion, sigmas, direction: Direction) -> dict:
    """What preparing a direction for Quick Slider takes, and the PSNR of its picture at strength 1 to a sampled one."""
    made, report = PrepareQuickSlider.execute(inversion, [direction], 0, steps=PREPARED_STEPS).result[:2]
    quick = bench.vae.decode(QuickSlider.execute(inversion, made, 0, 1.0).result[0]["samples"])[0]
    (sampled,) = bench.edit(inversion, sigmas, direction, [1.0])
    near = psnr(torch.from_numpy(eight_bit(quick)) / 255.0, torch.from_numpy(sampled) / 255.0)
    return {"prepared_evaluations": json.loads(report)["model_evaluations"], "prepared_psnr": near}


def rows_of(bench: Bench, number: int) -> list[dict]:
    """One row a direction of every search on one portrait."""
    case, rows = portrait_case(number), []
    inversion, sigmas = bench.encode(case, LEVEL, "fresh noise")
    encoded = inversion, sigmas, bench.unmoved(inversion, sigmas)
    searches = {
        name: (*find_anew(bench, case, inversion, method, derivatives), factor)
        for name, (method, derivatives, factor) in SEARCHES.items()
    }
    directions, report, factor = searches["LOCO"]
    searches[RANDOM] = mixed(directions, number), report, factor
    for name, (directions, report, factor) in searches.items():
        for direction in directions:
            seen = seen_in(changes_of(bench, encoded, direction, factor * STRENGTHS))
            named = None if direction.name.startswith("direction ") else seen["attribute"] in named_in(direction.name)
            evaluations = report["model_evaluations"]
            quick = prepared(bench, inversion, sigmas, direction) if name == "explore" else {}
            rows.append(
                {"case": case.name, "search": name, "name": direction.name, "named": named, "evaluations": evaluations}
                | seen
                | quick
            )
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """One line a search: means over the portraits."""
    lines = []
    for search in dict.fromkeys(row["search"] for row in rows):
        mine = [row for row in rows if row["search"] == search]
        cases = dict.fromkeys(row["case"] for row in mine)
        alone = [{row["attribute"] for row in mine if row["case"] == case and row["one_thing"]} for case in cases]
        named = [row["named"] for row in mine if row["named"] is not None]
        lines.append(
            {
                "search": search,
                "portraits": len(cases),
                "change one thing": float(np.mean([row["one_thing"] for row in mine])),
                "mean share": float(np.mean([row["share"] for row in mine])),
                "things found": float(np.mean([len(found) for found in alone])),
                "fewest": min(len(found) for found in alone),
                "named": len(named) / len(cases),
                "named right": float(np.mean(named)) if named else None,
                "evaluations, at most": max(row["evaluations"] for row in mine),
                **_prepared_in(mine),
            }
        )
    return lines


def _prepared_in(rows: list[dict]) -> dict:
    """The columns on preparing; the first direction of a portrait also pays for what all share."""
    known = [row for row in rows if "prepared_evaluations" in row]
    if not known:
        return {"prepared, evaluations": None, "prepared, PSNR": None}
    near = [row["prepared_psnr"] for row in known if row["prepared_psnr"] is not None]
    return {
        "prepared, evaluations": float(np.median([row["prepared_evaluations"] for row in known])),
        "prepared, PSNR": float(np.mean(near)),
    }


def main() -> None:
    """Run the benchmark and print its table."""
    options = parser(__doc__, "one portrait in place of six").parse_args()
    rows: list[dict] = []
    with torch.inference_mode():
        bench = Bench()
        for number in range(1 if options.quick else PORTRAITS):
            rows += rows_of(bench, number)
    print_table(summary(rows))
    write(rows, options.json)


if __name__ == "__main__":
    main()
