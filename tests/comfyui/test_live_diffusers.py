"""Models of diffusers folders in a running ComfyUI, over its API: load, encode exactly, find, slide."""

import diffusers_folders
import pytest
import safetensors.torch
import torch

from latent_directions.nodes.diffusers_folder import SHIPPED
from scripts import workflow

STEPS = 4
PREFIX = "LatentDirections_"


@pytest.fixture(scope="module")
def folders(comfy) -> dict[str, str]:
    """The models by name: the DDPM that comes with the pack, and DeepFloyd IF's first stage in miniature."""
    root = comfy.run_folder / "models" / "diffusers"
    diffusers_folders.deepfloyd(root / "if")
    return {"DDPM on pixels": SHIPPED, "DeepFloyd IF": "if"}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def latent_of(comfy, result, name: str) -> torch.Tensor:
    """What a SaveLatent node wrote."""
    return safetensors.torch.load(comfy.client.view(result.outputs[name]["latents"][0]))["latent_tensor"]


def graph(folder: str, strength: float, *, text: str | None, **search) -> dict:
    """From the folder to a sampled latent; a model that takes no text gets the loader's empty prompt."""
    positive = ["load", 3] if text is None else ["prompt", 0]
    made = {
        "load": node(f"{PREFIX}LoadDiffusersModel", folder=folder),
        "portrait": node(f"{PREFIX}DemoPortrait", seed=3, named_attributes="", size=32),
        "latent": node("VAEEncode", pixels=["portrait", 0], vae=["load", 2]),
        "invert": node(
            f"{PREFIX}InvertImage", model=["load", 0], positive=positive, latent=["latent", 0], level=0.6, steps=STEPS
        ),
        "find": node(
            f"{PREFIX}FindDirections", model=["load", 0], inversion=["invert", 4], mask=["portrait", 1], **search
        ),
        "slider": node(
            f"{PREFIX}DirectionSlider", inversion=["invert", 4], directions=["find", 0], index=0, strength=strength
        ),
        "guider": node("BasicGuider", model=["slider", 0], conditioning=["slider", 1]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sampled": node(
            "SamplerCustomAdvanced",
            noise=["slider", 2],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["invert", 2],
            latent_image=["invert", 0],
        ),
        "after": node("SaveLatent", samples=["sampled", 0], filename_prefix="after"),
        "before": node("SaveLatent", samples=["latent", 0], filename_prefix="before"),
        "report": node("PreviewAny", source=["find", 1]),
    }
    if text is not None:
        made["prompt"] = node("CLIPTextEncode", clip=["load", 1], text=text)
        made["find"]["inputs"]["clip"] = ["load", 1]
    return made


def with_defaults(prompt: dict, info: dict) -> dict:
    """The prompt with the defaults of all inputs that it leaves out, as the page gives them."""
    filled = {}
    for name, one in prompt.items():
        declared = workflow.declared_inputs(info[one["class_type"]])
        defaults = {given: options["default"] for given, _, options in declared if "default" in options}
        filled[name] = one | {"inputs": defaults | one["inputs"]}
    return filled


@pytest.mark.parametrize(
    ("model", "text", "search"),
    [
        ("DDPM on pixels", None, {"method": "LOCO", "count": 1}),
        ("DDPM on pixels", None, {"method": "explore", "count": 2}),
        ("DeepFloyd IF", "a face", {"method": "LOCO", "count": 1}),
        ("DeepFloyd IF", "a face", {"method": "T-LOCO", "source": "a face", "target": "a smiling face"}),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else None,
)
def test_load_encode_find_slide(comfy, folders, model, text, search):
    search = {"source": "", "target": "", "keep": "", "find_keeps": "nothing", **search}
    latents = {}
    info = comfy.client.object_info()
    for strength in (0.0, 1.0):
        result = comfy.run(with_defaults(graph(folders[model], strength, text=text, **search), info))
        report = result.outputs["report"]["text"][0]
        latents[strength] = latent_of(comfy, result, "after")
        before = latent_of(comfy, result, "before")
    assert "passed their self-check" in report
    assert torch.equal(latents[0.0], before)
    assert float((latents[1.0] - before).abs().max()) > 1e-3
