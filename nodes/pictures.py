"""Between ComfyUI's IMAGE, (B, H, W, C) with values 0 to 1, and Pillow's pictures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from .errors import InputError


def picture_of(image: Tensor) -> Image.Image:
    """The first picture of an IMAGE, or of what a VAE decodes."""
    image = image.reshape(-1, *image.shape[-3:])[0, ..., :3]
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def image_of(picture: Image.Image) -> Tensor:
    """An IMAGE of one picture, from an RGB one of Pillow's."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(1, picture.height, picture.width, 3) / 255.0


def one_picture(image: Tensor) -> Tensor:
    """The colours of the one picture at the input 'image', (1, H, W, 3); InputError where there are several."""
    if len(image) > 1:
        msg = (
            f"'image' is a batch of {len(image)} pictures, but the measure starts from one. Take one out of the batch"
            " (Get Image from Batch)."
        )
        raise InputError(msg)
    return image[..., :3]
