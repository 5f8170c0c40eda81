"""The demo's strips: the example workflow, queued once per strength, its pictures measured and laid out."""

import argparse
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from PIL import Image
from torch import Tensor

from latent_directions.core.contact_sheet import contact_sheet
from latent_directions.demo import measures
from scripts import workflow
from scripts.comfy_client import Result
from scripts.comfy_server import Server
from scripts.environment import ROOT
from scripts.moving_strip import save_moving_strip

TEMPLATE = ROOT / "example_workflows" / "First slider.json"
STRENGTHS = (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)
BETWEEN = (-1.25, -0.75, -0.25, 0.25, 0.75, 1.25)  # sampled for the moving strip alone
# What the strips of the demo move: what the words say of the portrait before, and at strength 1.
MOVED = {
    "smile": ("neutral", "smiling"),
    "brows": ("calm", "angry"),
    "hair": ("medium-haired", "long-haired"),
    "glasses": ("without glasses", "with glasses"),
}
SIZE, WIDTH = 64, 256  # pixels of the demo model's pictures, and in strips
PLAIN_PROMPT = "a portrait of a person"
PORTRAIT, INVERT, FIND, SLIDER, REPORT = (
    f"LatentDirections_{name}"
    for name in ("DemoPortrait", "InvertImage", "FindDirections", "DirectionSlider", "EditReport")
)


@dataclass(frozen=True)
class Strip:
    """What to make: a name for the files, and the inputs of Find Directions that differ from the workflow's."""

    name: str
    inputs: dict


@dataclass(frozen=True)
class Edit:
    """One picture of a strip: its latent B C H W, and the nodes' own reports of each stage."""

    picture: Image.Image
    latent: Tensor
    encode: dict
    identify: dict
    manipulate: dict
    found_anew: bool


def make_strips(server: Server, options: argparse.Namespace) -> list[Path]:
    """Make and measure every strip; returns the files written to `options.out`."""
    began = time.monotonic()
    info = server.client.object_info()
    prompt = workflow.to_prompt(json.loads(TEMPLATE.read_text(encoding="utf-8")), info)
    prompt = with_outputs(with_options(prompt, server, info, options), info)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    reader, reports, rows, moving, files = measures.Reader(), [], [], {}, []
    before, encoded = round_trip(server, prompt)

    def keep(picture: Image.Image, name: str) -> None:
        files.append(out / name)
        picture.save(files[-1])

    keep(before, "round-trip.png")
    for strip in planned(prompt, options):
        changed = workflow.with_inputs(prompt, {workflow.find(prompt, FIND): strip.inputs})
        edits = {strength: edit(server, changed, strip.name, strength) for strength in STRENGTHS}
        for strength, made in edits.items():
            keep(made.picture, f"{strip.name}_{label(strength)}.png")
        row = (strip.name, [(label(strength), made.picture) for strength, made in edits.items()])
        keep(contact_sheet([row], WIDTH), f"strip_{strip.name}.png")
        rows.append(row)
        find_inputs = changed[workflow.find(changed, FIND)]["inputs"]
        reports.append(describe(reader, find_inputs, edits, before, encoded))
        print(summary(reports[-1]), flush=True)
        if strip.name in MOVED:
            edits |= {strength: edit(server, changed, strip.name, strength) for strength in BETWEEN}
            moving[strip.name] = {strength: made.picture for strength, made in edits.items()}
    keep(contact_sheet(rows, WIDTH), "strips.png")
    if moving:
        files.append(out / "sliders.webp")
        save_moving_strip(moving, files[-1])
    files.append(out / "report.json")
    seconds = round(time.monotonic() - began, 1)
    files[-1].write_text(json.dumps({"runs": reports, "seconds": seconds}, indent=1), encoding="utf-8")
    return files


def with_options(prompt: dict, server: Server, info: dict, options: argparse.Namespace) -> dict:
    """Put the user's picture, words and seed into the workflow."""
    portrait, find = workflow.find(prompt, PORTRAIT), workflow.find(prompt, FIND)
    changes = {portrait: {"seed": options.seed}} if options.seed is not None else {}
    words = {"source": options.prompt, "target": options.target}
    given = {name: text for name, text in words.items() if text}
    # Keep prompts and mask of the workflow belong to its own words.
    changes[find] = {**given, "keep": "", "mask": None} if given or options.image else {}
    prompt = workflow.with_inputs(prompt, changes)
    caption = [portrait, workflow.output(info, PORTRAIT, "caption")]
    if options.image:
        picture = {"class_type": "LoadImage", "inputs": {"image": server.client.upload(options.image)}}
        fit = {"image": ["picture", 0], "upscale_method": "lanczos", "width": SIZE, "height": SIZE, "crop": "center"}
        prompt |= {"picture": picture, "fit": {"class_type": "ImageScale", "inputs": fit}}
        prompt = workflow.rewired(prompt, [portrait, workflow.output(info, PORTRAIT, "image")], ["fit", 0])
        prompt = workflow.rewired(prompt, caption, options.prompt or PLAIN_PROMPT)
        prompt.pop(portrait)
    elif options.prompt:
        prompt = workflow.rewired(prompt, caption, options.prompt)
    return prompt


def with_outputs(prompt: dict, info: dict) -> dict:
    """Add nodes that hand out each stage's report and the edited latent."""
    invert, find = workflow.find(prompt, INVERT), workflow.find(prompt, FIND)
    edited = [workflow.find(prompt, "SamplerCustomAdvanced"), 0]
    inversion = [invert, workflow.output(info, INVERT, "inversion")]
    encode = [invert, workflow.output(info, INVERT, "report")]
    identify = [find, workflow.output(info, FIND, "report")]
    manipulate = ["edited", workflow.output(info, REPORT, "report")]
    return prompt | {
        "encode": {"class_type": "PreviewAny", "inputs": {"source": encode}},
        "identify": {"class_type": "PreviewAny", "inputs": {"source": identify}},
        "edited": {"class_type": REPORT, "inputs": {"inversion": inversion, "latent": edited}},
        "manipulate": {"class_type": "PreviewAny", "inputs": {"source": manipulate}},
        "latent": {"class_type": "SaveLatent", "inputs": {"samples": edited, "filename_prefix": "edit"}},
    }


def planned(prompt: dict, options: argparse.Namespace) -> list[Strip]:
    """Return the strips to make: those of the demo, or the one that the options ask for."""
    if options.method or options.target or options.image:
        method = options.method or prompt[workflow.find(prompt, FIND)]["inputs"]["method"]
        return [Strip(method.lower().replace(" ", "-"), {"method": method})]
    return [
        Strip(name, {"source": f"{PLAIN_PROMPT}, {before}", "target": f"{PLAIN_PROMPT}, {after}", "keep": ""})
        for name, (before, after) in MOVED.items()
    ]


def round_trip(server: Server, prompt: dict) -> tuple[Image.Image, Tensor]:
    """Return the picture after VAE Encode and VAE Decode alone, and its latent."""
    encode, decode = workflow.find(prompt, "VAEEncode"), workflow.find(prompt, "VAEDecode")
    decoded = {"samples": [encode, 0], "vae": prompt[decode]["inputs"]["vae"]}
    small = workflow.upstream(prompt, encode) | {
        "decoded": {"class_type": "VAEDecode", "inputs": decoded},
        "picture out": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "before"}},
        "latent": {"class_type": "SaveLatent", "inputs": {"samples": [encode, 0], "filename_prefix": "before"}},
    }
    result = server.run(small)
    return picture_of(server, result, "picture out"), latent_of(server, result)


def edit(server: Server, prompt: dict, name: str, strength: float) -> Edit:
    """Queue the workflow with the slider at `strength` and collect what comes out."""
    prompt = workflow.with_inputs(prompt, {workflow.find(prompt, SLIDER): {"strength": strength}})
    began = time.monotonic()

    def show(result: Result) -> None:
        if sys.stdout.isatty() and result.running in prompt:
            title = prompt[result.running].get("_meta", {}).get("title", result.running)
            done = f" {result.progress[-1][1]:.0f}/{result.progress[-1][2]:.0f}" if result.progress else ""
            print(f"\r\x1b[K{name} {label(strength)}: {title}{done}", end="", flush=True)

    result = server.run(prompt, show)
    start = "\r\x1b[K" if sys.stdout.isatty() else ""
    print(f"{start}{name} {label(strength)}: {time.monotonic() - began:.1f} s", flush=True)
    encode, identify, manipulate = (
        json.loads(result.outputs[key]["text"][0]) for key in ("encode", "identify", "manipulate")
    )
    saved = picture_of(server, result, workflow.find(prompt, "SaveImage"))
    found_anew = workflow.find(prompt, FIND) in result.executed
    return Edit(saved, latent_of(server, result), encode, identify, manipulate, found_anew)


def picture_of(server: Server, result: Result, key: str) -> Image.Image:
    """Return the picture that a Save Image node wrote."""
    return Image.open(io.BytesIO(server.client.view(result.outputs[key]["images"][0]))).convert("RGB")


def latent_of(server: Server, result: Result) -> Tensor:
    """Return the latent that the node "latent" wrote."""
    return safetensors.torch.load(server.client.view(result.outputs["latent"]["latents"][0]))["latent_tensor"]


def describe(
    reader: measures.Reader, find: dict, edits: dict[float, Edit], before: Image.Image, encoded: Tensor
) -> dict:
    """Return one entry of the report: what the strip changed, what leaked, and what each stage cost."""
    strengths, made = list(edits), list(edits.values())
    values = reader.read([e.picture for e in made])
    target = measures.target_of(find["source"], find["target"])
    others = [name for name in measures.ATTRIBUTES if not target or name != target[0]]
    zero = strengths.index(0)
    changed = np.asarray(made[zero].picture, np.int16) - np.asarray(before, np.int16)
    cost = {
        "encode": made[0].encode,
        "identify": made[0].identify,
        "manipulate": {key: sum(e.manipulate[key] for e in made) for key in ("model_evaluations", "seconds")},
    }
    return {
        "method": find["method"],
        "source": find["source"],
        "target": find["target"],
        "keep": find.get("keep", ""),
        "mask": "mask" in find,
        "target_attribute": target[0] if target else None,
        "strengths": strengths,
        "target_values": rounded(measures.target_values(values, *target)) if target else None,
        "leakage": {name: rounded(measures.leakage(values, zero, name)) for name in others},
        "zero_strength_max_abs_diff": float((made[zero].latent - encoded).abs().max()),
        "zero_strength_pixels_changed": int((changed != 0).any(axis=-1).sum()),
        "model_evaluations": {stage: spent["model_evaluations"] for stage, spent in cost.items()},
        "seconds": {stage: round(spent["seconds"], 3) for stage, spent in cost.items()},
        "times_directions_were_found": sum(e.found_anew for e in made),
    }


def label(strength: float) -> str:
    """Return a strength as it is written beside a picture."""
    return f"{strength:+g}" if strength else "0"


def rounded(values: np.ndarray) -> list[float]:
    """Return values as numbers for the report."""
    return [round(float(v), 4) for v in values]


def summary(report: dict) -> str:
    """Return one line about a strip."""
    values = report["target_values"]
    target = f"{report['target_attribute']} {values[0]:+.2f} .. {values[-1]:+.2f}, " if values else ""
    ends = [max(leaked[0], leaked[-1]) for leaked in report["leakage"].values()]
    return (
        f"{report['method']}: {target}mean leakage at the ends {np.mean(ends):.2f}, "
        f"pixels changed at 0: {report['zero_strength_pixels_changed']}"
    )
