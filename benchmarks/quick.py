"""Previews of a slider without the model: how near they are to true runs on tuning portraits of the demo world.

Portraits of seed 70002, level 0.7, fresh noise, 10 steps, euler at guidance 1. First what Quick Slider could add to the
clean latent: the two moves of Prepare Quick Slider, one move (z(h) - z(-h)) / 2h, and for words the sum of what they
change along the unedited path; by strength, by attribute, and by the bend at 0. Then the latents of Slider Strip
between keyframes, against the bend at the nearest inner keyframe. PSNR of decoded pictures to the true run; above 40 dB
no difference is seen, so means are taken of the smaller of both.

    python -m benchmarks.quick [--quick] [--json FILE]
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.command import parser, write
from benchmarks.first import change_towards, wanted_change
from benchmarks.portraits import REGION, Bench, Case, eight_bit, held_out
from benchmarks.tables import print_table
from latent_directions.core.denoiser import SOURCE, Denoiser
from latent_directions.core.direction import Direction
from latent_directions.core.distilled import bends, between, distil
from latent_directions.core.metrics import psnr
from latent_directions.demo.world import ATTRIBUTES
from latent_directions.nodes.host import run
from latent_directions.nodes.manipulate import sampled, with_slider
from latent_directions.nodes.prompts import with_prompt
from latent_directions.nodes.quick import LARGE_BEND
from latent_directions.nodes.sockets import Inversion

SEED, LEVEL, SEEN = 70002, 0.7, 40.0
ATTRIBUTES_MOVED = ("smile", "mouth_opening", "eye_size", "brow_angle", "hair_length", "hat", "glasses")
PORTRAITS = {"text": 2, "HSDS": 1, "T-LOCO": 1, "LOCO": 1}  # by method; for words all attributes
SPANS = (0.1, 0.25, 0.5, 1.0, 2.0)
TWO_MOVES, ONE_MOVE, OPEN_LOOP = "two moves", "one move, h = {:g}", "open loop"
SHOWN = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
KEYFRAMES = 5
STRIPS = (1.0, 2.0)  # from minus to plus
SMOOTH = 1.0  # dB below the VAE's round trip that a preview of a smooth attribute may lie
HIGHEST = 99.0  # dB, in place of infinity


def runs(bench: Bench, case: Case, method: str) -> tuple[Inversion, Tensor, Direction, dict[float, Tensor]]:
    """A case encoded, with its sigmas and direction, and the ends of its true runs by strength.

    Of the attributes that one table alone is about only what this needs is run.
    """
    inversion, sigmas = bench.encode(case, LEVEL, "fresh noise")
    masked = method in ("LOCO", "T-LOCO") and case.attribute in REGION
    direction, _ = bench.find(case, inversion, method, masked=masked)
    needed = {0.0, *(s for s in SHOWN if abs(s) <= 1)}
    if case.attribute in ATTRIBUTES_MOVED:
        needed |= {sign * span for span in SPANS for sign in (-1, 1)} | set(SHOWN)
        needed |= {sign * most * part for most in STRIPS for part in (0.25, 0.5, 0.75, 1.0) for sign in (-1, 1)}
    return inversion, sigmas, direction, {s: sampled(with_slider(inversion, direction, s), sigmas) for s in needed}


def previewers(ends: dict[float, Tensor], changed: Tensor | None) -> dict[str, Callable[[float], Tensor]]:
    """What previews a strength, by its name: strength -> latent.

    Args:
        ends: of the true runs by strength.
        changed: the move of the open loop of any length; None where there is none.
    """
    x0 = ends[0.0]
    above, below, _ = distil(ends.__getitem__, x0)
    found = {TWO_MOVES: lambda s: x0 + s * (above if s > 0 else below).float()}
    for span in SPANS:
        if span in ends:
            move = (ends[span] - ends[-span]) / (2 * span)
            found[ONE_MOVE.format(span)] = lambda s, move=move: x0 + s * move
    if changed is not None:
        scaled = changed * ((ends[1.0] - x0).norm() / changed.norm())
        found[OPEN_LOOP] = lambda s: x0 + s * scaled
    return found


def open_loop(changes: Sequence[Tensor], scales: Sequence[tuple[float, float]]) -> Tensor:
    """sum_i (1 - t_{i+1} / t_i) q_i with t = b / (a + b): what a run of words moves where J = I / (a + b) all along.

    Args:
        changes: q_i, what the words change in the prediction at the levels of the schedule, on the unedited path.
        scales: (a, b) at these levels; the schedule ends at b = 0.
    """
    t = [b / (a + b) for a, b in scales] + [0.0]
    return sum((1 - after / now) * q for q, now, after in zip(changes, t[:-1], t[1:], strict=True))


def open_loop_of(inversion: Inversion, direction: Direction, sigmas: Tensor) -> Tensor:
    """The move of `open_loop` in ComfyUI's latent space."""
    words = direction.words
    pair = [SOURCE if prompt is None else name for name, prompt in (("target", words.target), ("own", words.source))]
    given = {"target": words.target, "own": words.source}
    prompts = {name: with_prompt(inversion.positive, given[name]) for name in pair if name != SOURCE}

    def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
        changes, scales = [], []
        for sigma in sigmas[:-1].tolist():
            x = denoiser.noised(x0, inversion.paths.at(sigma)[0].to(x0), sigma)
            target, source = denoiser.predictions(x, sigma, pair)
            changes.append(target - source)
            scales.append(denoiser.scale(sigma))
        return x0 + open_loop(changes, scales)

    prompts |= {SOURCE: inversion.positive}
    expected = 2 * (len(sigmas) - 1)
    end, _ = run(inversion.source_model, prompts, inversion.latent, inversion.sigma, body, expected=expected)
    return inversion.source_model.model.process_latent_out(end) - inversion.latent["samples"]


def previews(
    bench: Bench, case: Case, method: str, ends: dict[float, Tensor], changed: Tensor | None
) -> Iterator[dict]:
    """The PSNR of each preview to its true run, and how much its attribute has changed in both."""
    shown = [s for s in SHOWN if s in ends]
    true = {s: decoded(bench, ends[s]) for s in [0.0, *shown]}
    (bend,) = bends([ends[-1.0], ends[0.0], ends[1.0]])
    shared = {"method": method, "case": case.name, "attribute": case.attribute, "bend": bend}
    shared["round_trip"] = psnr(true[0.0], bench.picture(case.portrait))
    for form, preview in previewers(ends, changed).items():
        for strength in shown:
            picture = decoded(bench, preview(strength))
            pictures = [eight_bit(one[0]) for one in (true[0.0], picture, true[strength])]
            change, true_change = change_towards(case, bench.measure(case, pictures, 0)[0], 0)[1:] / full_range(case)
            moved = {"change": float(change), "true_change": float(true_change)}
            yield {**shared, "form": form, "strength": strength, "psnr": nearness(picture, true[strength]), **moved}


def full_range(case: Case) -> float:
    """The 5-95 % range of the case's attribute; 1 for the probability of a class."""
    return 3 * wanted_change(case.attribute)


def strips(bench: Bench, case: Case, method: str, ends: dict[float, Tensor]) -> Iterator[dict]:
    """The PSNR of each latent in the middle of two keyframes, and the largest bend at either."""
    for most in STRIPS:
        strengths = [most * (k - 2) / 2 for k in range(KEYFRAMES)]
        keyframes = [ends[strength] for strength in strengths]
        mixed, bent = between(keyframes, 2 * KEYFRAMES - 1), [0.0, *bends(keyframes), 0.0]
        for k in range(KEYFRAMES - 1):
            middle = (strengths[k] + strengths[k + 1]) / 2
            near = nearness(decoded(bench, mixed[2 * k + 1]), decoded(bench, ends[middle]))
            row = {"apart": most / 2, "strength": middle, "bend": max(bent[k : k + 2]), "psnr": near}
            yield {"method": method, "case": case.name, **row}


def decoded(bench: Bench, latent: Tensor) -> Tensor:
    """The picture of a latent, values 0 to 1."""
    return bench.vae.decode(latent).clamp(0, 1)


def nearness(picture: Tensor, true: Tensor) -> float:
    """PSNR of a decoded picture to that of the true run, HIGHEST where they are equal."""
    return min(psnr(picture, true) or HIGHEST, HIGHEST)


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


def by_attribute(rows: list[dict]) -> Iterator[dict]:
    """Words, strengths -1 to 1: previews beside the VAE's round trip, and changes at strength 1 beside true ones."""
    for attribute in dict.fromkeys(row["attribute"] for row in rows):
        for form in (TWO_MOVES, ONE_MOVE.format(1), OPEN_LOOP):
            mine = [row for row in rows if (row["attribute"], row["form"]) == (attribute, form)]
            mine = [row for row in mine if row["method"] == "text" and abs(row["strength"]) <= 1]
            whole = [row for row in mine if row["strength"] == 1]
            yield {
                "attribute": attribute,
                "form": form,
                "pictures": len(mine),
                "lowest dB at -0.5, 0.5": min(row["psnr"] for row in mine if abs(row["strength"]) == 0.5),
                "at -1, 1": min(row["psnr"] for row in mine if abs(row["strength"]) == 1),
                "VAE's round trip dB": float(np.mean([row["round_trip"] for row in whole])),
                "smooth": "yes" if all(row["psnr"] >= row["round_trip"] - SMOOTH for row in mine) else "no",
                "change at 1 / range": float(np.mean([row["change"] for row in whole])),
                "of the true run": float(np.mean([row["true_change"] for row in whole])),
            }


@torch.inference_mode()
def main() -> None:
    """Run all cases and print the tables."""
    arguments = parser(__doc__, quick="two attributes, words alone").parse_args()
    bench, shown, mixed = Bench(), [], []
    methods = {"text": 1} if arguments.quick else PORTRAITS
    for method, count in methods.items():
        every = tuple(ATTRIBUTES) if method == "text" else ATTRIBUTES_MOVED
        for attribute in ATTRIBUTES_MOVED[-2:] if arguments.quick else every:
            for number in range(count):
                case = held_out(attribute, number, SEED)
                inversion, sigmas, direction, ends = runs(bench, case, method)
                changed = open_loop_of(inversion, direction, sigmas) if method == "text" else None
                shown += previews(bench, case, method, ends, changed)
                mixed += strips(bench, case, method, ends) if attribute in ATTRIBUTES_MOVED else []
    ours = [row for row in shown if row["attribute"] in ATTRIBUTES_MOVED]
    print("\nStrengths -2 to 2, by what is added to the latent:\n")
    forms = dict.fromkeys((row["method"], row["form"]) for row in ours)
    print_table([summary([r for r in ours if (r["method"], r["form"]) == p], method=p[0], preview=p[1]) for p in forms])
    for form in (TWO_MOVES, ONE_MOVE.format(1)):
        print(f"\n{form.capitalize()}, by strength:\n")
        pairs = [(method, strength, form) for method in methods for strength in SHOWN]
        keys = ("method", "strength", "form")
        lines = [([r for r in ours if tuple(r[k] for k in keys) == pair], pair) for pair in pairs]
        print_table([summary(mine, method=pair[0], strength=pair[1]) for mine, pair in lines])
    print("\nWords, strengths -1 to 1, by attribute:\n")
    print_table(list(by_attribute(shown)))
    print("\nTwo moves at strengths -0.5 and 0.5, by the bend at 0:\n")
    print_table(by_bend([r for r in ours if r["form"] == TWO_MOVES and abs(r["strength"]) == 0.5]))
    print("\nIn the middle of two keyframes, by the bend at them:\n")
    lines = [by_bend([r for r in mixed if r["apart"] == most / 2], apart=most / 2) for most in STRIPS]
    print_table([line for some in lines for line in some])
    write(shown + mixed, arguments.json)


def by_bend(rows: list[dict], **named) -> list[dict]:
    """Two lines of a table: the rows with a small bend and those with a large one."""
    return [
        summary([row for row in rows if (row["bend"] >= LARGE_BEND) is large], **named, bend=f"{sign} {LARGE_BEND}")
        for large, sign in ((False, "below"), (True, "from"))
    ]


if __name__ == "__main__":
    main()
