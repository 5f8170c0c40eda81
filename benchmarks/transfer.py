"""Directions carried over to another portrait: does what Transfer Direction measures tell how well they do there?

Directions of explore and of LOCO, and random moves of the latent, from one held-out portrait under "a face" (level 0.8,
fresh noise), are used on two others with the step that Transfer Direction gives them. A direction does the same when at
least half of what it changes at the portrait where it was found comes again: of the changes of all attributes between
strengths -1 and 1, in standard deviations or class probabilities, their inner product with those there over the square
of those there.

    python -m benchmarks.transfer [--quick] [--json FILE]
"""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.command import parser, write
from benchmarks.explore import LEVEL, changes_of, find_anew, portrait_case
from benchmarks.portraits import Bench
from benchmarks.tables import print_table
from latent_directions.core.direction import Direction
from latent_directions.core.search import AUTOMATIC
from latent_directions.core.transfer import BADLY, PARTLY, WELL
from latent_directions.nodes.transfer import transferred

COUNT, PORTRAITS, OTHERS = 8, 4, (1, 2)
ONE = np.array([1.0])
RANDOM = "random"


def random_moves(directions: list[Direction], seed: int) -> list[Direction]:
    """White noise in place of the moves, with the same steps and without masks."""
    generator = torch.Generator().manual_seed(seed)
    moves = [torch.randn(one.latent.shape, generator=generator) for one in directions]
    return [
        replace(one, latent=move / move.norm(), mask=None, method=RANDOM, notes={})
        for one, move in zip(directions, moves, strict=True)
    ]


def between_signs(bench: Bench, encoded: tuple, direction: Direction) -> np.ndarray:
    """Change of every attribute from strength -1 to 1."""
    ((above, below),) = changes_of(bench, encoded, direction, ONE)
    return above - below


def rows_of(bench: Bench, number: int, portraits: int) -> list[dict]:
    """One row for each direction of one portrait at each portrait that it is carried over to, and at its own."""
    encoded = {}
    for place in {(number + step) % portraits for step in (0, *OTHERS)}:
        inversion, sigmas = bench.encode(portrait_case(place), LEVEL, "fresh noise", seed=place)
        encoded[place] = inversion, sigmas, bench.unmoved(inversion, sigmas)
    found = {}
    for method in ("explore", "LOCO"):
        found[method], _ = find_anew(bench, portrait_case(number), encoded[number][0], method, AUTOMATIC)
        found[method] = found[method][:COUNT]
    found[RANDOM] = random_moves(found["LOCO"], number)
    rows = []
    for method, directions in found.items():
        before = [between_signs(bench, encoded[number], direction) for direction in directions]
        for place, (inversion, *_) in encoded.items():
            made, reports, _ = transferred(bench.model, inversion, directions)
            for was, direction, report in zip(before, made, reports, strict=True):
                now = between_signs(bench, encoded[place], direction)
                again = float(was @ now / max(was @ was, 1e-12))
                cosine = float(was @ now / max(np.linalg.norm(was) * np.linalg.norm(now), 1e-12))
                rows.append(
                    {
                        "method": method,
                        "from": number,
                        "to": place,
                        "own": place == number,
                        "again": again,
                        "cosine": cosine,
                    }
                    | {"size": float(np.abs(now).max()), "share": float(np.abs(now).max() / np.abs(now).sum())}
                    | {key: value for key, value in report.items() if isinstance(value, (str, float))}
                )
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """One line for each method and verdict, on other portraits than the direction's own."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for verdict in (WELL, PARTLY, BADLY):
            mine = [r for r in rows if r["method"] == method and r["carries"] == verdict and not r["own"]]
            if mine:
                lines.append(
                    {
                        "method": method,
                        "carries": verdict,
                        "directions": len(mine),
                        "does the same": float(np.mean([row["again"] >= 0.5 for row in mine])),
                        "mean cosine": float(np.mean([row["cosine"] for row in mine])),
                        "largest change": float(np.mean([row["size"] for row in mine])),
                        "strength": float(np.mean([row["strength"] for row in mine])),
                        "nonlinearity": float(np.mean([row["nonlinearity"] for row in mine])),
                    }
                )
    return lines


def main() -> None:
    """Run the benchmark and print its table."""
    options = parser(__doc__, "directions of one portrait at three").parse_args()
    bench, rows, portraits = Bench(), [], 3 if options.quick else PORTRAITS
    with torch.inference_mode():
        for number in range(1 if options.quick else portraits):
            rows += rows_of(bench, number, portraits)
            print(f"portrait {number + 1} of {portraits}", flush=True)
    print_table(summary(rows))
    write(rows, options.json)


if __name__ == "__main__":
    main()
