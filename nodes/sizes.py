"""What size a picture comes back in: VAE Encode crops it, and models of patches pad its latent inside."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher

from .errors import InputError


def size_report(model: ModelPatcher, shape: torch.Size, vae=None) -> dict:
    """Size of the returned picture in pixels, and in words what is cropped and what is padded.

    Args:
        model: its latent format tells the pixels of a latent cell, its network the cells of a patch.
        shape: of the latent, (B, C, H, W) or (B, C, 1, H, W).
        vae: if given it tells the pixels of a cell instead.
    """
    height, width = shape[-2:]
    pixels = model.get_model_object("latent_format").spacial_downscale_ratio
    if vae is not None:
        pixels = vae.spacial_compression_decode()
    says = f"The picture comes back at {width * pixels} x {height * pixels} pixels."
    if pixels > 1:
        says += (
            f" VAE Encode makes one latent cell of {pixels} x {pixels} pixels; rows and columns beyond a multiple of"
            f" {pixels} it crops, half on each side."
        )
    if is_padded(model, shape):
        down, across = patch_size(model)
        padded = (-(-width // across) * across, -(-height // down) * down)
        says += (
            f" The latent of {width} x {height} is no multiple of the model's patches of {across} x {down}: the model"
            f" pads it to {padded[0]} x {padded[1]} inside and crops again, so nothing is lost."
        )
    return {"picture_pixels": [width * pixels, height * pixels], "size": says}


def patch_size(model: ModelPatcher) -> tuple[int, int]:
    """Latent cells of one patch, (down, across); (1, 1) for networks that have none, such as UNets."""
    network = model.model.diffusion_model
    size = getattr(network, "patch_size", None) or getattr(network, "patch_spatial", None) or 1
    return (size, size) if isinstance(size, int) else tuple(size[-2:])


def is_padded(model: ModelPatcher, shape: torch.Size) -> bool:
    """Whether a latent of this shape is no multiple of the model's patches."""
    down, across = patch_size(model)
    return shape[-2] % down > 0 or shape[-1] % across > 0


def refuse_size(model: ModelPatcher, shape: torch.Size, error: RuntimeError) -> None:
    """Say so where a network failed on a latent that is no multiple of its patches: not every network pads it."""
    if is_padded(model, shape) and not isinstance(error, torch.cuda.OutOfMemoryError):
        (height, width), (down, across) = shape[-2:], patch_size(model)
        msg = (
            f"'latent' is {width} x {height} cells, no multiple of this model's patches of {across} x {down}, and the"
            " model cannot work with that. Crop or resize the picture so that both sides are multiples, then encode it"
            " again."
        )
        raise InputError(msg) from error
