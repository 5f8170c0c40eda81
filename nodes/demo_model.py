"""The demo model and its portraits: everything that the templates need without a download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from comfy_api.latest import io

from ..core.errors import printable
from .errors import InputError, with_advice
from .inputs import check_inputs, in_short

CATEGORY = "latent directions/demo"


def attribute_names(text: str, known) -> list[str] | None:
    """Names from a comma-separated list; None, for all, where the list is empty."""
    names = [part.strip().lower().replace(" ", "_") for part in text.split(",") if part.strip()]
    wrong = [name for name in names if name not in known]
    if wrong:
        msg = (
            f"'named_attributes' lists {in_short(', '.join(wrong))}, which the portraits do not have. "
            f"Choose from: {', '.join(known)}; or leave the input empty to name all of them."
        )
        raise InputError(msg)
    return names or None


@contextmanager
def readable_weights() -> Iterator[None]:
    """Around what reads the demo model's files: a sentence where one of them cannot be read."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        msg = (
            f"The demo model's weights cannot be read ({printable(str(error), 300)}): a file in demo/weights is"
            " missing or damaged, or only a pointer of Git LFS. Install the pack again."
        )
        raise InputError(msg) from error


class LoadDemoModel(io.ComfyNode):
    """Load the small SD3-type model of drawn portraits that comes with this pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="LatentDirections_LoadDemoModel",
            display_name="Load Demo Model",
            category=CATEGORY,
            search_aliases=["small model", "test model", "example model", "tiny sd3", "try the sliders"],
            description="Loads a small SD3-type model of drawn portraits, 64 by 64 pixels, that comes with this pack.",
            outputs=[
                io.Model.Output(tooltip="The diffusion model: rectified flow, 16 latent channels."),
                io.Clip.Output(tooltip="Its text encoder. It knows only the words listed in demo/README.md."),
                io.Vae.Output(tooltip="Its VAE, for pictures of 64 by 64 pixels."),
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls) -> io.NodeOutput:
        """Load the three parts through ComfyUI's own loaders."""
        check_inputs(cls, locals())
        from ..demo.architecture import load_demo_model

        with readable_weights():
            return io.NodeOutput(*load_demo_model())


class DemoPortrait(io.ComfyNode):
    """Draw one portrait whose attributes are known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="LatentDirections_DemoPortrait",
            display_name="Demo Portrait",
            category=CATEGORY,
            search_aliases=["test picture", "example picture", "drawn face", "sample portrait", "face mask"],
            description="Draws a portrait for the demo model. The same seed always gives the same picture.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Chooses the portrait.",
                ),
                io.String.Input(
                    "named_attributes",
                    default="",
                    optional=True,
                    tooltip="Attributes that the caption names, with commas between them, such as "
                    "smile, glasses. Empty names all of them.",
                ),
                io.Int.Input(
                    "size",
                    default=64,
                    min=32,
                    max=512,
                    step=8,
                    optional=True,
                    tooltip="Pixels on each side: 64 for the demo model, 32 for the demo DDPM.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The portrait."),
                io.Mask.Output("mouth", display_name="mouth", tooltip="A box around the mouth."),
                io.Mask.Output("eyes", display_name="eyes", tooltip="A box around the eyes, without the brows."),
                io.Mask.Output("hair", display_name="hair", tooltip="The hair."),
                io.Mask.Output("face", display_name="face", tooltip="The whole face."),
                io.String.Output(
                    "caption",
                    display_name="caption",
                    tooltip="A prompt that describes the portrait in the words the demo model knows.",
                ),
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls, seed: int, named_attributes: str = "", size: int = 64) -> io.NodeOutput:
        """Draw the portrait: image 1 x size x size x 3 in 0..1, masks 1 x size x size."""
        check_inputs(cls, locals())
        import numpy as np
        import torch

        from ..demo import world

        portrait = world.sample_portrait(np.random.default_rng(seed))
        words = world.caption(portrait, attributes=attribute_names(named_attributes, world.ATTRIBUTES))
        image = torch.from_numpy(world.draw(portrait, size).copy()).float().div(255).unsqueeze(0)  # HWC -> BHWC
        regions = {name: torch.from_numpy(mask).unsqueeze(0) for name, mask in world.masks(portrait, size).items()}
        return io.NodeOutput(image, regions["mouth"], regions["eyes"], regions["hair"], regions["face"], words)


NODES = [LoadDemoModel, DemoPortrait]
