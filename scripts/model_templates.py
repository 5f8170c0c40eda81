"""The templates of full-size models."""

from __future__ import annotations

from scripts.template_groups import HUGGING_FACE, custom_sampler, identify, result, slider
from scripts.templates import Group, Node, Template, node

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
        "sampled": custom_sampler("@schedule.SIGMAS"),
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


REAL = (SD15, SDXL, SDXL_MEASURED, SD35, FLUX1, FLUX_2, QWEN, QWEN_EDIT, Z_IMAGE)
