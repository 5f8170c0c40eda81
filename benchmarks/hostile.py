"""Random and hostile prompts over every input of every node of the pack, drawn by hypothesis with fixed seeds."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.live import MARK
from benchmarks.outcomes import PREFIX
from scripts.workflow import declared_inputs

SEED = 20260101
SIMPLEST = 10
LONG = 2_000_000  # characters of the longest text
# Inputs whose value decides how long a run takes, and what still counts as short.
COSTLY = {"steps": 30, "count": 8, "seeds": 4, "columns": 7, "hold_outside": 16}
STORED = "base"  # a direction that is in the server's folder
SOURCE, TARGET = "a portrait of a person, neutral", "a portrait of a person, smiling"
NUMBERS = ("INT", "FLOAT")


@dataclass(frozen=True)
class Value:
    """A value for an input: of which kind, and whether it comes through a link."""

    kind: str
    value: object
    linked: bool = False


@dataclass(frozen=True)
class Case:
    """One prompt: the node that it is about, and the values of inputs by (node, input) that differ from the base."""

    target: str
    changes: tuple[tuple[str, str, Value], ...]

    @property
    def where(self) -> str:
        """The input that the case is about."""
        node, name, _ = self.changes[0]
        return f"{node}.{name}"

    @property
    def mode(self) -> str:
        """Whether its value is typed or linked."""
        return "linked" if self.changes[0][2].linked else "typed"

    @property
    def kinds(self) -> str:
        """Kinds of its values, most important first."""
        return ", ".join(value.kind for _, _, value in self.changes)

    @property
    def heavy(self) -> bool:
        """Whether a run may well take long."""
        return any(_is_heavy(name, value.value) for _, name, value in self.changes)


def _is_heavy(name: str, value) -> bool:
    if name == "keep":
        return isinstance(value, str) and value.count("\n") > 5
    if name not in COSTLY:
        return False
    try:
        return float(value) > COSTLY[name]
    except (TypeError, ValueError, OverflowError):
        return False


def draw(strategy: st.SearchStrategy, count: int, number: int) -> list:
    """`count` examples of a strategy, always the same ones for a number."""
    found: list = []
    for attempt in range(20):

        @seed(SEED + 1000 * number + attempt)
        @settings(
            max_examples=max(1, count - len(found)),
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def collect(example):
            found.append(example)

        collect()
        if len(found) >= count:
            break
    return found[:count]


def kinds(**groups: Iterable) -> st.SearchStrategy:
    """One Value of one of the kinds, each kind equally often."""
    return st.one_of(*(_of_kind(kind.replace("_", " "), values) for kind, values in groups.items()))


def _of_kind(kind: str, values) -> st.SearchStrategy:
    strategy = values if isinstance(values, st.SearchStrategy) else st.sampled_from(list(values))
    return strategy.map(lambda value: Value(kind, value))


WRONG_TYPES = [None, True, [], {}, [1], ["a", "b", "c"], {"a": 1}, {"__value__": ["a", "b"]}, {"__value__": None}]


def numbers(kind: str, options: dict, default_most: float) -> st.SearchStrategy:
    """Values of a number input: inside its range, at its ends, outside, no numbers at all."""
    least, most = options.get("min", -(2**63)), options.get("max", 2**63)
    step = options.get("step") or 1
    ordinary = min(most, max(least, default_most))
    inside = st.integers(int(math.ceil(least)), int(ordinary)) if kind == "INT" else st.floats(least, ordinary)
    return kinds(
        ordinary=inside,
        at_the_end=[least, most, options.get("default", least)],
        just_outside=[least - step, most + step, -step, 0],
        far_outside=[10**9, -(10**9), 2**31, 2**63 - 1, -(2**63) + 1, 1e30, -1e30],
        huge=[2**64, -(2**64), 10**400, -(10**400), 1e308],
        not_finite=[math.nan, math.inf, -math.inf, "nan", "inf", "1e999"],
        odd_number=[0.5, -0.0, 5e-324, 1.0000001, "1", " 2 ", "1_0", "", "abc", "0x10", "١"],
        wrong_type=WRONG_TYPES,
    )


def texts(extra: Iterable[str] = ()) -> st.SearchStrategy:
    """Values of a text input."""
    control = ["\x00", "a\x00b", "\x1b[31mred", "\u202eabc", "\x7f", "a\nb", "a\r\nb", "\t", "\u2028", "\ufeff"]
    return kinds(
        ordinary=["a portrait of a person", TARGET, SOURCE, "smile, glasses", f"{MARK} one", f"{MARK}/deep/er"],
        empty=["", " ", "\n", "\u00a0", "\u200b"],
        special=[*extra, "(a:1e999)", "(a:nan)", "(" * 1000, "embedding:../x", "a:b", "{a|b}", "%s{0}", "é漢🙂"],
        random=st.text(st.characters(codec="utf-8"), max_size=60),
        long=[c * n for c in ("a", "ab ", "漢") for n in (240, 255, 256, 5000)] + ["a/" * 500, ".." * 300],
        very_long=["a" * LONG, "a b " * (LONG // 4), "\n" * LONG],
        surrogate=["\ud800", "a\udfffb", "person \udc80", "\ud83d"],
        control=control,
        path=[
            f"../{MARK}",
            f"../../{MARK}",
            f"../custom_nodes/{MARK}",
            f"/tmp/{MARK}",
            f"/{MARK}",
            f"~/{MARK}",
            f"{STORED}.safetensors/{MARK}",
            f"{STORED}.safetensors",
            f"{MARK}/../../{MARK}",
            f"./{MARK}",
            f"{MARK}//x",
            f"{MARK}/",
            f"C:\\{MARK}",
            f"..\\{MARK}",
            f"\\\\{MARK}\\x",
            f"{MARK}\x00.safetensors",
            f"{MARK}:x",
            f"{MARK}. ",
            ".",
            "..",
            "/",
            "CON",
            "/dev/null",
            "/proc/self/mem",
        ],
        wrong_type=[5, -1, 1.5, math.nan, 10**400, *WRONG_TYPES],
    )


def choices(options: list) -> st.SearchStrategy:
    """Values of a list of choices: each of them, and what is none."""
    return kinds(
        ordinary=options or [f"{STORED}.safetensors"],
        unknown=["", "abc", "HSDS ", "euler", f"../{MARK}", "\x00", "a" * 300, "a" * LONG],
        surrogate=["\ud800", "LOCO\udc80"],
        wrong_type=[0, -1, 1.5, math.nan, 10**400, *WRONG_TYPES],
    )


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
    "CONDITIONING": ODD_WORDS,
    "MODEL": ODD_MODELS,
    "CLIP": {"an earlier layer": ("CLIPSetLastLayer", {"clip": "@demo 1", "stop_at_clip_layer": -24})},
    "VAE": {"demo": "@demo 2"},
    "NOISE": {
        "random": ("RandomNoise", {"noise_seed": 2**64 - 1}),
        "none": ("DisableNoise", {}),
        "another": "@slider 2",
    },
    "LATENT_INVERSION": {
        "of a batch": ("invert", {"latent": "batch of two"}),
        "of another size": ("invert", {"latent": "odd size"}),
        "at another level": ("invert", {"level": 0.9}),
        "of fresh noise": ("invert", {"method": "fresh noise", "seeds": 2}),
        "of another model": ("invert", {"model": "discrete"}),
    },
    "LATENT_DIRECTIONS": {
        "of LOCO": ("find", {"method": "LOCO", "count": 2, "hold_outside": 0}),
        "of HSDS": ("find", {"method": "HSDS"}),
        "of a file": (f"{PREFIX}LoadDirection", {"file": f"{STORED}.safetensors"}),
    },
}
NODES = {
    "portrait": "DemoPortrait",
    "invert": "InvertImage",
    "find": "FindDirections",
    "slider": "DirectionSlider",
    "preview": "PreviewDirections",
    "report": "EditReport",
    "save": "SaveDirection",
    "load": "LoadDirection",
}
MOUTH = ["portrait", 1]
PREVIEW = {"inversion": ["invert", 4], "directions": ["find", 0], "vae": ["demo", 2]}


def base() -> dict:
    """The prompt that all cases start from: few steps, words alone, every node of the pack."""
    invert = {"model": ["demo", 0], "positive": ["positive", 0], "latent": ["encoded", 0], "level": 0.5, "steps": 3}
    invert |= {"scheduler": "simple", "method": "backward euler", "seed": 0, "seeds": 1, "sigma": 0.0, "guidance": 1.0}
    find = {"model": ["demo", 0], "inversion": ["invert", 4], "clip": ["demo", 1], "method": "text", "source": SOURCE}
    find |= {"target": TARGET, "keep": "", "count": 1, "hold_outside": 1, "free": "", "guidance": 1.0, "seed": 0}
    find |= {"image_share": 0.35, "text_share": 0.35, "derivatives": "automatic"}
    slider = {"inversion": ["invert", 4], "directions": ["find", 0], "index": 0, "strength": 1.0, "weight": 1.0}
    sampling = {"noise": ["slider", 2], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["invert", 2]}
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
        "guider": ("BasicGuider", {"model": ["slider", 0], "conditioning": ["slider", 1]}),
        "euler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sampled": ("SamplerCustomAdvanced", sampling | {"latent_image": ["invert", 0]}),
        "decoded": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["demo", 2]}),
        "picture": ("PreviewImage", {"images": ["decoded", 0]}),
        "latent": ("SaveLatent", {"samples": ["sampled", 0], "filename_prefix": "soak"}),
        "report": (f"{PREFIX}EditReport", {"inversion": ["invert", 4], "latent": ["sampled", 0]}),
        "preview": (f"{PREFIX}PreviewDirections", PREVIEW | {"strength": 1.0, "columns": 3, "steps": 1}),
        "save": (f"{PREFIX}SaveDirection", {"directions": ["find", 0], "index": 0, "name": f"{MARK}"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


OUTPUTS = ("picture", "latent", "report")
OUTPUTS_OF = {"preview": ("preview",), "save": ("save",), "report": ("report",)}


def inputs_of(info: dict) -> list[tuple[str, str, str, dict]]:
    """(node, input, type, options) of every input of the pack's nodes; a list of choices has the type COMBO."""
    found = []
    for key, name in NODES.items():
        for input_name, kind, options in declared_inputs(info[PREFIX + name]):
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found.append((key, input_name, kind, options))
    return found


def values_for(name: str, kind: str, options: dict) -> st.SearchStrategy:
    """Values of one input by its type."""
    if kind in NUMBERS:
        return numbers(kind, options, COSTLY.get(name, 1000) / 4)
    if kind == "STRING":
        return texts(["a | b", "|", "a |", "a | b | c", "a | a", "x | y\n" * 3, "smile,,", "beard", "SMILE"])
    if kind == "COMBO":
        return choices(options.get("options", []))
    return kinds(wrong_type=[5, "abc", None, {}, math.nan, 10**400], missing=[...])


def cases(info: dict, count: int) -> list[Case]:
    """About `count` cases, the same number for every input, typed and linked; one after the other in turn."""
    everything = inputs_of(info)
    slots = []
    for node, name, kind, options in everything:
        typed = values_for(name, kind, options)
        linked = _odd(kind) if kind in ODD else typed.map(lambda v: Value(v.kind, v.value, linked=True))
        slots += [(node, name, typed), (node, name, linked)]
    strategies = [_case(node, name, values, everything) for node, name, values in slots]
    each, more = divmod(count, len(strategies))
    # hypothesis starts with the simplest examples, which are ordinary
    drawn = [draw(s, SIMPLEST + each + (i < more), i)[SIMPLEST:] for i, s in enumerate(strategies)]
    return [of[i] for i in range(each + 1) for of in drawn if i < len(of)]


def _odd(kind: str) -> st.SearchStrategy:
    return st.sampled_from(sorted(ODD[kind])).map(lambda name: Value("odd source", (kind, name), linked=True))


@st.composite
def _case(draw_one, node: str, name: str, values: st.SearchStrategy, everything: list) -> Case:
    changes = [(node, name, draw_one(values))]
    same = [(other, kind, options) for key, other, kind, options in everything if key == node and other != name]
    for _ in range(draw_one(st.sampled_from([0, 0, 0, 1, 1, 2])) if same else 0):
        other, kind, options = draw_one(st.sampled_from(same))
        if kind in (*NUMBERS, "STRING", "COMBO") and other not in {n for _, n, _ in changes}:
            value = draw_one(values_for(other, kind, options))
            changes.append((node, other, Value(value.kind, value.value, draw_one(st.booleans()))))
    if node == "find" and "method" not in {n for _, n, _ in changes} and draw_one(st.integers(0, 3)) == 0:
        method = draw_one(st.sampled_from(["HSDS", "LOCO", "T-LOCO"]))
        changes.append(("find", "method", Value("ordinary", method)))
    return Case(node, tuple(changes))


def prompt_of(case: Case, strength: float | None = None) -> dict:
    """The API prompt of a case, with no more than the nodes that its outputs need."""
    prompt = base()
    if case.target == "load":
        prompt["slider"]["inputs"]["directions"] = ["load", 0]
    if strength is not None:
        prompt["slider"]["inputs"]["strength"] = strength
    for node, name, value in case.changes:
        if value.kind == "missing":
            prompt[node]["inputs"].pop(name, None)
        elif value.kind == "odd source":
            prompt[node]["inputs"][name] = _source(prompt, *value.value)
        else:
            given_ = copy.deepcopy(value.value)
            prompt[node]["inputs"][name] = _link(prompt, given_) if value.linked else given_
    return needed(prompt, OUTPUTS_OF.get(case.target, OUTPUTS))


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


def _link(prompt: dict, value, node: str = "") -> list:
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


def _source(prompt: dict, kind: str, name: str) -> list:
    """A link to an odd source, which is added to the prompt."""
    source = ODD[kind][name]
    if isinstance(source, str):
        key, _, output = source.removeprefix("@").partition(" ")
        return [key, int(output or 0)]
    node, inputs = source
    given_ = {}
    for key, value in inputs.items():
        if isinstance(value, tuple):
            given_[key] = _link(prompt, value[1], value[0])
        elif isinstance(value, dict):
            ((mask, of_mask),) = value.items()
            given_[key] = _add(prompt, mask, of_mask)
        elif isinstance(value, str) and value.startswith("@"):
            given_[key] = MOUTH if value == "@mouth" else _source_of(value)
        elif key in ("latent", "model") and node == "invert":
            given_[key] = _source(prompt, key.upper(), value)
        else:
            given_[key] = value
    if node in prompt:  # another one of the pack's own
        copied = copy.deepcopy(prompt[node])
        return _add(prompt, copied["class_type"], copied["inputs"] | given_)[:1] + [4 if node == "invert" else 0]
    return _add(prompt, node, given_)


def _source_of(name: str) -> list:
    key, _, output = name.removeprefix("@").partition(" ")
    return [key, int(output or 0)]


def can_be_sent(prompt: dict) -> bool:
    """Whether Python can write the prompt as JSON: integers of more than 4,300 digits it cannot."""
    try:
        json.dumps(prompt)
    except ValueError:
        return False
    return True
