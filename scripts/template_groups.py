"""The groups of nodes that templates and blueprints are put together from."""

from __future__ import annotations

from scripts.templates import Group, Node, node

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


def custom_sampler(sigmas: str, encoded: str = "encode") -> Node:
    """Describe the sampler that starts at the encoded picture with what Apply Sliders gives, on the sigmas of an output."""
    return node(
        "SamplerCustomAdvanced",
        noise="@apply.noise",
        guider="@guider.GUIDER",
        sampler="@sampler.SAMPLER",
        sigmas=sigmas,
        latent_image=f"@{encoded}.latent",
    )


def sampling(end: str = "slider", encoded: str = "encode") -> dict[str, Node]:
    """Describe what runs the ordinary sampler at the end of a chain of sliders."""
    return {
        "apply": node("ApplySliders", inversion=f"@{end}.inversion"),
        "guider": node("BasicGuider", model="@apply.model", conditioning="@apply.conditioning"),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sampled": custom_sampler(f"@{encoded}.sigmas", encoded),
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
