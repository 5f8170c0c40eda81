"""The prompt that hostile cases start from, and stock nodes that give odd things to link to the nodes of the pack."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

from benchmarks.soak.outcomes import PREFIX
from benchmarks.soak.server import MARK

STORED = "base"  # a direction that is in the server's folder
SOURCE, TARGET = "a portrait of a person, neutral", "a portrait of a person, smiling"

# Nodes that give odd things to link, by the type they give; "@name" is a node of the base.
ODD_LATENTS = {
    "four channels": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "empty": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "empty of another size": ("EmptySD3LatentImage", {"width": 16, "height": 128, "batch_size": 1}),
    "batch of empty": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 3}),
    "video": ("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 9, "batch_size": 1}),
    "one frame": ("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 1, "batch_size": 1}),
    "sound": ("EmptyLatentAudio", {"seconds": 1.0, "batch_size": 1}),
    "batch of two": ("LatentBatch", {"samples1": "@encoded", "samples2": "@encoded"}),
    "repeated": ("RepeatLatentBatch", {"samples": "@encoded", "amount": 4}),
    "one of a batch": ("LatentFromBatch", {"samples": "@encoded", "batch_index": 0, "length": 1}),
    "multiplied by NaN": ("LatentMultiply", {"samples": "@encoded", "multiplier": ("PrimitiveFloat", math.nan)}),
    "multiplied by 1e18": ("LatentMultiply", {"samples": "@encoded", "multiplier": ("PrimitiveFloat", 1e18)}),
    "multiplied by infinity": ("LatentMultiply", {"samples": "@encoded", "multiplier": ("switch", math.inf)}),
    "multiplied by 0": ("LatentMultiply", {"samples": "@encoded", "multiplier": 0.0}),
    "multiplied by 1e-40": ("LatentMultiply", {"samples": "@encoded", "multiplier": 1e-40}),
    "larger": (
        "LatentUpscale",
        {"samples": "@encoded", "upscale_method": "bilinear", "width": 96, "height": 72, "crop": "disabled"},
    ),
    "one cell": (
        "LatentUpscale",
        {"samples": "@encoded", "upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"},
    ),
    "odd size": ("LatentCrop", {"samples": "@encoded", "width": 56, "height": 40, "x": 0, "y": 0}),
    "with a noise mask": ("SetLatentNoiseMask", {"samples": "@encoded", "mask": "@mouth"}),
    "with a mask of 1 pixel": (
        "SetLatentNoiseMask",
        {"samples": "@encoded", "mask": {"SolidMask": {"value": 1.0, "width": 1, "height": 1}}},
    ),
    "two portraits": ("LatentConcat", {"samples1": "@encoded", "samples2": "@encoded", "dim": "x"}),
}
ODD_MASKS = {
    "empty": ("SolidMask", {"value": 0.0, "width": 64, "height": 64}),
    "full": ("SolidMask", {"value": 1.0, "width": 64, "height": 64}),
    "half": ("SolidMask", {"value": 0.5, "width": 64, "height": 64}),
    "NaN": ("SolidMask", {"value": ("PrimitiveFloat", math.nan), "width": 64, "height": 64}),
    "negative": ("SolidMask", {"value": ("PrimitiveFloat", -5.0), "width": 64, "height": 64}),
    "1e30": ("SolidMask", {"value": ("switch", 1e30), "width": 64, "height": 64}),
    "one pixel": ("SolidMask", {"value": 1.0, "width": 1, "height": 1}),
    "wide": ("SolidMask", {"value": 1.0, "width": 4096, "height": 1}),
    "large": ("SolidMask", {"value": 1.0, "width": 2048, "height": 2048}),
    "another size": ("SolidMask", {"value": 1.0, "width": 65, "height": 64}),
    "inverted": ("InvertMask", {"mask": "@mouth"}),
    "cropped": ("CropMask", {"mask": "@mouth", "x": 60, "y": 60, "width": 4, "height": 4}),
    "feathered": ("FeatherMask", {"mask": "@mouth", "left": 64, "top": 64, "right": 64, "bottom": 64}),
}
ODD_WORDS = {
    "zeroed": ("ConditioningZeroOut", {"conditioning": "@positive"}),
    "two combined": ("ConditioningCombine", {"conditioning_1": "@positive", "conditioning_2": "@negative"}),
    "joined": ("ConditioningConcat", {"conditioning_to": "@positive", "conditioning_from": "@negative"}),
    "averaged": (
        "ConditioningAverage",
        {
            "conditioning_to": "@positive",
            "conditioning_from": "@negative",
            "conditioning_to_strength": ("PrimitiveFloat", math.nan),
        },
    ),
    "on an area": (
        "ConditioningSetAreaPercentage",
        {"conditioning": "@positive", "width": 0.5, "height": 0.5, "x": 0.5, "y": 0.0, "strength": 1.0},
    ),
    "on a mask": (
        "ConditioningSetMask",
        {"conditioning": "@positive", "mask": "@mouth", "strength": 1.0, "set_cond_area": "default"},
    ),
    "at some steps": ("ConditioningSetTimestepRange", {"conditioning": "@positive", "start": 0.4, "end": 0.6}),
    "negative": "@negative",
}
ODD_MODELS = {
    "moved": "@slider 0",
    "returning": "@invert 3",
    "shifted": ("ModelSamplingSD3", {"model": "@demo", "shift": 7.0}),
    "shifted by NaN": ("ModelSamplingSD3", {"model": "@demo", "shift": ("PrimitiveFloat", math.nan)}),
    "shifted by 0": ("ModelSamplingSD3", {"model": "@demo", "shift": 0.0}),
    "discrete": ("ModelSamplingDiscrete", {"model": "@demo", "sampling": "eps", "zsnr": False}),
    "discrete, zero terminal SNR": (
        "ModelSamplingDiscrete",
        {"model": "@demo", "sampling": "v_prediction", "zsnr": True},
    ),
    "continuous": (
        "ModelSamplingContinuousEDM",
        {"model": "@demo", "sampling": "edm", "sigma_max": 120.0, "sigma_min": 0.002},
    ),
    "continuous without a range": (
        "ModelSamplingContinuousEDM",
        {"model": "@demo", "sampling": "eps", "sigma_max": 0.0, "sigma_min": 0.0},
    ),
    "rescaled guidance": ("RescaleCFG", {"model": "@demo", "multiplier": 0.7}),
    "cache": (
        "EasyCache",
        {"model": "@demo", "reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    ),
    "half precision": ("ModelComputeDtype", {"model": "@demo", "dtype": "fp16"}),
}
ODD = {
    "LATENT": ODD_LATENTS,
    "MASK": ODD_MASKS | {"eyes": "@portrait 2"},
    "IMAGE": {
        "portrait": "@portrait",
        "two, wide": ("EmptyImage", {"width": 4096, "height": 16, "batch_size": 2, "color": 0}),
    },
    "CONDITIONING": ODD_WORDS,
    "MODEL": ODD_MODELS,
    "CLIP": {"an earlier layer": ("CLIPSetLastLayer", {"clip": "@demo 1", "stop_at_clip_layer": -24})},
    "VAE": {"demo": "@demo 2"},
    "NOISE": {
        "random": ("RandomNoise", {"noise_seed": 2**64 - 1}),
        "none": ("DisableNoise", {}),
        "another": "@slider 2",
    },
    "SIGMAS": {
        "of Encode Picture": "@invert 2",
        "of a scheduler": (
            "BasicScheduler",
            {"model": "@demo", "scheduler": "beta", "steps": 4, "denoise": 1.0},
        ),
        "the upper part": ("SplitSigmas", {"sigmas": "@invert 2", "step": 1}),
        "upside down": ("FlipSigmas", {"sigmas": "@invert 2"}),
    },
    "LATENT_INVERSION": {
        "of a batch": ("invert", {"latent": "batch of two"}),
        "of another size": ("invert", {"latent": "odd size"}),
        "at another level": ("invert", {"level": 0.9}),
        "of fresh noise": ("invert", {"method": "fresh noise", "seeds": 2}),
        "of another model": ("invert", {"model": "discrete"}),
        "with a slider": "@slider 3",
    },
    "LATENT_DIRECTIONS": {
        "of LOCO": ("find", {"method": "LOCO", "count": 2, "hold_outside": 0}),
        "of HSDS": ("find", {"method": "HSDS"}),
        "of a file": (f"{PREFIX}LoadDirection", {"file": f"{STORED}.safetensors"}),
        "prepared": "@prepare",
    },
}
NODES = {
    "portrait": "DemoPortrait",
    "invert": "InvertImage",
    "find": "FindDirections",
    "slider": "DirectionSlider",
    "apply": "ApplySliders",
    "transfer": "TransferDirection",
    "combine": "CombineDirections",
    "common": "FindCommonDirections",
    "prepare": "PrepareQuickSlider",
    "quick": "QuickSlider",
    "strip": "SliderStrip",
    "board": "SliderBoard",
    "preview": "PreviewDirections",
    "plot": "PlotDirections",
    "report": "EditReport",
    "words": "MeasureWords",
    "score": "MeasureDisentanglement",
    "attributes": "MeasureDemo",
    "save": "SaveDirection",
    "load": "LoadDirection",
    "diffusers": "LoadDiffusersModel",
}
MOUTH = ["portrait", 1]
PREVIEW = {"inversion": ["invert", 4], "directions": ["find", 0], "vae": ["demo", 2]}
FEW = {"strength": 1.0, "columns": 3, "steps": 1}
PLOT = {"plot": "level and locality", "strength": 1.0, "points": 2, "steps": 1}
ROWS = '{"version": 1, "sliders": [{"words": "smiling"}]}'


def base() -> dict:
    """The prompt that all cases start from: few steps, words alone, every node of the pack."""
    invert = {"model": ["demo", 0], "positive": ["positive", 0], "latent": ["encoded", 0], "level": 0.5, "steps": 3}
    invert |= {"scheduler": "simple", "method": "backward euler", "seed": 0, "seeds": 1, "sigma": 0.0, "guidance": 1.0}
    find = {"model": ["demo", 0], "inversion": ["invert", 4], "clip": ["demo", 1], "method": "text", "source": SOURCE}
    find |= {"target": TARGET, "keep": "", "count": 1, "hold_outside": 1, "free": "", "guidance": 1.0, "seed": 0}
    find |= {"image_share": 0.35, "text_share": 0.35, "derivatives": "automatic"}
    slider = {"inversion": ["invert", 4], "directions": ["find", 0], "index": 0, "strength": 1.0, "weight": 1.0}
    slider |= {"words": "live", "start": 0.0, "end": 1.0}
    moves = find | {"method": "LOCO", "count": 2, "hold_outside": 0, "derivatives": "forward only"}
    transfer = {"model": ["demo", 0], "inversion": ["invert", 4], "directions": ["moves", 0], "index": 0}
    combine = transfer | {"others": ["moves", 0], "how": "hold what the others do", "amount": 1.0}
    transfer |= {"which": "all", "move": "as it is"}
    common = {"model": ["demo", 0], "inversion": ["invert two", 4], "how": "principal components", "count": 1}
    slid = {"inversion": ["invert", 4], "directions": ["find", 0], "index": 0}
    strip = {"start": -1.0, "end": 1.0, "keyframes": 3, "frames": 5, "steps": 2}
    board = {"model": ["demo", 0], "inversion": ["invert", 4], "clip": ["demo", 1], "source": "a portrait of a person"}
    board |= {"board": ROWS, "find_keeps": "nothing", "where": "everywhere"}
    measured = {"image": ["portrait", 0], "edited": ["decoded", 0]}
    words = {"clip_vision": ["no vision", 0], "clip": ["demo", 1], "pairs": "a hat | no hat", "crop": "center"}
    score = {"model": ["demo", 0], "vae": ["demo", 2], "image": ["portrait", 0], "positive": ["positive", 0]}
    score |= {"target": ["negative", 0]}
    sampling = {"noise": ["apply", 2], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["invert", 2]}
    nodes = {
        "demo": (f"{PREFIX}LoadDemoModel", {}),
        "portrait": (f"{PREFIX}DemoPortrait", {"seed": 7, "named_attributes": ""}),
        "encoded": ("VAEEncode", {"pixels": ["portrait", 0], "vae": ["demo", 2]}),
        "positive": ("CLIPTextEncode", {"text": ["portrait", 5], "clip": ["demo", 1]}),
        "negative": ("CLIPTextEncode", {"text": "", "clip": ["demo", 1]}),
        "invert": (f"{PREFIX}InvertImage", invert),
        "find": (f"{PREFIX}FindDirections", find),
        "load": (f"{PREFIX}LoadDirection", {"file": f"{STORED}.safetensors"}),
        "slider": (f"{PREFIX}DirectionSlider", slider),
        "apply": (f"{PREFIX}ApplySliders", {"inversion": ["slider", 3]}),
        "guider": ("BasicGuider", {"model": ["apply", 0], "conditioning": ["apply", 1]}),
        "euler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sampled": ("SamplerCustomAdvanced", sampling | {"latent_image": ["invert", 0]}),
        "decoded": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["demo", 2]}),
        "picture": ("PreviewImage", {"images": ["decoded", 0]}),
        "latent": ("SaveLatent", {"samples": ["sampled", 0], "filename_prefix": "soak"}),
        "report": (f"{PREFIX}EditReport", {"inversion": ["invert", 4], "latent": ["sampled", 0]}),
        "prepare": (f"{PREFIX}PrepareQuickSlider", slid | {"steps": 2}),
        "prepare text": ("PreviewAny", {"source": ["prepare", 1]}),
        "quick": (f"{PREFIX}QuickSlider", slid | {"directions": ["prepare", 0], "strength": 1.0}),
        "quick decoded": ("VAEDecode", {"samples": ["quick", 0], "vae": ["demo", 2]}),
        "quick picture": ("PreviewImage", {"images": ["quick decoded", 0]}),
        "moves": (f"{PREFIX}FindDirections", moves),
        "transfer": (f"{PREFIX}TransferDirection", transfer),
        "transfer text": ("PreviewAny", {"source": ["transfer", 1]}),
        "combine": (f"{PREFIX}CombineDirections", combine),
        "combine text": ("PreviewAny", {"source": ["combine", 1]}),
        "two": ("RepeatLatentBatch", {"samples": ["encoded", 0], "amount": 2}),
        "invert two": (f"{PREFIX}InvertImage", invert | {"latent": ["two", 0], "method": "seeded noise"}),
        "common": (f"{PREFIX}FindCommonDirections", common),
        "common text": ("PreviewAny", {"source": ["common", 1]}),
        "strip": (f"{PREFIX}SliderStrip", slid | strip),
        "strip decoded": ("VAEDecode", {"samples": ["strip", 0], "vae": ["demo", 2]}),
        "strip picture": ("PreviewImage", {"images": ["strip decoded", 0]}),
        "board": (f"{PREFIX}SliderBoard", board),
        "board preview": (f"{PREFIX}PreviewDirections", PREVIEW | FEW | {"directions": ["board", 4]}),
        # the server has no CLIP vision model: a CLIP in its place is refused, after the inputs before it
        "no vision": ("ComfySwitchNode", {"switch": True, "on_true": ["demo", 1], "on_false": ["demo", 1]}),
        "words": (f"{PREFIX}MeasureWords", measured | words),
        "score": (f"{PREFIX}MeasureDisentanglement", score | {"level": 0.5, "steps": 2}),
        "attributes": (f"{PREFIX}MeasureDemo", measured),
        "report text": ("PreviewAny", {"source": ["report", 1]}),
        "preview": (f"{PREFIX}PreviewDirections", PREVIEW | FEW),
        "plot": (f"{PREFIX}PlotDirections", PREVIEW | PLOT),
        # the server has no such folder: the node says so
        "diffusers": (f"{PREFIX}LoadDiffusersModel", {}),
        "diffusers text": ("PreviewAny", {"source": ["diffusers", 3]}),
        "save": (f"{PREFIX}SaveDirection", {"directions": ["find", 0], "index": 0, "name": f"{MARK}"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


OUTPUTS = ("picture", "latent", "report text")
OUTPUTS_OF = {
    "preview": ("preview",),
    "plot": ("plot",),
    "save": ("save",),
    "report": ("report text",),
    "prepare": ("prepare text", "quick picture"),
    "quick": ("quick picture",),
    "transfer": ("transfer text",),
    "combine": ("combine text",),
    "common": ("common text",),
    "strip": ("strip picture",),
    "board": ("board preview",),
    "words": ("words",),
    "score": ("score",),
    "attributes": ("attributes",),
    "diffusers": ("diffusers text",),
}


def needed(prompt: dict, outputs: Iterable[str]) -> dict:
    """The nodes that some outputs need."""
    found, wanted = {}, list(outputs)
    while wanted:
        key = wanted.pop()
        if key in found or key not in prompt:
            continue
        found[key] = prompt[key]
        values = prompt[key]["inputs"].values()
        wanted += [v[0] for v in values if isinstance(v, list) and len(v) == 2 and isinstance(v[0], str)]
    return found


def _add(prompt: dict, kind: str, inputs: dict) -> list:
    key = f"added {len(prompt)}"
    prompt[key] = {"class_type": kind, "inputs": inputs}
    return [key, 0]


def link_to(prompt: dict, value, node: str = "") -> list:
    """A link to a stock node that gives a value: a primitive where that takes it, else the switch, which takes all."""
    most = 2**63 - 1
    if isinstance(value, bool):
        return _add(prompt, "PrimitiveBoolean", {"value": value})
    if isinstance(value, int) and abs(value) <= most and node != "switch":
        return _add(prompt, "PrimitiveInt", {"value": value})
    if isinstance(value, float) and not abs(value) > most and node != "switch":
        return _add(prompt, "PrimitiveFloat", {"value": value})
    if isinstance(value, str):
        # the primitives of texts cannot be linked to lists of choices; the switch can
        text = _add(prompt, "PrimitiveString", {"value": value})
        return _add(prompt, "ComfySwitchNode", {"switch": True, "on_true": text, "on_false": text})
    value = {"__value__": value} if isinstance(value, list) else value
    return _add(prompt, "ComfySwitchNode", {"switch": True, "on_true": value, "on_false": value})


def odd_source(prompt: dict, kind: str, name: str) -> list:
    """A link to an odd source, which is added to the prompt."""
    source = ODD[kind][name]
    if isinstance(source, str):
        key, _, output = source.removeprefix("@").partition(" ")
        return [key, int(output or 0)]
    node, inputs = source
    given = {}
    for key, value in inputs.items():
        if isinstance(value, tuple):
            given[key] = link_to(prompt, value[1], value[0])
        elif isinstance(value, dict):
            ((mask, of_mask),) = value.items()
            given[key] = _add(prompt, mask, of_mask)
        elif isinstance(value, str) and value.startswith("@"):
            given[key] = MOUTH if value == "@mouth" else _output_of(value)
        elif key in ("latent", "model") and node == "invert":
            given[key] = odd_source(prompt, key.upper(), value)
        else:
            given[key] = value
    if node in prompt:  # another one of the pack's own
        copied = copy.deepcopy(prompt[node])
        return _add(prompt, copied["class_type"], copied["inputs"] | given)[:1] + [4 if node == "invert" else 0]
    return _add(prompt, node, given)


def _output_of(name: str) -> list:
    key, _, output = name.removeprefix("@").partition(" ")
    return [key, int(output or 0)]
