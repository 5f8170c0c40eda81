"""The templates of the demo model."""

from __future__ import annotations

import json
from dataclasses import replace

from scripts.template_groups import (
    BROWS,
    BYPASSED,
    PERSON,
    SMILE,
    STRENGTH,
    WORD_INPUTS,
    WORDS,
    encode,
    encode_group,
    find,
    identify,
    manipulate,
    result,
    sampling,
    slider,
    start,
)
from scripts.templates import Group, Template, node

FIRST = Template(
    "First slider",
    (start(), encode_group(), identify(WORDS, {"find": find(**SMILE)}), manipulate(), result()),
    (("portrait", "seed"), *WORD_INPUTS, STRENGTH),
    ("save",),
)
APP = replace(FIRST, name="Slider as an app", opens_as_app=True)
BOARD_ROWS = {
    "version": 1,
    "sliders": [
        {"words": "smiling", "strength": 1.5, "keep": "", "on": True},
        {"words": "without glasses | with glasses", "strength": 1.2, "keep": "", "on": True},
        {"words": "brown hair | grey hair", "strength": 1, "keep": "", "on": False},
    ],
}
BOARD = Template(
    "Slider board",
    (
        start(
            "This model knows only drawn portraits. For a photo take your own model's loader, connect *Load Image* to "
            "*VAE Encode* and *Compare Images*, and set *find_keeps* (*Show advanced*) to *people*."
        ),
        encode_group("The prompt says what the picture shows, in few words.", text=PERSON),
        Group(
            "Find and move",
            "**3. Find and move**\n\nType at *What to change* and press Enter for one more slider; move them, turn them "
            "off and on, and run again. *source* is what the picture shows without what the sliders change. Each slider is "
            "found once.",
            {
                "board": node(
                    "SliderBoard",
                    model="@model.MODEL",
                    inversion="@encode.inversion",
                    clip="@model.CLIP",
                    source=PERSON,
                    board=json.dumps(BOARD_ROWS),
                    find_keeps="demo portraits",
                ),
            },
            450,
        ),
        Group(
            "Sample",
            "**4. Sample**\n\n*Apply Sliders* gives all sliders to the sampler. With every slider off, or at strength 0, the "
            "picture comes back as it is.",
            sampling("board"),
            340,
        ),
        result(),
    ),
    (("portrait", "seed"),),
    ("save",),
)
KEEP = Template(
    "Keep and mask",
    (
        start(
            "The portrait also gives masks of its mouth, eyes, hair and face. For other pictures draw a mask, or load one."
        ),
        encode_group(),
        identify(
            "*mask*: only the mouth may change. *keep*: pairs *with | without*, one a line, of what must stay. Empty *keep* "
            "or disconnect *mask* to see what they do.",
            {
                "find": find(
                    **SMILE, keep="a portrait of a person, angry | a portrait of a person, calm", mask="@portrait.mouth"
                )
            },
        ),
        manipulate(),
        result(),
    ),
    (("portrait", "seed"), *WORD_INPUTS, ("find", "keep"), STRENGTH),
    ("save",),
)
EXPLORE = Template(
    "Explore without words",
    (
        start(),
        encode_group("The prompt names little: what it names is fixed, what it leaves out is free to be found."),
        identify(
            "The method *explore* asks the model what can change in this picture, without words. *Preview Directions* shows "
            "each direction: press the picture that you like, and the slider takes its direction.",
            {
                "find": find(method="explore", count=6, mask="@portrait.face"),
                "preview": node(
                    "PreviewDirections",
                    inversion="@encode.inversion",
                    directions="@find.directions",
                    vae="@model.VAE",
                    columns=3,
                ),
            },
        ),
        Group(
            "Plot",
            "**Look closer**\n\n*Plot Directions* shows which directions change the same, so that one of them is enough. Other choices of "
            "*plot* show how strong they are, how far they change the picture, and how local that is. Needs `pip install matplotlib` in "
            "ComfyUI's Python; without it, remove this group.",
            {
                "plot": node(
                    "PlotDirections",
                    inversion="@encode.inversion",
                    directions="@find.directions",
                    plot="what else moves",
                    vae="@model.VAE",
                )
            },
            540,
        ),
        manipulate("*index* chooses one of the directions that were found, the first is 0. Then move *strength*."),
        result(),
    ),
    (("portrait", "seed"), ("slider", "index"), STRENGTH),
    ("save", "preview"),
)
SAVE = Template(
    "Save and use again",
    (
        start("Choose another *seed* for another portrait on which the saved slider is used."),
        encode_group(),
        identify(
            "*Save Direction* writes the direction to `models/latent_directions`.",
            {
                "find": find(**SMILE),
                "keep_it": node("SaveDirection", directions="@find.directions", name="smile"),
                "load": node("LoadDirection", file="", mode=BYPASSED),
            },
        ),
        manipulate(
            "After the first run: (1) Switch on *Load Direction* and *Slider of a saved direction* (Ctrl+B). (2) Press "
            "*Refresh files* and choose the file. (3) Switch off the first slider, *Find Directions* and *Save Direction* "
            "(Ctrl+B). (4) Run.",
            {
                "slider": slider(directions="@keep_it.directions"),
                "again": slider(
                    title="Slider of a saved direction",
                    inversion="slider",
                    directions="@load.directions",
                    mode=BYPASSED,
                ),
            },
        ),
        result(),
    ),
    (*WORD_INPUTS, ("keep_it", "name"), STRENGTH),
    ("save",),
)
TRANSFER = Template(
    "Transfer and strip",
    (
        start(
            "The direction is found on the first portrait and used on the second.",
            second=node("DemoPortrait", title="Second portrait", seed=12),
        ),
        encode_group("Both portraits are encoded."),
        Group(
            "Encode the second",
            "**Second picture**\n\nThe same nodes once more.",
            encode(portrait="second", name="other"),
        ),
        identify(
            "*T-LOCO* finds a move of the latent from words. *Transfer Direction* fits it to the second portrait and says how "
            "well it carries over.",
            {
                "find": find(**SMILE, method="T-LOCO"),
                "transfer": node(
                    "TransferDirection",
                    model="@model.MODEL",
                    inversion="@other.inversion",
                    directions="@find.directions",
                ),
            },
        ),
        Group(
            "Move",
            "**4. Move**\n\nMove *strength* and run again: 0 is the second portrait itself, -1 the other way.",
            {"slider": slider(inversion="other", directions="@transfer.directions"), **sampling(encoded="other")},
            340,
        ),
        result(before="@second.image"),
        Group(
            "Strip",
            "**6. Strip**\n\n*Slider Strip* makes pictures from *start* to *end*. Drag the slider under its picture: *strength* of "
            "Direction Slider moves along. *Run* samples the picture that you like.",
            {
                "strip": node(
                    "SliderStrip",
                    inversion="@other.inversion",
                    directions="@transfer.directions",
                    start=-2.0,
                    end=2.0,
                    vae="@model.VAE",
                ),
                "strip_decoded": node("VAEDecode", samples="@strip.latent", vae="@model.VAE"),
                "strip_save": node(
                    "SaveImage",
                    title="Save the strip",
                    images="@strip_decoded.IMAGE",
                    filename_prefix="latent_directions_strip",
                ),
            },
            340,
        ),
    ),
    (*WORD_INPUTS, STRENGTH),
    ("save", "strip_save"),
)
ANIMATION = Template(
    "Animation",
    (
        start(),
        encode_group(),
        identify(WORDS, {"find": find(**SMILE)}),
        Group(
            "Move",
            "**4. Move**\n\n*Slider Strip* samples a few pictures, the keyframes, and mixes the frames between them.",
            {
                "slider": slider(title="Direction Slider for a single picture"),
                **sampling(),
                "strip": node(
                    "SliderStrip",
                    inversion="@encode.inversion",
                    directions="@find.directions",
                    start=-1.5,
                    end=1.5,
                    keyframes=7,
                    frames=25,
                    vae="@model.VAE",
                ),
            },
            340,
        ),
        result(
            frames=node("VAEDecode", title="VAE Decode of the frames", samples="@strip.latent", vae="@model.VAE"),
            larger=node(
                "ImageScale", image="@frames.IMAGE", upscale_method="lanczos", width=256, height=256, crop="disabled"
            ),
            video=node("CreateVideo", images="@larger.IMAGE", fps=12.0),
            save_video=node("SaveVideo", video="@video.VIDEO", filename_prefix="video/latent_directions"),
        ),
    ),
    (*WORD_INPUTS, ("strip", "start"), ("strip", "end"), ("video", "fps")),
    ("save_video",),
)
QUICK = Template(
    "Quick slider",
    (
        start(),
        encode_group(),
        identify(
            "*Prepare Quick Slider* samples the slider at -1 and 1, once for a picture and a direction.",
            {
                "find": find(**SMILE),
                "prepare": node("PrepareQuickSlider", inversion="@encode.inversion", directions="@find.directions"),
            },
        ),
        manipulate(
            "Give both sliders the same *strength*. *Quick Slider* gives a preview at once, without the model; *Direction Slider* samples the picture."
        ),
        result(
            "*Compare Images* shows the preview and the sampled picture. If it stays empty, switch on *Nodes 2.0* in "
            "ComfyUI's menu.",
            before="@quick_decoded.IMAGE",
            quick=node("QuickSlider", inversion="@encode.inversion", directions="@prepare.directions", strength=1.5),
            quick_decoded=node(
                "VAEDecode", title="VAE Decode of the preview", samples="@quick.latent", vae="@model.VAE"
            ),
            quick_preview=node("PreviewImage", title="Preview", images="@quick_decoded.IMAGE"),
        ),
    ),
    (("portrait", "seed"), *WORD_INPUTS, ("quick", "strength"), STRENGTH),
    ("quick_preview", "save"),
)
COMBINE = Template(
    "Combine directions",
    (
        start(),
        encode_group(),
        identify(
            "Two directions that move the latent, found by *T-LOCO*. *Combine Directions* adds the second to the first, or takes "
            "out of the first what changes the same as the second.",
            {
                "find": find(**SMILE, method="T-LOCO"),
                "second": find(**BROWS, method="T-LOCO"),
                "combine": node(
                    "CombineDirections",
                    directions="@find.directions",
                    others="@second.directions",
                    how="add",
                    model="@model.MODEL",
                    inversion="@encode.inversion",
                ),
            },
        ),
        manipulate(sliders={"slider": slider(directions="@combine.directions")}),
        result(),
    ),
    (*WORD_INPUTS, ("second", "source"), ("second", "target"), ("combine", "how"), ("combine", "amount"), STRENGTH),
    ("save",),
)
COMMON = Template(
    "Common directions",
    (
        start(
            "Several portraits, from which common directions are found, and the one to be edited.",
            one=node("DemoPortrait", title="Portrait 1", seed=1),
            two=node("DemoPortrait", title="Portrait 2", seed=2),
            three=node("DemoPortrait", title="Portrait 3", seed=3),
        ),
        Group(
            "Encode",
            "**2. Encode**\n\nThe portrait to be edited.",
            encode(),
        ),
        Group(
            "Encode several",
            "**Several pictures**\n\nThey go through *Encode Picture* as a batch and should show the same kind of thing in the same place.",
            {
                "pair": node("ImageBatch", image1="@one.image", image2="@two.image"),
                "batch": node("ImageBatch", image1="@pair.IMAGE", image2="@three.image"),
                "several_prompt": node(
                    "CLIPTextEncode", title="Prompt: what they all show", clip="@model.CLIP", text=PERSON
                ),
                "several_latent": node("VAEEncode", pixels="@batch.IMAGE", vae="@model.VAE"),
                "several": node(
                    "InvertImage",
                    model="@model.MODEL",
                    positive="@several_prompt.CONDITIONING",
                    latent="@several_latent.LATENT",
                ),
            },
        ),
        identify(
            "*Find Common Directions* says what the pictures have in common inside the network; *Transfer Direction* makes "
            "moves of the portrait's latent of it.",
            {
                "common": node(
                    "FindCommonDirections",
                    model="@model.MODEL",
                    inversion="@several.inversion",
                    how="principal components",
                    count=2,
                ),
                "transfer": node(
                    "TransferDirection",
                    model="@model.MODEL",
                    inversion="@encode.inversion",
                    directions="@common.directions",
                ),
            },
        ),
        manipulate(
            "*index* chooses one of the directions, the first is 0. Then move *strength*.",
            {"slider": slider(2.0, directions="@transfer.directions")},
        ),
        result(),
    ),
    (("common", "how"), ("slider", "index"), STRENGTH),
    ("save",),
)
MEASURE = Template(
    "Measure an edit",
    (
        start(),
        encode_group(),
        identify(
            WORDS,
            {
                "find": find(**SMILE),
                "target_prompt": node(
                    "CLIPTextEncode", title="Prompt: what is measured", clip="@model.CLIP", text=f"{PERSON}, smiling"
                ),
                "both_ways": node(
                    "MeasureDisentanglement",
                    model="@model.MODEL",
                    vae="@model.VAE",
                    image="@portrait.image",
                    positive="@prompt.CONDITIONING",
                    target="@target_prompt.CONDITIONING",
                ),
                "both_ways_plot": node("PreviewImage", title="What editing loses", images="@both_ways.plot"),
            },
        ),
        manipulate(),
        result(),
        Group(
            "Measure",
            "**6. Measure**\n\n*Edit Report*: what changed in the latent. *Measure Demo Portrait*: in the drawing. *Measure "
            "Disentanglement*: what an edit and its way back lose. The last two need `pip install matplotlib` in ComfyUI's "
            "Python; without it, remove them.",
            {
                "edit_report": node("EditReport", inversion="@encode.inversion", latent="@sampled.output"),
                "attributes": node("MeasureDemo", image="@portrait.image", edited="@decoded.IMAGE"),
                "attributes_plot": node("PreviewImage", title="What changed", images="@attributes.plot"),
                "report": node("PreviewAny", title="Report", source="@attributes.report"),
            },
            360,
        ),
    ),
    (("portrait", "seed"), *WORD_INPUTS, STRENGTH),
    ("save", "attributes_plot"),
)
FOLDER = Template(
    "Diffusers folder",
    (
        Group(
            "Picture and model",
            "**1. Picture and model**\n\n*Load Diffusers Model* loads a folder in the layout of diffusers, here the small DDPM that "
            "comes with the pack. It needs `pip install diffusers` in ComfyUI's Python.",
            {
                "model": node(
                    "LoadDiffusersModel", folder="demo DDPM, portraits of 32 x 32 pixels (comes with Latent Directions)"
                ),
                "portrait": node("DemoPortrait", seed=7, size=32),
            },
            320,
        ),
        Group(
            "Encode",
            "**2. Encode**\n\nThis model takes no words: its prompt is the output *empty* of the loader.",
            {
                "latent": node("VAEEncode", pixels="@portrait.image", vae="@model.VAE"),
                "encode": node("InvertImage", model="@model.MODEL", positive="@model.empty", latent="@latent.LATENT"),
            },
        ),
        identify(
            "*LOCO* finds, without words, the moves that change what lies under the mask most and the rest least.",
            {
                "find": node(
                    "FindDirections",
                    model="@model.MODEL",
                    inversion="@encode.inversion",
                    method="LOCO",
                    count=2,
                    mask="@portrait.mouth",
                )
            },
        ),
        manipulate(
            "*index* chooses one of the directions, the first is 0. Then move *strength*.", {"slider": slider(2.0)}
        ),
        result(),
    ),
    (("portrait", "seed"), ("slider", "index"), STRENGTH),
    ("save",),
)


DEMO = (FIRST, APP, BOARD, KEEP, EXPLORE, SAVE, TRANSFER, ANIMATION, QUICK, COMBINE, COMMON, MEASURE, FOLDER)
