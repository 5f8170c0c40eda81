"""Pictures of predictions: the artist's VAE as a function that can be differentiated, for `Search.decode`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .errors import InputError

VAE_KEY = "latent_directions_vae"  # of the VAE among the models that ComfyUI loads beside a MODEL


def with_vae(model: ModelPatcher, vae: comfy.sd.VAE) -> ModelPatcher:
    """A clone of a MODEL beside which ComfyUI loads the VAE's network too while it samples, as memory allows."""
    clone = model.clone()
    clone.set_additional_models(VAE_KEY, [vae.patcher])
    return clone


def decoder_of(vae: comfy.sd.VAE, model: ModelPatcher) -> tuple[Callable[[Tensor], Tensor], int]:
    """The decoder of a VAE for latents of a MODEL's own space.

    It runs in float32 on the device of its input. Weights of another precision, or on another device, are cast layer by
    layer when they are used; `with_vae` has them loaded beforehand. A derivative keeps the activations of the decoder:
    with a backward pass a multiple of what VAE Decode takes for one picture, at once and never in tiles.

    Args:
        vae: as a loader node gives it; it stays as it is.
        model: its latent format is undone before the decoder runs.

    Returns:
        decode: D (p, C, H, W) or (p, C, 1, H, W) -> pictures (p, 3, H', W') as the VAE's network gives them, mostly -1
            to 1 and not clamped, in D's dtype; differentiable inside `nodes/derivatives.py`'s derivative_mode.
        pixels_per_cell: H' / H.

    Raises:
        InputError: the VAE is one of videos or sound, has other channels than the model, or gives no colour pictures.
    """
    _check_vae(vae, model)
    decoding, latent_format = _Decoding(vae.first_stage_model), model.get_model_object("latent_format")

    def decode(latents: Tensor) -> Tensor:
        flat = latents[:, :, 0] if latents.ndim == 5 else latents
        return decoding(latent_format.process_out(flat.float())).to(latents)

    return decode, int(vae.spacial_compression_decode())


def _check_vae(vae: comfy.sd.VAE, model: ModelPatcher) -> None:
    if getattr(vae, "first_stage_model", None) is None:
        msg = "'vae' holds no network. Load a VAE that belongs to the model."
        raise InputError(msg)
    if vae.latent_dim != 2 or vae.extra_1d_channel is not None:
        kind = "videos" if vae.latent_dim == 3 else "sound"
        msg = (
            f"'vae' is a VAE of {kind}, whose pictures this node cannot look at while it searches. Let the search look"
            " at the latent."
        )
        raise InputError(msg)
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != channels:
        msg = (
            f"'vae' decodes latents of {vae.latent_channels} channels, but the model's have {channels}. Connect the VAE"
            " that belongs to the model."
        )
        raise InputError(msg)
    if vae.output_channels != 3:
        msg = (
            f"'vae' gives pictures of {vae.output_channels} channels, where 3 are needed. Let the search look at the"
            " latent."
        )
        raise InputError(msg)


class _Decoding(torch.nn.Module):
    """Calls the decoder of a VAE's network as a module, so that derivative_mode prepares the whole network.

    VAEs decode by a method, which the hook on calls of modules does not see; weights that belong to no layer inside,
    such as TAESD's scale, would be left out.
    """

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor) -> Tensor:
        with _cast_to_input(self.network):
            return self.network.decode(latents)


@contextlib.contextmanager
def _cast_to_input(network: torch.nn.Module) -> Iterator[None]:
    """Inside it ComfyUI's layers cast their weights to the precision and device of their input."""
    layers = [module for module in network.modules() if getattr(module, "comfy_cast_weights", None) is False]
    own = [layer.__dict__.get("comfy_cast_weights") for layer in layers]
    try:
        for layer in layers:
            layer.comfy_cast_weights = True
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                layer.__dict__.pop("comfy_cast_weights", None)
            else:
                layer.comfy_cast_weights = before
