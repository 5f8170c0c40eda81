"""The long session of `soak`: slider runs on one inversion, with changes of the model between them."""

from __future__ import annotations

import random
import statistics

from benchmarks.process_memory import memory_of, open_files
from benchmarks.soak.base_prompt import OUTPUTS, base, needed
from benchmarks.soak.hostile_prompts import SEED
from benchmarks.soak.outcomes import DESCRIPTORS, MEMORY, NOT_EXACT, OK, Outcome
from benchmarks.tables import print_table

EXACT = 1e-5  # as the tests ask for at strength 0
MOST_GROWTH = 0.03  # of resident memory after the warm-up
MORE_FILES = 4  # open file descriptors more than after the warm-up
WARM_UP = 0.4  # share of the runs
EDM = {"sigma_max": 120.0, "sigma_min": 0.002}
CACHE = {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
FLUX = {"max_shift": 1.15, "base_shift": 0.5, "width": 64, "height": 64}
# Nodes between the slider and the sampler, with their inputs beside the MODEL; [] changes nothing.
PATCHES: dict[str, list[tuple[str, dict]]] = {
    "none": [],
    "ModelSamplingSD3, shift 1": [("ModelSamplingSD3", {"shift": 1.0})],
    "ModelSamplingSD3, shift 6": [("ModelSamplingSD3", {"shift": 6.0})],
    "ModelSamplingFlux": [("ModelSamplingFlux", FLUX)],
    "ModelSamplingDiscrete, eps": [("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False})],
    "ModelSamplingDiscrete, v": [("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False})],
    "ModelSamplingContinuousEDM": [("ModelSamplingContinuousEDM", {"sampling": "edm", **EDM})],
    "ModelSamplingStableCascade": [("ModelSamplingStableCascade", {"shift": 2.0})],
    "RescaleCFG": [("RescaleCFG", {"multiplier": 0.7})],
    "CFGNorm": [("CFGNorm", {"strength": 0.8, "pre_cfg": False})],
    "CFGZeroStar": [("CFGZeroStar", {})],
    "PerturbedAttentionGuidance": [("PerturbedAttentionGuidance", {"scale": 3.0})],
    "TCFG": [("TCFG", {})],
    "Mahiro": [("Mahiro", {})],
    "APG": [("APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0})],
    "EasyCache": [("EasyCache", CACHE)],
    "RescaleCFG, ModelSamplingSD3": [("RescaleCFG", {"multiplier": 0.5}), ("ModelSamplingSD3", {"shift": 2.0})],
}
# The second model of a guider with two, as a node on the demo model.
OTHERS: dict[str, tuple[str, dict] | None] = {
    "two models": None,
    "two models, the other shifted": ("ModelSamplingSD3", {"shift": 6.0}),
    "two models, the other discrete": ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False}),
}
GUIDERS = ("basic", "CFG 1", "CFG 3", "CFG 5", "dual CFG", *OTHERS, "KSampler")


def slider_prompt(strength: float, patch: str, guider: str, weight: float = 1.0) -> dict:
    """The base prompt with a searched direction, patches on the slider's MODEL and one of the guiders."""
    prompt = base()
    prompt["find"]["inputs"]["method"] = "HSDS"
    prompt["slider"]["inputs"] |= {"strength": strength, "weight": weight}
    model = ["slider", 0]
    for number, (kind, inputs) in enumerate(PATCHES[patch]):
        prompt[f"patch {number}"] = {"class_type": kind, "inputs": {"model": model, **inputs}}
        model = [f"patch {number}", 0]
    words = {"positive": ["slider", 1], "negative": ["negative", 0]}
    if guider == "basic":
        made = ("BasicGuider", {"model": model, "conditioning": ["slider", 1]})
    elif guider.startswith("CFG"):
        made = ("CFGGuider", {"model": model, **words, "cfg": float(guider.split()[1])})
    elif guider == "dual CFG":
        dual = {"model": model, "cond1": ["slider", 1], "cond2": ["positive", 0], "negative": ["negative", 0]}
        made = ("DualCFGGuider", {**dual, "cfg_conds": 3.0, "cfg_cond2_negative": 2.0, "style": "regular"})
    else:
        other = ["demo", 0]
        if OTHERS.get(guider):
            kind, inputs = OTHERS[guider]
            prompt["other"] = {"class_type": kind, "inputs": {"model": other, **inputs}}
            other = ["other", 0]
        made = ("DualModelGuider", {"model": model, "model_negative": other, **words, "cfg": 3.0})
    prompt["guider"] = {"class_type": made[0], "inputs": made[1]}
    if guider == "KSampler":
        settings = {"seed": 0, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        inputs = {"model": model, **words, "latent_image": ["invert", 0], **settings}
        prompt["sampled"] = {"class_type": "KSampler", "inputs": inputs}
    return needed(prompt, OUTPUTS)


def plan(count: int) -> list[tuple[float, str, str]]:
    """(strength, patch, guider) of each run: a change of the model every few runs, strength 0 first and between."""
    rng, runs = random.Random(SEED), []
    combinations = [(patch, "basic") for patch in PATCHES] + [("none", guider) for guider in GUIDERS]
    combinations += [(p, g) for p in PATCHES for g in GUIDERS if (p, g) not in combinations]
    first, rest = combinations[: len(PATCHES) + len(GUIDERS)], combinations[len(PATCHES) + len(GUIDERS) :]
    rng.shuffle(first)
    rng.shuffle(rest)
    order = first + rest
    while len(runs) < count:
        patch, guider = order[len(runs) // 3 % len(order)] if count > 100 else order[len(runs) % len(order)]
        strength = 0.0 if len(runs) % 3 != 1 else round(rng.uniform(-3, 3), 2)
        # ComfyUI would not run the same prompt again: a weight of almost 1 makes another one
        runs.append((strength, patch, guider))
    return runs


def sliders(soak) -> None:
    """Part 4: slider runs, exactness at strength 0, and what the server's memory and files do meanwhile."""
    memory, files, runs = [], [], plan(soak.size.sliders)
    restarts = soak.live.restarts
    for number, (strength, patch, guider) in enumerate(runs, 1):
        prompt = slider_prompt(strength, patch, guider, 1.0 - number * 1e-6)
        outcome, reply = soak.run("sliders", prompt)
        largest = None
        if outcome.kind == OK and strength == 0:
            largest = max(report["max_abs_diff"] for report in reply.reports)
            if largest > EXACT:
                outcome = Outcome(NOT_EXACT, f"the latent differs by {largest:.3g} ({patch}, {guider})")
        more = {"where": f"{patch} / {guider}", "strength": strength, "difference": largest}
        soak.note("sliders", outcome, reply.seconds, prompt=prompt, patch=patch, guider=guider, **more)
        memory.append(memory_of(soak.live.pid, "VmRSS"))
        files.append(open_files(soak.live.pid))
        if number % soak.size.batch == 0:
            soak.check("sliders")
    warm = int(len(runs) * WARM_UP)
    tenth = max(1, len(runs) // 10)
    start, end = (statistics.median(part) for part in (memory[warm : warm + tenth], memory[-tenth:]))
    first, last = (statistics.median(part) for part in (files[warm : warm + tenth], files[-tenth:]))
    row = {"memory_start": start, "memory_end": end, "files_start": first, "files_end": last}
    row["same_server"] = soak.live.restarts == restarts
    soak.rows.append({"part": "session", "outcome": "", "detail": "", **row, "runs": len(runs)})
    # a short session is all warm-up: what nodes need at their first use is no leak
    if row["same_server"] and len(runs) >= 100:
        if end > start * (1 + MOST_GROWTH):
            soak.note("sliders", Outcome(MEMORY, f"{start / 2**20:.0f} MB, at the end {end / 2**20:.0f} MB"))
        if last > first + MORE_FILES:
            soak.note("sliders", Outcome(DESCRIPTORS, f"{first} open files, at the end {last}"))


def print_tables(rows: list[dict]) -> None:
    """Strength 0 by what is on the MODEL, and memory and open files over the session."""
    mine = [row for row in rows if row["part"] == "sliders" and "patch" in row]
    if not mine:
        return
    print("\nSlider runs by the nodes on the MODEL and by guider; strength 0 must give the picture back:\n")
    lines = []
    for key in ("patch", "guider"):
        for name in dict.fromkeys(row[key] for row in mine):
            of = [row for row in mine if row[key] == name]
            zero = [row["difference"] for row in of if row["difference"] is not None]
            lines.append(
                {
                    key if key == "patch" else "patch": name if key == "patch" else f"guider: {name}",
                    "runs": len(of),
                    "refused or failed": sum(row["outcome"] not in (OK, NOT_EXACT) for row in of),
                    "at strength 0": len(zero),
                    "largest difference": f"{max(zero):.1e}" if zero else "none",
                    "not exact": sum(row["outcome"] == NOT_EXACT for row in of),
                }
            )
    print_table(lines)
    row = next((row for row in rows if row["part"] == "session"), None)
    if row is None:
        return
    start, end = row["memory_start"] / 2**20, row["memory_end"] / 2**20
    print(f"\nResident memory {start:.0f} MB after the warm-up, {end:.0f} MB at the end ({end / start - 1:+.1%});")
    print(f"open files {row['files_start']:.0f} and {row['files_end']:.0f}; {row['runs']} runs.")
