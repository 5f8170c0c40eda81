"""Previews of a slider without the model: how near they are to true runs on tuning portraits of the demo world.

Portraits of seed 70002, level 0.7, fresh noise, 10 steps, euler at guidance 1. First the move of Prepare Quick Slider,
(z(h) - z(-h)) / 2h, by h and against its error at strength 1; then the latents of Slider Strip between keyframes,
against the bend at the nearest inner keyframe. PSNR of decoded pictures to the true run; above 40 dB no difference is
seen, so means are taken of the smaller of both.

    python -m benchmarks.quick [--quick] [--json FILE]
"""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.command import parser, write
from benchmarks.portraits import REGION, Bench, held_out
from benchmarks.tables import print_table
from latent_directions.core.distilled import bends, between, distil
from latent_directions.core.metrics import psnr
from latent_directions.nodes.manipulate import sampled, with_slider
from latent_directions.nodes.quick import LARGE_BEND, LARGE_ERROR

SEED, LEVEL, SEEN = 70002, 0.7, 40.0
ATTRIBUTES_MOVED = ("smile", "mouth_opening", "eye_size", "brow_angle", "hair_length", "hat", "glasses")
PORTRAITS = {"text": 2, "HSDS": 1, "T-LOCO": 1, "LOCO": 1}  # by method
SPANS = (0.1, 0.25, 0.5, 1.0, 2.0)
SHOWN = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
KEYFRAMES = 5
STRIPS = (1.0, 2.0)  # from minus to plus


def runs(bench: Bench, method: str, attribute: str, number: int) -> tuple[str, dict[float, torch.Tensor]]:
    """A case's name, and the ends of its true runs by strength."""
    case = held_out(attribute, number, SEED)
    inversion, sigmas = bench.encode(case, LEVEL, "fresh noise")
    masked = method in ("LOCO", "T-LOCO") and attribute in REGION
    direction, _ = bench.find(case, inversion, method, masked=masked)
    needed = {sign * span for span in SPANS for sign in (-1, 1)} | set(SHOWN)
    needed |= {sign * most * part for most in STRIPS for part in (0.25, 0.5, 0.75, 1.0) for sign in (-1, 1)} | {0.0}
    return case.name, {s: sampled(with_slider(inversion, direction, s), sigmas) for s in sorted(needed)}


def previews(bench: Bench, ends: dict[float, torch.Tensor]) -> Iterator[dict]:
    """The PSNR of each preview."""
    true = {strength: decoded(bench, ends[strength]) for strength in SHOWN}
    for span in SPANS:
        move, error = distil(ends.__getitem__, ends[0.0], span)
        for strength in SHOWN:
            picture = decoded(bench, ends[0.0] + strength * move.float())
            yield {"span": span, "strength": strength, "error": error, "psnr": psnr(picture, true[strength]) or 99.0}


def strips(bench: Bench, ends: dict[float, torch.Tensor]) -> Iterator[dict]:
    """The PSNR of each latent in the middle of two keyframes, and the largest bend at either."""
    for most in STRIPS:
        strengths = [most * (k - 2) / 2 for k in range(KEYFRAMES)]
        keyframes = [ends[strength] for strength in strengths]
        mixed, bent = between(keyframes, 2 * KEYFRAMES - 1), [0.0, *bends(keyframes), 0.0]
        for k in range(KEYFRAMES - 1):
            middle = (strengths[k] + strengths[k + 1]) / 2
            picture = psnr(decoded(bench, mixed[2 * k + 1]), decoded(bench, ends[middle])) or 99.0
            yield {"apart": most / 2, "strength": middle, "bend": max(bent[k : k + 2]), "psnr": picture}


def decoded(bench: Bench, latent: torch.Tensor) -> torch.Tensor:
    """The picture of a latent, values 0 to 1."""
    return bench.vae.decode(latent).clamp(0, 1)


def summary(rows: list[dict], **named) -> dict:
    """One line of a table: how near the pictures of some rows are."""
    values = np.array([row["psnr"] for row in rows]) if rows else np.array([np.nan])
    return {
        **named,
        "pictures": len(rows),
        "mean dB, at most 40": float(np.minimum(values, SEEN).mean()),
        "lowest tenth dB": float(np.percentile(values, 10)),
        "below 30 dB": float((values < 30).mean()),
    }


@torch.inference_mode()
def main() -> None:
    """Run all cases and print the tables."""
    arguments = parser(__doc__, quick="two attributes, words alone").parse_args()
    bench, shown, mixed = Bench(), [], []
    methods = {"text": 1} if arguments.quick else PORTRAITS
    for method, count in methods.items():
        for attribute in ATTRIBUTES_MOVED[-2:] if arguments.quick else ATTRIBUTES_MOVED:
            for number in range(count):
                name, ends = runs(bench, method, attribute, number)
                shown += [{"method": method, "case": name, **row} for row in previews(bench, ends)]
                mixed += [{"method": method, "case": name, **row} for row in strips(bench, ends)]
    print("\nOne move, strengths -2 to 2, by h:\n")
    pairs = [(method, span) for method in methods for span in SPANS]
    print_table([summary([r for r in shown if (r["method"], r["span"]) == p], method=p[0], h=p[1]) for p in pairs])
    print("\nOne move, h = 1, by strength:\n")
    ours = [row for row in shown if row["span"] == 1.0]
    pairs = [(method, strength) for method in methods for strength in SHOWN]
    print_table(
        [summary([r for r in ours if (r["method"], r["strength"]) == p], method=p[0], strength=p[1]) for p in pairs]
    )
    print("\nOne move, h = 1, at strength 1, by its error:\n")
    ours = [row for row in ours if row["strength"] == 1.0]
    print_table(
        [
            summary([row for row in ours if (row["error"] >= LARGE_ERROR) is large], error=f"{sign} {LARGE_ERROR}")
            for large, sign in ((False, "below"), (True, "from"))
        ]
    )
    print("\nIn the middle of two keyframes, by the bend at them:\n")
    print_table(
        [
            summary(
                [r for r in mixed if (r["bend"] >= LARGE_BEND) is large and r["apart"] == most / 2],
                apart=most / 2,
                bend=f"{sign} {LARGE_BEND}",
            )
            for most in STRIPS
            for large, sign in ((False, "below"), (True, "from"))
        ]
    )
    write(shown + mixed, arguments.json)


if __name__ == "__main__":
    main()
