"""Derivatives on every model family: the mode in which they are taken, its error, and what is refused.

    python -m benchmarks.families [--quick] [--json FILE]

Small random-weight models of ComfyUI's own classes. `error` is the largest relative error of J v over blocks of one
and two directions, against differences of a float64 copy extrapolated to fourth order, which settle to 1e-5 or better;
`double` is the error by double backward, the next mode where forward AD fails.
`adjoint` is |<Jv, Jv> - <v, J'Jv>| / |J'Jv| (not the self-check's, which uses a random vector), `distance` that of the
sampled prediction to the float64 one. For quantised weights the float64 copy holds them dequantised; for half precision
it holds the same rounded weights.
`status` is ok where errors stay below 1e-3 and forward and backward products are trusted, fallback where something less
precise or without a part is used and said so, refused where no product is given.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import benchmarks.small_models  # noqa: F401  makes the tests' modules importable
from benchmarks.command import parser, write
from benchmarks.tables import print_table

import derivative_errors as errors  # isort: skip
import model_variants as variants  # isort: skip
from families import MANY  # isort: skip
from more_families import MORE  # isort: skip

LIMIT = 1e-3
ERRORS = ("error", "double", "adjoint", "distance")
GUIDANCES = (1.0, 4.0)
WITH_VARIANTS = ("sdxl", "sd3", "flux")


@dataclass(frozen=True)
class Case:
    """A family and variant: `build` gives the model and the float model whose derivatives it should have."""

    family: str
    variant: str
    build: Callable[[], tuple]
    guidances: tuple[float, ...] = GUIDANCES
    note: str = ""


def cases() -> Iterator[Case]:
    """Every row but for the guidance."""
    for family in [*MANY, *MORE]:
        yield Case(family.name, "float32", lambda build=family.build: (model := build(), model))
    for family in MANY:
        if family.name in WITH_VARIANTS:
            yield from variant_cases(family)
    yield from fault_cases(next(family for family in MANY if family.name == "flux"))


def variant_cases(family) -> Iterator[Case]:
    """LoRA, offloading, ControlNet and number formats of one family."""

    def lora(offloaded: bool) -> tuple:
        model = family.build()
        merged = variants.with_merged_patches(variants.with_lora(model))
        return variants.with_lora(variants.offloaded(model) if offloaded else model), merged

    def half(dtype: torch.dtype, compute_dtype: torch.dtype | None = None) -> tuple:
        # Flux multiplies its guidance number by 1000 in the model's precision; of 0 nothing is rounded
        model = variants.with_guidance_number(variants.rebuilt(family.build(), dtype, compute_dtype), 0.0)
        return model, model

    def control() -> tuple:
        model = family.build()
        return variants.with_controlnet(model), variants.with_controlnet(variants.in_float64(model))

    quantised, rounding = variants.quantised, "Half precision: errors are those of the model's own rounding."
    yield Case(family.name, "LoRA", lambda: lora(False))
    yield Case(family.name, "LoRA, offloaded weights", lambda: lora(True))
    if family.name == "sdxl":
        yield Case(family.name, "ControlNet", control)
    yield Case(family.name, "fp8 weights", lambda: variants.fp8_stored(family.build()))
    yield Case(family.name, "fp8 weights, scaled", lambda: quantised(family.build(), variants.FP8, inputs=False))
    yield Case(family.name, "fp8 weights and inputs", lambda: quantised(family.build(), variants.FP8))
    yield Case(family.name, "int8 weights and inputs", lambda: quantised(family.build(), variants.INT8))
    yield Case(family.name, "bf16 weights", lambda: half(torch.bfloat16, torch.float32))
    yield Case(family.name, "fp16", lambda: half(torch.float16), note=rounding)
    yield Case(family.name, "bf16", lambda: half(torch.bfloat16), note=rounding)


def fault_cases(family) -> Iterator[Case]:
    """Planted faults: each must come out refused or as a fall-back."""
    for name, node in variants.STEP_CACHES.items():
        note = "The step cache was taken off the model."
        build = lambda node=node: (variants.with_step_cache(model := family.build(), node), model)  # noqa: E731
        yield Case(family.name, f"fault: {name}", build, (1.0,), note)
    for name, plant in variants.FAULTS.items():
        build = lambda plant=plant: (model := plant(family.build()), model)  # noqa: E731
        yield Case(family.name, f"fault: {name}", build, (1.0,))


def rows_of(case: Case, quick: bool) -> Iterator[dict]:
    """One row for each guidance."""
    for guidance in case.guidances[:1] if quick else case.guidances:
        with torch.inference_mode():
            model, exact = case.build()
        truth = errors.reference(exact, guidance)
        found = errors.measure(model, truth, guidance)
        check = found.check
        row = {"family": case.family, "variant": case.variant, "guidance": guidance, "mode": "none"}
        if check is None:
            yield (
                row
                | dict.fromkeys(ERRORS)
                | {
                    "distance": found.distance,
                    "status": "refused",
                    "reason": found.refusal,
                }
            )
            continue
        error = max(found.forward.values())
        worst = max([error, *found.double.values(), *found.adjoint.values()])
        mode = check.jacobian.mode
        status = "ok" if mode == "forward AD" and check.backward else "fallback"
        if not worst <= LIMIT or case.variant.removeprefix("fault: ") in variants.STEP_CACHES:
            status = "fallback"
        passed = check.sentence == "Derivatives passed their self-check."
        reasons = ["" if passed else check.sentence, case.note if status == "fallback" else ""]
        yield {
            **row,
            "mode": f"{mode}{', backward' if check.backward else ''}",
            "error": error,
            "double": max(found.double.values()) if found.double else None,
            "adjoint": max(found.adjoint.values()) if found.adjoint else None,
            "distance": found.distance,
            "status": status,
            "reason": " ".join(filter(None, reasons)),
        }


def in_words(row: dict) -> dict:
    """A row as it is printed."""
    errors_in_words = {name: "-" if row[name] is None else f"{row[name]:.1e}" for name in ERRORS}
    return row | {"guidance": f"{row['guidance']:g}"} | errors_in_words


def main() -> None:
    """Run the benchmark and print its table."""
    options = parser(__doc__, "guidance 1 alone").parse_args()
    rows = []
    for case in cases():
        print(case.family, case.variant, file=sys.stderr, flush=True)
        rows += rows_of(case, options.quick)
    print_table([in_words(row) for row in rows])
    silent = [r for r in rows if r["status"] != "ok" and not r["reason"]]
    write(rows, options.json)
    if silent:
        names = ", ".join(f"{r['family']} {r['variant']}" for r in silent)
        msg = f"These rows are above {LIMIT:.0e} or not trusted and give no reason: {names}."
        raise SystemExit(msg)


if __name__ == "__main__":
    main()
