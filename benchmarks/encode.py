"""Encode: does strength 0 give the picture back, how good is each method without the anchor, what do edits leak?

    python -m benchmarks.encode [--quick] [--part exact sliders plain edits] [--json FILE]

Five tables: the exact return on the demo model and on every family of the tests' small random-weight models; the same
with sliders in the chain (`encode_sliders`); 50 held-out portraits without the anchor; leakage at matched target
change, by the noise that edits start from and by the weight of the model's change (`encode_edits`).
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.taesd.taesd import Decoder
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

from benchmarks import encode_edits, encode_sliders
from benchmarks.command import parser, write
from benchmarks.first import LEVEL, SEED
from benchmarks.portraits import Bench
from benchmarks.small_models import MANY, MORE, randomise
from benchmarks.tables import print_table
from latent_directions.core.inversion import INVERSIONS
from latent_directions.core.metrics import psnr
from latent_directions.demo.world import caption, sample_portrait
from latent_directions.nodes.encode import CONTROLLED, INVERSION_METHODS, SEEDED, InvertImage
from latent_directions.nodes.errors import UnsupportedSamplerError
from latent_directions.nodes.host import first_noise
from latent_directions.nodes.sampling import is_flow, sample_euler
from latent_directions.nodes.sockets import EncodedNoise

SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "lms", "deis", "res_multistep", "ddim")
SCHEDULES = ("simple", "karras")
OWN, ANOTHER, OWN_AGAIN = "the model's", "another", "the model's again"
SAMPLINGS = (OWN, ANOTHER, OWN_AGAIN)
FLIPPED = "flipped sigmas"
PARTS = ("exact", "sliders", "plain", "edits")
MEASURED = ("psnr_db", "vae_psnr_db", "zero_strength_max_abs_diff", "zero_strength_pixels_changed", "seconds")


@dataclass
class Subject:
    """A model with a latent to encode, the decoder that shows it, and the picture it came from if there is one."""

    family: str
    model: object
    positive: list
    negative: list
    latent: dict
    decode: Callable[[torch.Tensor], torch.Tensor]
    picture: torch.Tensor | None = None

    def psnr(self, samples: torch.Tensor) -> float | None:
        """PSNR of decoded samples to the picture; None where there is none."""
        return None if self.picture is None else psnr(self.decode(samples).clamp(0, 1), self.picture)

    def sampled(self, model, positive, noise, sampler: str, sigmas: torch.Tensor, guidance: float) -> torch.Tensor:
        """What one of ComfyUI's samplers ends at, from the NOISE of a slider, under its MODEL and CONDITIONING."""
        return comfy.sample.sample_custom(
            model,
            noise.generate_noise(self.latent),
            guidance,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            positive,
            self.negative,
            self.latent["samples"],
            disable_pbar=True,
            seed=0,
        )


def subjects(bench: Bench) -> Iterator[Subject]:
    """The demo model with a portrait, and a small random-weight model of each family with a random latent."""
    portrait = sample_portrait(np.random.default_rng(SEED))
    picture = bench.picture(portrait)
    latent = {"samples": bench.vae.encode(picture)}
    prompts = bench.prompt(caption(portrait)), bench.prompt("")
    yield Subject("demo (SD3)", bench.model, *prompts, latent, bench.vae.decode, picture)
    for family in [*MANY, *MORE]:
        built = family.build()
        noise = torch.randn(built.latent_shape, generator=torch.Generator().manual_seed(7))
        latent = {"samples": built.model.get_model_object("latent_format").process_out(noise)}
        yield Subject(built.name, built.model, built.positive, built.negative, latent, decoder_for(built))


def decoder_for(built) -> Callable[[torch.Tensor], torch.Tensor]:
    """A random TAESD decoder of the latent's channels, for one frame; in pixel space, what ComfyUI does there."""
    if built.model.get_model_object("latent_format").spacial_downscale_ratio == 1:
        return lambda samples: (samples / 2 + 0.5).movedim(1, -1)
    decoder = Decoder(latent_channels=built.latent_shape[1])
    randomise(decoder, 7)
    return lambda samples: (decoder(samples.reshape(1, -1, *samples.shape[-2:])) / 4 + 0.5).movedim(1, -1)


def eight_bit(image: torch.Tensor) -> np.ndarray:
    """IMAGE -> 8-bit array, as ComfyUI saves it."""
    return (image.clamp(0, 1) * 255).byte().cpu().numpy()


def exact_return(subject: Subject, quick: bool) -> list[dict]:
    """Strength 0 through ComfyUI's sampling, for every method, sampler, schedule and guidance.

    With euler also under another model sampling, and under the model's own again.
    """
    rows, before = [], subject.latent["samples"]
    shown, ceiling = eight_bit(subject.decode(before)), subject.psnr(before)
    noise = EncodedNoise(torch.randn(before.shape, generator=torch.Generator().manual_seed(1)))
    for method, schedule in itertools.product(INVERSION_METHODS, SCHEDULES):
        if method == CONTROLLED and not is_flow(subject.model):
            continue
        out = InvertImage.execute(
            subject.model,
            subject.positive,
            subject.latent,
            level=0.6,
            steps=4,
            scheduler=schedule,
            method=method,
            seeds=2,
            noise=noise,
        ).result
        report = json.loads(out[5])
        runs = itertools.product(SAMPLERS[:: 4 if quick else 1], SAMPLINGS, (1.0, 4.0))
        for sampler, sampling, guidance in runs:
            if sampling != OWN and sampler != SAMPLERS[0]:
                continue
            row = {
                "model_sampling": sampling,
                "family": subject.family,
                "method": method,
                "sampler": sampler,
                "schedule": schedule,
                "guidance": guidance,
                "evaluations": report["model_evaluations"],
            }
            started = time.perf_counter()
            try:
                model = with_another_sampling(out[3]) if sampling == ANOTHER else out[3]
                after = subject.sampled(model, subject.positive, out[1], sampler, out[2], guidance)
            except UnsupportedSamplerError as error:
                rows.append({**row, **dict.fromkeys(MEASURED), "vae_psnr_db": ceiling, "refused": str(error)})
                continue
            seconds, same = time.perf_counter() - started, torch.equal(after, before)
            pixels = 0 if same else int((eight_bit(subject.decode(after)) != shown).any(-1).sum())
            figures = (
                ceiling if same else subject.psnr(after),
                ceiling,
                float((after - before).abs().max()),
                pixels,
                round(report["seconds"] + seconds, 3),
            )
            rows.append({**row, **dict(zip(MEASURED, figures, strict=True)), "refused": None})
    return rows


def with_another_sampling(model):
    """The MODEL with another shift of a flow model's schedule, or as another kind of prediction."""
    if is_flow(model):
        return ModelSamplingSD3().patch(model, 7.0)[0]
    return ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]


def without_anchor(bench: Bench, pictures: int) -> list[dict]:
    """Reconstruction of held-out portraits by euler sampling from the inverted noise, by the plain model."""
    rows = []
    for number in range(pictures):
        portrait = sample_portrait(np.random.default_rng([SEED, 50, number]))
        image = bench.picture(portrait)
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
    if method == FLIPPED:
        # as graphs do it today: ComfyUI's FlipSigmas, which starts at 1e-4, and euler up the schedule
        flipped = sigmas.flip(0)
        flipped[0] = 1e-4
        x = sample_euler(bench.model, torch.zeros_like(latent["samples"]), flipped, positive, latent)
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
    return sample_euler(bench.model, start, sigmas, positive, latent), evaluations


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
    """Worst case by family."""
    lines = []
    for family in dict.fromkeys(r["family"] for r in rows):
        mine = [r for r in rows if r["family"] == family]
        ran = [r for r in mine if not r["refused"]]
        psnrs = f"{min(r['psnr_db'] for r in ran):.3f}, {ran[0]['vae_psnr_db']:.3f}" if ran[0]["psnr_db"] else "none"
        lines.append(
            {
                "family": family,
                "methods": len({r["method"] for r in mine}),
                "runs": len(mine),
                "refused": len(mine) - len(ran),
                "largest latent difference": f"{max(r['zero_strength_max_abs_diff'] for r in ran):.1e}",
                "pixels changed": sum(r["zero_strength_pixels_changed"] for r in ran),
                "PSNR, VAE's own PSNR dB": psnrs,
            }
        )
    return lines


def main() -> None:
    """Run the benchmark and print its tables."""
    made = parser(__doc__, "fewer samplers, pictures and cases")
    made.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="the tables to make (default: all)")
    options, found = made.parse_args(), []
    with torch.inference_mode():
        bench, exact, sliders = Bench(), [], []
        for subject in subjects(bench):
            if "exact" in options.part:
                print(subject.family, file=sys.stderr, flush=True)
                exact += exact_return(subject, options.quick)
            if "sliders" in options.part and subject.family in encode_sliders.FAMILIES:
                samplers = encode_sliders.SAMPLERS[:: 4 if options.quick else 1]
                sliders += encode_sliders.rows(subject, encode_sliders.clip_of(subject, bench), samplers)
        if exact:
            print("Strength 0, worst case over methods, samplers, schedules and guidance:\n")
            print_table(summary_exact(exact))
        if sliders:
            print("\nWith sliders, worst case over two starts, four samplers and guidance:\n")
            print_table(encode_sliders.summary(sliders))
        found += exact + sliders
        if "plain" in options.part:
            plain = without_anchor(bench, 5 if options.quick else 50)
            print("\nWithout the anchor, demo model, held-out portraits:\n")
            print_table(summary_without_anchor(plain))
            found += plain
        if "edits" in options.part:
            edits = encode_edits.rows(bench, 1 if options.quick else 4)
            encode_edits.print_tables(edits)
            found += edits
    write(found, options.json)


if __name__ == "__main__":
    main()
