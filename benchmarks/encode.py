"""Encode: does strength 0 give the picture back, how good is each method without the anchor, what do edits leak?

    python -m benchmarks.encode [--quick] [--json FILE]

Three tables: the exact return on five model families; 50 held-out portraits without the anchor; leakage at matched
target change on held-out portraits.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.taesd.taesd import TAESD

from benchmarks.first import ATTRIBUTES_MOVED, LEVEL, METHODS, SEED, row
from benchmarks.portraits import Bench, held_out
from benchmarks.small_models import CORE
from benchmarks.tables import print_table
from latent_directions.core.inversion import INVERSIONS
from latent_directions.core.metrics import psnr
from latent_directions.demo.world import caption, draw, sample_portrait
from latent_directions.nodes.anchored import first_noise
from latent_directions.nodes.encode import (
    CONTROLLED,
    FRESH,
    SEEDED,
    InvertImage,
)
from latent_directions.nodes.encode import (
    METHODS as INVERSION_METHODS,
)
from latent_directions.nodes.host import is_flow

SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "lms", "deis", "res_multistep", "ddim")
SCHEDULES = ("simple", "karras")
FLIPPED = "flipped sigmas"
STRENGTHS = np.array([0, 0.5, 1, 1.5, 2])


@dataclass
class Subject:
    """A model with a picture to encode, and the decoder that shows it."""

    family: str
    model: object
    positive: list
    negative: list
    latent: dict
    decode: object


def subjects(bench: Bench) -> list[Subject]:
    """The demo model with a portrait, and a small random-weight model of each family with a random latent."""
    portrait = sample_portrait(np.random.default_rng(SEED))
    image = torch.from_numpy(draw(portrait).copy())[None].float() / 255
    latent = {"samples": bench.vae.encode(image)}
    prompts = bench.prompt(caption(portrait)), bench.prompt("")
    found = [Subject("demo (SD3)", bench.model, *prompts, latent, bench.vae.decode)]
    for family in CORE:
        built = family.build()
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(built.latent_shape, generator=generator)
        samples = built.model.get_model_object("latent_format").process_out(noise)
        torch.manual_seed(7)
        decoder = TAESD(latent_channels=samples.shape[1]).taesd_decoder.eval()
        found.append(
            Subject(
                f"{built.name} (random)",
                built.model,
                built.positive,
                built.negative,
                {"samples": samples},
                lambda z, decoder=decoder: decoder(z).movedim(1, -1),
            )
        )
    return found


def eight_bit(image: torch.Tensor) -> np.ndarray:
    """IMAGE -> 8-bit array, as ComfyUI saves it."""
    return (image.clamp(0, 1) * 255).byte().cpu().numpy()


def exact_return(subject: Subject, quick: bool) -> list[dict]:
    """Strength 0 through ComfyUI's sampling, for every method, sampler, schedule and guidance."""
    rows, before = [], subject.latent["samples"]
    shown = eight_bit(subject.decode(before))
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    for method in INVERSION_METHODS:
        if method == CONTROLLED and not is_flow(subject.model):
            continue
        for schedule in SCHEDULES:
            source = type("Noise", (), {"generate_noise": lambda _, __: noise, "seed": 0})()
            out = InvertImage.execute(
                subject.model,
                subject.positive,
                subject.latent,
                level=0.6,
                steps=6,
                scheduler=schedule,
                method=method,
                seeds=2,
                noise=source,
            ).result
            report = json.loads(out[5])
            for sampler in SAMPLERS[:: 4 if quick else 1]:
                for guidance in (1.0, 4.0):
                    started = time.perf_counter()
                    after = comfy.sample.sample_custom(
                        out[3],
                        out[1].generate_noise(subject.latent),
                        guidance,
                        comfy.samplers.sampler_object(sampler),
                        out[2],
                        subject.positive,
                        subject.negative,
                        before,
                        disable_pbar=True,
                        seed=0,
                    )
                    seconds = time.perf_counter() - started
                    rows.append(
                        {
                            "family": subject.family,
                            "method": method,
                            "sampler": sampler,
                            "schedule": schedule,
                            "guidance": guidance,
                            "evaluations": report["model_evaluations"],
                            "psnr_db": None,
                            "vae_psnr_db": None,
                            "zero_strength_max_abs_diff": float((after - before).abs().max()),
                            "zero_strength_pixels_changed": int(
                                (eight_bit(subject.decode(after)) != shown).any(-1).sum()
                            ),
                            "seconds": round(report["seconds"] + seconds, 3),
                        }
                    )
    return rows


def without_anchor(bench: Bench, pictures: int) -> list[dict]:
    """Reconstruction of held-out portraits by euler sampling from the inverted noise, by the plain model."""
    rows = []
    for number in range(pictures):
        portrait = sample_portrait(np.random.default_rng([SEED, 50, number]))
        image = torch.from_numpy(draw(portrait).copy())[None].float() / 255
        latent = {"samples": bench.vae.encode(image)}
        positive = bench.prompt(caption(portrait))
        ceiling = psnr(bench.vae.decode(latent["samples"]).clamp(0, 1), image)
        for steps in (5, 10, 20):
            for method in (FLIPPED, *INVERSIONS, CONTROLLED, SEEDED):
                # more evaluations a step are paid for with fewer steps
                cost = INVERSIONS[method].evaluations if method in INVERSIONS else 1
                taken = max(2, round(steps / cost))
                started = time.perf_counter()
                after, evaluations = reconstruct(bench, positive, latent, method, taken, steps)
                rows.append(
                    {
                        "family": "demo (SD3)",
                        "method": method,
                        "sampler": "euler",
                        "schedule": "simple",
                        "guidance": 1.0,
                        "steps": steps,
                        "inversion_steps": taken,
                        "evaluations": evaluations,
                        "psnr_db": psnr(bench.vae.decode(after).clamp(0, 1), image),
                        "vae_psnr_db": ceiling,
                        "zero_strength_max_abs_diff": float((after - latent["samples"]).abs().max()),
                        "zero_strength_pixels_changed": None,
                        "seconds": round(time.perf_counter() - started, 3),
                    }
                )
    return rows


def reconstruct(bench: Bench, positive: list, latent: dict, method: str, inversion_steps: int, steps: int):
    """Invert, sample back with the plain model in `steps`; the latent, and the evaluations of the inversion."""
    simple = InvertImage.execute(bench.model, positive, latent, level=LEVEL, steps=steps, method=SEEDED).result
    sigmas = simple[2]
    euler = comfy.samplers.sampler_object("euler")
    if (
        method == FLIPPED
    ):  # as graphs do it today: ComfyUI's FlipSigmas, which starts at 1e-4, and euler up the schedule
        flipped = sigmas.flip(0)
        flipped[0] = 1e-4
        x = comfy.sample.sample_custom(
            bench.model,
            torch.zeros_like(latent["samples"]),
            1.0,
            euler,
            flipped,
            positive,
            [],
            latent["samples"],
            disable_pbar=True,
        )
        # flow models divide what a sampler leaves unfinished by 1 - sigma; x = (1 - sigma) x0 + sigma n
        sigma = float(sigmas[0])
        x0 = bench.model.model.process_latent_in(latent["samples"])
        noise = (bench.model.model.process_latent_in(x) * (1 - sigma) - (1 - sigma) * x0) / sigma
        evaluations = steps
    else:
        out = InvertImage.execute(
            bench.model, positive, latent, level=LEVEL, steps=inversion_steps, method=method
        ).result
        noise, evaluations = out[1].noise, json.loads(out[5])["model_evaluations"]
    start = first_noise(noise, bench.model.get_model_object("model_sampling"), sigmas[0])
    after = comfy.sample.sample_custom(
        bench.model, start, 1.0, euler, sigmas, positive, [], latent["samples"], disable_pbar=True
    )
    return after, evaluations


def editability(bench: Bench, count: int) -> list[dict]:
    """Leakage at matched target change of edits that start from each method's noise."""
    rows = []
    settings = [(method, 1) for method in ("backward euler", "euler", "heun", CONTROLLED)]
    settings += [(method, seeds) for method in (SEEDED, FRESH) for seeds in (1, 2, 4, 8)]
    for number in range(count):
        for attribute in ATTRIBUTES_MOVED:
            case = held_out(attribute, number, SEED)
            for method, seeds in settings:
                inversion, sigmas = bench.encode(case, LEVEL, method, seed=number, seeds=seeds)
                started = time.perf_counter()
                for name in ("text", "HSDS"):
                    kind, options = METHODS[name]
                    direction, _ = bench.find(case, inversion, kind, **options)
                    result = row(bench, case, f"{method} x {seeds}, {name}", inversion, sigmas, direction, STRENGTHS)
                    rows.append(
                        {
                            **result,
                            "evaluations_of_a_run": inversion.anchor.statistics.last_evaluations,
                            "seconds": round(time.perf_counter() - started, 2),
                        }
                    )
    return rows


def summary_without_anchor(rows: list[dict]) -> list[dict]:
    """Mean PSNR by method and evaluations."""
    keys = dict.fromkeys((r["steps"], r["method"]) for r in rows)
    lines = []
    for steps, method in keys:
        mine = [r for r in rows if (r["steps"], r["method"]) == (steps, method)]
        lines.append(
            {
                "sampling steps": steps,
                "method": method,
                "evaluations": mine[0]["evaluations"],
                "PSNR dB": float(np.mean([r["psnr_db"] for r in mine])),
                "VAE's own PSNR dB": float(np.mean([r["vae_psnr_db"] for r in mine])),
            }
        )
    return lines


def summary_exact(rows: list[dict]) -> list[dict]:
    """Worst case by family and method."""
    lines = []
    for family, method in dict.fromkeys((r["family"], r["method"]) for r in rows):
        mine = [r for r in rows if (r["family"], r["method"]) == (family, method)]
        lines.append(
            {
                "family": family,
                "method": method,
                "runs": len(mine),
                "largest latent difference": f"{max(r['zero_strength_max_abs_diff'] for r in mine):.1e}",
                "pixels changed": sum(r["zero_strength_pixels_changed"] for r in mine),
                "inversion evaluations": mine[0]["evaluations"],
            }
        )
    return lines


def summary_editability(rows: list[dict]) -> list[dict]:
    """Mean leakage by starting point and direction."""
    lines = []
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        lines.append(
            {
                "start, direction": method,
                "cases": len(mine),
                "reached a third": float(np.mean([r["reached"] for r in mine])),
                "leakage": float(np.mean([r["leakage"] for r in mine])),
                "evaluations of a run": mine[0]["evaluations_of_a_run"],
                "seconds": float(np.mean([r["seconds"] for r in mine])),
            }
        )
    return lines


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samplers, pictures and cases")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    options = parser.parse_args()
    with torch.inference_mode():
        bench = Bench()
        exact = [r for subject in subjects(bench) for r in exact_return(subject, options.quick)]
        print("Strength 0, worst case over samplers, schedules and guidance:\n")
        print_table(summary_exact(exact))
        plain = without_anchor(bench, 5 if options.quick else 50)
        print("\nWithout the anchor, demo model, held-out portraits:\n")
        print_table(summary_without_anchor(plain))
        edits = editability(bench, 1 if options.quick else 2)
        print("\nEdits at a third of the target's range, by the noise they start from:\n")
        print_table(summary_editability(edits))
    if options.json:
        options.json.write_text(json.dumps(exact + plain + edits, indent=1))


if __name__ == "__main__":
    main()
