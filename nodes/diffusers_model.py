"""Load Diffusers Model: folders of models/diffusers that ComfyUI's own loaders cannot read."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from .diffusers_folder import DiffusersFolder, folder_names
from .errors import InputError, with_advice

NO_LIBRARY = (
    "This node needs the Python package 'diffusers', which is missing. Install it into ComfyUI's Python: pip install"
    " diffusers."
)


class LoadDiffusersModel(io.ComfyNode):
    """Load a local diffusers folder as ComfyUI's MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs; the folders are listed afresh at every call."""
        return io.Schema(
            node_id="LatentDirections_LoadDiffusersModel",
            display_name="Load Diffusers Model",
            category="latent directions",
            search_aliases=[
                "ddpm",
                "diffusers folder",
                "latent diffusion",
                "deepfloyd",
                "lcm",
                "pixel diffusion",
                "load checkpoint",
            ],
            description=(
                "Loads a model from a folder in models/diffusers that ComfyUI's own loaders cannot read: DDPM models on"
                " pixels, latent diffusion without text, DeepFloyd IF stage I, and LCM. Safetensors files only; nothing"
                " is downloaded. The demo DDPM comes with the pack."
            ),
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_names(),
                    optional=True,  # so that a graph can be queued where there is none, and `execute` says so
                    tooltip=(
                        "A folder with a model_index.json in models/diffusers, or the demo DDPM, which comes with the"
                        " pack and draws portraits of 32 by 32 pixels."
                    ),
                )
            ],
            outputs=[
                io.Model.Output(tooltip="The diffusion model, for KSampler and all nodes of this pack."),
                io.Clip.Output(tooltip="Its text encoder; nothing where the model takes no text."),
                io.Vae.Output(tooltip="Its VAE; for a model on pixels one that changes nothing but the range."),
                io.Conditioning.Output(
                    display_name="empty",
                    tooltip="The empty prompt; for models without text both positive and negative.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder=None) -> bool:
        """Names the input, so that `execute` says in a sentence what is wrong with it."""
        return True

    @classmethod
    @with_advice()
    def execute(cls, folder=None) -> io.NodeOutput:
        """Read the folder's parts."""
        chosen = DiffusersFolder.named(folder)
        try:
            import diffusers  # noqa: F401 - on first use only: it takes seconds to import
        except ImportError as error:
            raise InputError(NO_LIBRARY) from error
        from .diffusers_parts import load_model, load_vae, takes_text
        from .diffusers_text import load_clip

        has_text = takes_text(chosen)
        vae, latent_format = load_vae(chosen)
        model = load_model(chosen, latent_format, has_text)
        if not has_text:
            return io.NodeOutput(model, None, vae, [[torch.zeros(1, 1, 1), {}]])
        clip = load_clip(chosen)
        return io.NodeOutput(model, clip, vae, clip.encode_from_tokens_scheduled(clip.tokenize("")))


NODES = [LoadDiffusersModel]
