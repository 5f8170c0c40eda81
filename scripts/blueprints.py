"""The blueprints: subgraphs of one box."""

from __future__ import annotations

from scripts.template_groups import WORDS, custom_sampler, slider
from scripts.templates import Blueprint, Group, node

EDIT_BY_WORDS = Blueprint(
    "Edit Picture by Words",
    "Moves a picture from what the source words say towards what the target words say, by a strength from -3 to 3; at 0 "
    "it stays as it is. What else the words would change is looked for and held still.",
    ("slider", "concept slider", "smile", "age", "edit picture", "image to image"),
    (
        Group(
            "Encode",
            "**1. Encode**\n\n*Encode Picture* goes back to a noise level from which sampling gives exactly this picture again. "
            "The source words are its prompt. A higher *level* lets the slider change larger things.",
            {
                "prompt": node(
                    "CLIPTextEncode",
                    title="Prompt: the picture as it is",
                    clip="@inputs.clip",
                    text="@inputs.source",
                ),
                "latent": node("VAEEncode", pixels="@inputs.picture", vae="@inputs.vae"),
                "encode": node(
                    "InvertImage",
                    model="@inputs.model",
                    positive="@prompt.CONDITIONING",
                    latent="@latent.LATENT",
                ),
            },
        ),
        Group(
            "Find",
            f"**2. Find**\n\n{WORDS}",
            {
                "find": node(
                    "FindDirections",
                    model="@inputs.model",
                    inversion="@encode.inversion",
                    clip="@inputs.clip",
                    source="@inputs.source",
                    target="@inputs.target",
                )
            },
            390,
        ),
        Group(
            "Move",
            "**3. Move**\n\nThe slider, and an ordinary sampler. Use one that adds no noise, such as *euler*.",
            {
                "slider": slider("@inputs.strength"),
                "apply": node("ApplySliders", inversion="@slider.inversion"),
                "negative": node("CLIPTextEncode", title="Negative prompt", clip="@inputs.clip", text=""),
                "guider": node(
                    "CFGGuider",
                    model="@apply.model",
                    positive="@apply.conditioning",
                    negative="@negative.CONDITIONING",
                    cfg="@inputs.cfg",
                ),
                "sampler": node("KSamplerSelect", sampler_name="euler"),
                "sampled": custom_sampler("@encode.sigmas"),
                "decoded": node("VAEDecode", samples="@sampled.output", vae="@inputs.vae"),
            },
            340,
        ),
    ),
    {
        "picture": None,
        "model": None,
        "clip": None,
        "vae": None,
        "source": "",
        "target": "",
        "strength": 1.0,
        "cfg": 1.0,
    },
    {"picture": "@decoded.IMAGE"},
    {"source": "source words", "target": "target words"},
)
BOXES = (EDIT_BY_WORDS,)
