"""What the templates hold; `scripts/templates.py` makes workflows of it."""

from __future__ import annotations

import json
from dataclasses import replace

from scripts.templates import Blueprint, Group, Node, Template, node

BYPASSED = 4
HUGGING_FACE = "https://huggingface.co"
PERSON = "a portrait of a person"
SMILE = {"source": f"{PERSON}, neutral", "target": f"{PERSON}, smiling", "find_keeps": "demo portraits"}
BROWS = {"source": f"{PERSON}, calm", "target": f"{PERSON}, angry", "find_keeps": "demo portraits"}


# The groups of the demo templates.


def start(note: str = "", *, seed: int = 7, size: int = 64, **more: Node) -> Group:
    """Describe the demo model and a portrait."""
    note = note or "A drawn portrait and the small model that was trained on such portraits. Both come with the pack."
    portrait = node("DemoPortrait", seed=seed, size=size)
    return Group(
        "Picture and model",
        f"**1. Picture and model**\n\n{note}",
        {"model": node("LoadDemoModel"), "portrait": portrait, **more},
        290,
    )


def encode(portrait: str = "portrait", name: str = "encode", text: str = "") -> dict[str, Node]:
    """Describe the prompt, the latent and Encode Picture for a portrait; names of further ones begin with `name`.

    The prompt is the caption of the portrait, or a text.
    """
    first = name == "encode"
    prompt, latent = ("prompt", "latent") if first else (f"{name}_prompt", f"{name}_latent")
    return {
        prompt: node(
            "CLIPTextEncode",
            title="Prompt: the picture as it is",
            clip="@model.CLIP",
            text=text or f"@{portrait}.caption",
        ),
        latent: node("VAEEncode", pixels=f"@{portrait}.image", vae="@model.VAE"),
        name: node("InvertImage", model="@model.MODEL", positive=f"@{prompt}.CONDITIONING", latent=f"@{latent}.LATENT"),
    }


def encode_group(note: str = "", number: int = 2, text: str = "") -> Group:
    """Describe the group in which the portrait is encoded."""
    note = note or "*Encode Picture* goes back to a noise level from which sampling gives exactly this picture again."
    return Group("Encode", f"**{number}. Encode**\n\n{note}", encode(text=text))


def find(**inputs) -> Node:
    """Describe a Find Directions on the encoded portrait."""
    given = {"model": "@model.MODEL", "inversion": "@encode.inversion", "clip": "@model.CLIP"}
    return node("FindDirections", **{**given, **inputs})


def sampling(end: str = "slider", encoded: str = "encode") -> dict[str, Node]:
    """Describe what runs the ordinary sampler at the end of a chain of sliders."""
    return {
        "apply": node("ApplySliders", inversion=f"@{end}.inversion"),
        "guider": node("BasicGuider", model="@apply.model", conditioning="@apply.conditioning"),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sampled": node(
            "SamplerCustomAdvanced",
            noise="@apply.noise",
            guider="@guider.GUIDER",
            sampler="@sampler.SAMPLER",
            sigmas=f"@{encoded}.sigmas",
            latent_image=f"@{encoded}.latent",
        ),
    }


def slider(
    strength: float | str = 1.5, *, directions: str = "@find.directions", inversion: str = "encode", **inputs
) -> Node:
    """Describe a Direction Slider."""
    return node(
        "DirectionSlider", inversion=f"@{inversion}.inversion", directions=directions, strength=strength, **inputs
    )


def result(
    note: str = "",
    number: int = 5,
    *,
    before: str = "@portrait.image",
    vae: str = "@model.VAE",
    latent: str = "@sampled.output",
    **more,
) -> Group:
    """Describe the group with the edited picture."""
    note = (
        note
        or "The edited picture. *Compare Images* shows it before and after: move the pointer over it. If it stays empty, "
        "switch on *Nodes 2.0* in ComfyUI's menu."
    )
    nodes = {
        "decoded": node("VAEDecode", samples=latent, vae=vae),
        "save": node("SaveImage", images="@decoded.IMAGE", filename_prefix="latent_directions"),
        "compare": node("ImageCompare", image_a=before, image_b="@decoded.IMAGE"),
    }
    return Group("Result", f"**{number}. Result**\n\n{note}", {**nodes, **more}, 330)


MOVE = (
    "**4. Move**\n\nMove *strength* and run again: 0 is the picture itself, 1 what the target says, -1 the other way. "
    "Bypass the slider to get the picture without it."
)


def manipulate(note: str = "", sliders: dict[str, Node] | None = None) -> Group:
    """Describe the group with the sliders and the sampler."""
    sliders = sliders or {"slider": slider()}
    text = f"**4. Move**\n\n{note}" if note else MOVE
    return Group("Move", text, {**sliders, **sampling(list(sliders)[-1])}, 340)


def identify(note: str, nodes: dict[str, Node]) -> Group:
    """Describe the group that finds directions."""
    return Group("Find", f"**3. Find**\n\n{note}", nodes, 390)


WORDS = (
    "*Find Directions* takes words for what the picture shows now and for what strength 1 should show. What else these "
    "words would change is looked for and held still. It runs once: moving the slider does not run it again."
)
WORD_INPUTS = (("find", "source"), ("find", "target"))
STRENGTH = ("slider", "strength")

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

# The templates of full-size models.

SWAP = "To edit a picture of your own, add *Load Image* and connect it to the scaling node in place of *Demo Portrait*."
DRAWING = "a simple drawing of a person's face"


def picture(megapixels: float, models: dict[str, Node], note: str) -> Group:
    """Describe loaders, the portrait and its size."""
    scale = node(
        "ImageScaleToTotalPixels",
        image="@portrait.image",
        upscale_method="lanczos",
        megapixels=megapixels,
        resolution_steps=16,
    )
    nodes = {**models, "portrait": node("DemoPortrait", seed=7, size=512), "scaled": scale}
    return Group("Picture and model", f"**1. Picture and model**\n\n{note} {SWAP}", nodes, 350)


def checkpoint(file: str, address: str) -> dict[str, Node]:
    """Describe a checkpoint's loader."""
    return {"model": node("CheckpointLoaderSimple", ckpt_name=file, models=((file, address, "checkpoints"),))}


def loaders(model: tuple[str, str], clip: tuple[str, str], clip_type: str, vae: tuple[str, str]) -> dict[str, Node]:
    """Describe the loaders of a model whose parts are three files, each (file name, address of its folder)."""

    def link(part: tuple[str, str], folder: str) -> tuple:
        return ((part[0], f"{HUGGING_FACE}/{part[1]}/{part[0]}", folder),)

    return {
        "model": node("UNETLoader", unet_name=model[0], weight_dtype="default", models=link(model, "diffusion_models")),
        "clip": node(
            "CLIPLoader", clip_name=clip[0], type=clip_type, device="default", models=link(clip, "text_encoders")
        ),
        "vae": node("VAELoader", vae_name=vae[0], models=link(vae, "vae")),
    }


def real(
    name: str,
    note: str,
    models: dict[str, Node],
    *,
    megapixels: float = 1.0,
    parts: tuple[str, str, str] = ("@model.MODEL", "@model.CLIP", "@model.VAE"),
    sampler: dict | None = None,
    before_encode: dict[str, Node] | None = None,
    positive: str = "@prompt.CONDITIONING",
    find_inputs: dict | None = None,
    encode_note: str = "",
    find_note: str = "",
    sampled: dict[str, Node] | None = None,
    prompt: Node | None = None,
    find_nodes: dict[str, Node] | None = None,
    more: tuple[Group, ...] = (),
) -> Template:
    """Describe a template of a full-size model."""
    model, clip, vae = parts
    words = {
        "source": f"{DRAWING}, with a neutral expression",
        "target": f"{DRAWING}, with a broad smile",
        "find_keeps": "people",
    }
    prompt = prompt or node("CLIPTextEncode", title="Prompt: the picture as it is", clip=clip, text=DRAWING)
    encoding = {
        "prompt": prompt,
        **(before_encode or {}),
        "latent": node("VAEEncode", pixels="@scaled.IMAGE", vae=vae),
        "encode": node("InvertImage", model=model, positive=positive, latent="@latent.LATENT"),
    }
    finding = node(
        "FindDirections", model=model, inversion="@encode.inversion", clip=clip, **{**words, **(find_inputs or {})}
    )
    if sampled is None:
        sampled = {
            "negative": node("CLIPTextEncode", title="Negative prompt", clip=clip, text=""),
            "sampled": node(
                "KSampler",
                model="@apply.model",
                positive="@apply.conditioning",
                negative="@negative.CONDITIONING",
                latent_image="@encode.latent",
                denoise=1.0,
                **(sampler or {}),
            ),
        }
    apply = node("ApplySliders", inversion="@slider.inversion")
    latent = "@sampled.output" if sampled["sampled"].kind == "SamplerCustomAdvanced" else "@sampled.LATENT"
    return Template(
        name,
        (
            picture(megapixels, models, note),
            Group(
                "Encode",
                f"**2. Encode**\n\n{encode_note or 'Describe the picture as it is, in few words.'} A higher *level* lets the "
                "slider change larger things.",
                encoding,
            ),
            identify(
                find_note
                or "What the picture shows now, and what strength 1 should show. What else the words would change is looked for and held still. Add "
                "pairs *with | without* for what must stay, and a mask to change one place only.",
                {**(find_nodes or {}), "find": finding},
            ),
            Group(
                "Move",
                "**4. Move**\n\nMove *strength*: 0 is the picture itself. Leave *denoise* at 1 where there is one: steps above "
                "the encoded noise level are skipped. Use a sampler that adds no noise, such as *euler*: ancestral and SDE "
                "samplers are refused.",
                {"slider": slider(1.5), "apply": apply, **sampled},
                340,
            ),
            result(before="@scaled.IMAGE", vae=vae, latent=latent),
            *more,
        ),
    )


def k_sampler(steps: int, cfg: float, sampler_name: str = "euler", scheduler: str = "simple") -> dict:
    """Describe the settings of a KSampler."""
    return {"seed": 0, "steps": steps, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler}


SPLIT = ("@model.MODEL", "@clip.CLIP", "@vae.VAE")
SHIFTED = ("@shifted.MODEL", "@clip.CLIP", "@vae.VAE")
COMFY = "Comfy-Org"
QWEN_CLIP = (
    "qwen_2.5_vl_7b_fp8_scaled.safetensors",
    f"{COMFY}/Qwen-Image_ComfyUI/resolve/main/split_files/text_encoders",
)
QWEN_VAE = ("qwen_image_vae.safetensors", f"{COMFY}/Qwen-Image_ComfyUI/resolve/main/split_files/vae")
FLUX2 = f"{COMFY}/flux2-dev/resolve/main/split_files"
FLUX_TEXT = f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main"

SD15 = real(
    "SD1.5",
    "Stable Diffusion 1.5 at a quarter of a megapixel.",
    checkpoint(
        "v1-5-pruned-emaonly-fp16.safetensors",
        f"{HUGGING_FACE}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    ),
    megapixels=0.25,
    sampler=k_sampler(20, 5.0, scheduler="normal"),
)
SDXL_FILE = checkpoint(
    "sd_xl_base_1.0.safetensors",
    f"{HUGGING_FACE}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
)
SDXL_SAMPLER = k_sampler(25, 5.0, scheduler="normal")
SDXL = real("SDXL", "SDXL at one megapixel.", SDXL_FILE, sampler=SDXL_SAMPLER)
SDXL_MEASURED = real(
    "Measure along words",
    "SDXL at one megapixel, whose CLIP belongs to the CLIP vision model in the last group.",
    SDXL_FILE,
    sampler=SDXL_SAMPLER,
    more=(
        Group(
            "Measure",
            "**6. Measure**\n\n*Measure Along Words* says how much more the edited picture shows the words before | than those "
            "after it, judged by CLIP. The first pair was to change, the others to stay. "
            "Needs `pip install matplotlib` in ComfyUI's Python; without it, remove this group.",
            {
                "vision": node(
                    "CLIPVisionLoader",
                    clip_name="clip_vision_g.safetensors",
                    models=(
                        (
                            "clip_vision_g.safetensors",
                            f"{HUGGING_FACE}/comfyanonymous/clip_vision_g/resolve/main/clip_vision_g.safetensors",
                            "clip_vision",
                        ),
                    ),
                ),
                "measure": node(
                    "MeasureWords",
                    image="@scaled.IMAGE",
                    edited="@decoded.IMAGE",
                    clip_vision="@vision.CLIP_VISION",
                    clip="@model.CLIP",
                    pairs=f"{DRAWING}, with a broad smile | {DRAWING}, with a neutral expression\n"
                    f"{DRAWING}, with a hat | {DRAWING}, without a hat\n"
                    f"{DRAWING}, with long hair | {DRAWING}, with short hair",
                ),
                "plot": node("PreviewImage", title="What changed along the words", images="@measure.plot"),
            },
            360,
        ),
    ),
)
SD35 = real(
    "SD3.5",
    "Stable Diffusion 3.5 Large with its text encoders in one file.",
    checkpoint(
        "sd3.5_large_fp8_scaled.safetensors",
        f"{HUGGING_FACE}/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/sd3.5_large_fp8_scaled.safetensors",
    ),
    sampler=k_sampler(20, 4.0, scheduler="sgm_uniform"),
)
FLUX1 = real(
    "Flux.1 dev",
    "Flux.1 dev and its three other files.",
    {
        "model": node(
            "UNETLoader",
            unet_name="flux1-dev.safetensors",
            weight_dtype="default",
            models=(
                (
                    "flux1-dev.safetensors",
                    f"{HUGGING_FACE}/Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors",
                    "diffusion_models",
                ),
            ),
        ),
        "clip": node(
            "DualCLIPLoader",
            clip_name1="clip_l.safetensors",
            clip_name2="t5xxl_fp16.safetensors",
            type="flux",
            device="default",
            models=(
                ("clip_l.safetensors", f"{FLUX_TEXT}/clip_l.safetensors", "text_encoders"),
                ("t5xxl_fp16.safetensors", f"{FLUX_TEXT}/t5xxl_fp16.safetensors", "text_encoders"),
            ),
        ),
        "vae": node(
            "VAELoader",
            vae_name="ae.safetensors",
            models=(
                (
                    "ae.safetensors",
                    f"{HUGGING_FACE}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
                    "vae",
                ),
            ),
        ),
    },
    parts=SPLIT,
    before_encode={"guided": node("FluxGuidance", conditioning="@prompt.CONDITIONING", guidance=3.5)},
    positive="@guided.CONDITIONING",
    encode_note="The number of *FluxGuidance* holds for all prompts of the slider.",
    sampler=k_sampler(20, 1.0),
)
FLUX_2 = real(
    "Flux 2",
    "Flux.2 dev.",
    loaders(
        ("flux2_dev_fp8mixed.safetensors", f"{FLUX2}/diffusion_models"),
        ("mistral_3_small_flux2_fp8.safetensors", f"{FLUX2}/text_encoders"),
        "flux2",
        ("flux2-vae.safetensors", f"{FLUX2}/vae"),
    ),
    parts=SPLIT,
    before_encode={"guided": node("FluxGuidance", conditioning="@prompt.CONDITIONING", guidance=4.0)},
    positive="@guided.CONDITIONING",
    encode_note="The number of *FluxGuidance* holds for all prompts of the slider.",
    sampled={
        "guider": node("BasicGuider", model="@apply.model", conditioning="@apply.conditioning"),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "schedule": node("Flux2Scheduler", steps=20, width=1024, height=1024),
        "sampled": node(
            "SamplerCustomAdvanced",
            noise="@apply.noise",
            guider="@guider.GUIDER",
            sampler="@sampler.SAMPLER",
            sigmas="@schedule.SIGMAS",
            latent_image="@encode.latent",
        ),
    },
)
QWEN = real(
    "Qwen-Image",
    "Qwen-Image.",
    {
        **loaders(
            (
                "qwen_image_fp8_e4m3fn.safetensors",
                f"{COMFY}/Qwen-Image_ComfyUI/resolve/main/split_files/diffusion_models",
            ),
            QWEN_CLIP,
            "qwen_image",
            QWEN_VAE,
        ),
        "shifted": node("ModelSamplingAuraFlow", model="@model.MODEL", shift=3.1),
    },
    parts=SHIFTED,
    sampler=k_sampler(20, 2.5),
)


def qwen_edit_prompt(title: str, text: str) -> Node:
    """Describe a prompt of Qwen-Image-Edit, which sees the picture."""
    return node(
        "TextEncodeQwenImageEdit", title=title, clip="@clip.CLIP", prompt=text, vae="@vae.VAE", image="@scaled.IMAGE"
    )


QWEN_EDIT = real(
    "Qwen-Image-Edit",
    "Qwen-Image-Edit, whose prompts are instructions.",
    {
        **loaders(
            (
                "qwen_image_edit_fp8_e4m3fn.safetensors",
                f"{COMFY}/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models",
            ),
            QWEN_CLIP,
            "qwen_image",
            QWEN_VAE,
        ),
        "shifted": node("ModelSamplingAuraFlow", model="@model.MODEL", shift=3.0),
    },
    parts=SHIFTED,
    prompt=qwen_edit_prompt("Prompt: leave it as it is", "leave it as it is"),
    encode_note="The prompt says to leave the picture as it is, and shows the model the picture.",
    find_nodes={"instruction": qwen_edit_prompt("Prompt: the instruction", "make the person smile broadly")},
    find_inputs={
        "source": "leave it as it is",
        "target": "make the person smile broadly",
        "source_conditioning": "@prompt.CONDITIONING",
        "target_conditioning": "@instruction.CONDITIONING",
    },
    find_note="The source is the prompt of *Encode Picture*, the target is an instruction. The texts typed into *Find Directions* "
    "only name the slider.",
    sampler=k_sampler(20, 2.5),
)
Z_IMAGE = real(
    "Z-Image",
    "Z-Image.",
    {
        **loaders(
            ("z_image_bf16.safetensors", f"{COMFY}/z_image/resolve/main/split_files/diffusion_models"),
            ("qwen_3_4b.safetensors", f"{COMFY}/z_image_turbo/resolve/main/split_files/text_encoders"),
            "lumina2",
            ("ae.safetensors", f"{COMFY}/z_image_turbo/resolve/main/split_files/vae"),
        ),
        "shifted": node("ModelSamplingAuraFlow", model="@model.MODEL", shift=3.0),
    },
    parts=SHIFTED,
    sampler=k_sampler(25, 4.0, "res_multistep"),
)

DEMO = (FIRST, APP, BOARD, KEEP, EXPLORE, SAVE, TRANSFER, ANIMATION, QUICK, COMBINE, COMMON, MEASURE, FOLDER)
REAL = (SD15, SDXL, SDXL_MEASURED, SD35, FLUX1, FLUX_2, QWEN, QWEN_EDIT, Z_IMAGE)
ALL = DEMO + REAL

# The blueprints.

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
                "sampled": node(
                    "SamplerCustomAdvanced",
                    noise="@apply.noise",
                    guider="@guider.GUIDER",
                    sampler="@sampler.SAMPLER",
                    sigmas="@encode.sigmas",
                    latent_image="@encode.latent",
                ),
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
