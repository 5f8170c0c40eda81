"""A slider under every node of ComfyUI that changes a MODEL: no prediction of one run is reused under another MODEL.

A first run, one with the node, and one without it again, each equal to the last bit to that of an Inversion that has
not been sampled yet.
"""

import comfy.samplers
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualModel
from families import Family, randomise, sd3
from node_runs import anchored, deviation, invert, loaded

from scripts.comfy_client import PromptError

# Nodes that must be among those that run here and change what is sampled.
CHANGING = {
    "ModelSamplingDiscrete", "ModelSamplingAuraFlow", "ModelSamplingContinuousEDM",
    "ModelSamplingContinuousV", "RescaleCFG", "CFGZeroStar", "TCFG", "Mahiro", "RenormCFG", "ModelMergeSubtract", "APG",
}  # fmt: skip
CAPTION = "a portrait of a person"


def base(token: int) -> dict:
    """A slider of words at strength 1; each `token` makes an Inversion of its own with the same numbers."""
    return {
        "demo": node("LatentDirections_LoadDemoModel"),
        "portrait": node("LatentDirections_DemoPortrait", seed=3, named_attributes=""),
        "vae": node("VAEEncode", pixels=["portrait", 0], vae=["demo", 2]),
        "positive": node("CLIPTextEncode", clip=["demo", 1], text=CAPTION),
        "negative": node("CLIPTextEncode", clip=["demo", 1], text="a sad man"),
        "invert": node(
            "LatentDirections_InvertImage", model=["demo", 0], positive=["positive", 0], latent=["vae", 0], level=0.6,
            steps=3, method="euler", seed=token, scheduler="simple", seeds=1, sigma=0.0, guidance=1.0,
        ),
        "find": node(
            "LatentDirections_FindDirections", model=["demo", 0], inversion=["invert", 4], clip=["demo", 1],
            method="text", source="a sad person", target="a smiling person",
        ),
        "slider": node(
            "LatentDirections_DirectionSlider", inversion=["invert", 4], directions=["find", 0], index=0, strength=1.0,
        ),
        "guider": node(
            "CFGGuider", model=["slider", 0], positive=["slider", 1], negative=["negative", 0], cfg=2.0
        ),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "run": node(
            "SamplerCustomAdvanced", noise=["slider", 2], guider=["guider", 0], sampler=["sampler", 0],
            sigmas=["invert", 2], latent_image=["invert", 0],
        ),
        "save": node("SaveLatent", samples=["run", 0], filename_prefix="patches"),
    }  # fmt: skip


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


SOURCES = {
    "CLIP": ["demo", 1], "VAE": ["demo", 2], "CONDITIONING": ["negative", 0], "LATENT": ["vae", 0],
    "IMAGE": ["portrait", 0], "MASK": ["portrait", 1], "SIGMAS": ["invert", 2], "MODEL": ["demo", 0],
}  # fmt: skip


def patch(info: dict, kind: str) -> dict | None:
    """The node at its defaults on the slider's MODEL; None where it needs what is not there."""
    inputs, taken = {}, False
    for name, (declared, *options) in info[kind]["input"].get("required", {}).items():
        options = options[0] if options else {}
        choices = declared if isinstance(declared, list) else options.get("options")
        if declared == "MODEL" and not taken:
            inputs[name], taken = ["slider", 0], True
        elif declared in SOURCES if isinstance(declared, str) else False:
            inputs[name] = SOURCES[declared]
        elif choices:
            inputs[name] = choices[0] if not isinstance(choices[0], dict) else choices[0].get("key")
        elif "default" in options:
            inputs[name] = options["default"]
        else:
            return None
    return node(kind, **inputs) if taken else None


def kinds(info: dict) -> list[str]:
    """All nodes from MODEL to MODEL but ours."""
    return [
        kind
        for kind, described in info.items()
        if "MODEL" in described["output"] and not kind.startswith("LatentDirections_") and patch(info, kind)
    ]


@pytest.fixture(scope="module")
def info(comfy) -> dict:
    return comfy.client.object_info()


@pytest.fixture(scope="module")
def sampled(comfy, info):
    """Runs a prompt, whose missing inputs are the defaults, and gives the sampled latent."""

    def sampled(prompt: dict) -> torch.Tensor:
        for one in prompt.values():
            for name, (_, *options) in info[one["class_type"]]["input"].get("required", {}).items():
                if options and "default" in options[0]:
                    one["inputs"].setdefault(name, options[0]["default"])
        data = comfy.client.view(comfy.run(prompt).outputs["save"]["latents"][0])
        return safetensors.torch.load(data)["latent_tensor"]

    return sampled


def once_more(prompt: dict, number: int) -> dict:
    """The same prompt with other node inputs that change nothing, so that the sampler runs again."""
    split = node("SplitSigmas", sigmas=["invert", 2], step=1000 + number)
    run = node("SamplerCustomAdvanced", **prompt["run"]["inputs"] | {"sigmas": ["split", 0]})
    return {**prompt, "split": split, "run": run}


def fresh(prompt: dict, token: int) -> dict:
    """The same prompt on an Inversion of its own."""
    return {**prompt, "invert": base(token)["invert"]}


def test_every_node_that_changes_a_model(info, sampled):
    plain, changing, refused = sampled(base(0)), set(), {}
    for number, kind in enumerate(kinds(info), 1):
        patched = {**base(0), "patch": patch(info, kind)}
        patched["guider"]["inputs"]["model"] = ["patch", info[kind]["output"].index("MODEL")]
        try:
            after = sampled(patched)
        except PromptError as error:
            refused[kind] = str(error)
            continue
        if torch.equal(after, plain):
            continue
        changing.add(kind)
        assert torch.equal(after, sampled(fresh(patched, number))), f"{kind} after a run without it"
        assert torch.equal(sampled(once_more(base(0), number)), plain), f"a run without {kind} after one with it"
    assert changing >= CHANGING, (CHANGING - changing, refused)


def test_the_other_model_of_a_guider():
    """Dual Model CFG Guider asks another model for the negative prompt."""
    test_model, others = loaded(Family("sd3", sd3)), [loaded(Family("sd3", sd3)) for _ in range(2)]
    for seed, other in enumerate(others, 50):
        randomise(other.model.model.diffusion_model, seed)

    def dual(encoded, other) -> torch.Tensor:
        with torch.inference_mode():
            guider = Guider_DualModel(anchored(encoded, push=torch.ones_like(encoded.noise.noise)), other.model)
            guider.set_conds(test_model.positive, test_model.negative)
            guider.set_cfg(3.0)
            noise = encoded.noise.generate_noise(encoded.latent)
            sampler = comfy.samplers.sampler_object("euler")
            return guider.sample(noise, encoded.latent["samples"], sampler, encoded.sigmas, disable_pbar=True, seed=1)

    encoded = invert(test_model)
    first, second, again = (dual(encoded, other) for other in (*others, others[0]))
    assert torch.equal(first, dual(invert(test_model), others[0]))
    assert torch.equal(second, dual(invert(test_model), others[1]))
    assert torch.equal(again, first)
    assert deviation(first, second) > 1e-2
