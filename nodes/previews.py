"""Small pictures for the page, saved where ComfyUI keeps previews, which it empties when it starts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import folder_paths
from PIL import Image


def save_previews(pictures: Iterable[Image.Image], side: int) -> list[dict]:
    """Save RGB pictures as JPEG files.

    Args:
        pictures: of any size.
        side: pixels of the longer side of a saved picture, at most.

    Returns:
        For each picture {filename, subfolder, type}, as the page asks ComfyUI for it.
    """
    prefix = f"latent_directions_{secrets.token_hex(6)}"  # the pictures of every run have names of their own
    folder, name, _, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_temp_directory())
    saved = []
    for number, picture in enumerate(pictures):
        factor = min(1.0, side / max(picture.size))
        size = [max(1, round(length * factor)) for length in picture.size]
        filename = f"{name}_{number:05}.jpg"
        small = picture.resize(size, Image.Resampling.LANCZOS)
        small.save(Path(folder) / filename, quality=95, subsampling=0)
        saved.append({"filename": filename, "subfolder": subfolder, "type": "temp"})
    return saved
