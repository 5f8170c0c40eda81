"""From an artist's MASK to the cells of a latent."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .errors import InputError

# A cell counts as masked when at least this share of it is: small features must not vanish.
COVERED = 0.25
FAINT = 0.02  # a product of masks below this value everywhere lets next to nothing through


def soft_mask_on_latent(mask: Tensor, shape: torch.Size) -> Tensor:
    """How far a MASK (B, H, W) or (H, W) covers each cell of a latent of a shape (B, C, h, w) or (B, C, 1, h, w).

    Returns:
        (1, 1, h, w) or (1, 1, 1, h, w), values 0 to 1; for a batch of masks as many.

    Raises:
        InputError: the mask has another shape than the picture, there are masks for another number of pictures, or all
            are 0 everywhere.
    """
    mask = mask.reshape(-1, *mask.shape[-2:]).cpu().float()
    if len(mask) not in (1, shape[0]):
        msg = (
            f"'mask' is a batch of {len(mask)} masks, but the number of pictures is {shape[0]}. Connect one mask, or"
            " one for each picture."
        )
        raise InputError(msg)
    height, width = shape[-2:]
    # VAEs crop to whole cells, so a picture may be up to one cell larger than its latent
    cell = (mask.shape[1] / height, mask.shape[2] / width)
    if not (abs(cell[0] - cell[1]) * min(height, width) <= max(cell) + 1e-6):
        msg = (
            f"'mask' is {mask.shape[2]} x {mask.shape[1]} pixels, which is another shape than the picture's latent "
            f"({width} x {height} cells). Draw the mask on the same picture that was inverted."
        )
        raise InputError(msg)
    cells = torch.nn.functional.interpolate(mask[:, None], (height, width), mode="area").clamp(0, 1)  # B 1 h w
    if not cells.any():
        msg = "'mask' selects nothing: it is black everywhere. Paint the area where the change should happen."
        raise InputError(msg)
    return cells if len(shape) == 4 else cells.unsqueeze(2)


def soft_mask_on_picture(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """How far a MASK (1, H, W) or (H, W) covers each pixel of a decoded picture (h, w), (1, 1, h, w), values 0 to 1.

    It is one that `soft_mask_on_latent` has let pass.
    """
    mask = mask.reshape(1, 1, *mask.shape[-2:]).cpu().float()
    return torch.nn.functional.interpolate(mask, size, mode="area").clamp(0, 1)


def covered_cells(soft: Tensor) -> Tensor:
    """The cells that count as masked, values 0 and 1 in the shape of `soft`, which is what `soft_mask_on_latent` gives.

    Raises:
        InputError: there are none.
    """
    cells = (soft >= COVERED).float()
    if not cells.any():
        msg = (
            f"'mask' selects nothing: after resizing to the latent's {soft.shape[-1]} x {soft.shape[-2]} cells no cell"
            f" is covered to {COVERED:.0%}. Paint a larger area."
        )
        raise InputError(msg)
    return cells


def refuse_empty_mask(cells: Tensor, message: str) -> None:
    """Raise an InputError where a product of masks lets next to nothing through."""
    if cells.max() < FAINT:
        raise InputError(message)


def mask_in_pixels(model: ModelPatcher, cells: Tensor | None, shape: torch.Size) -> Tensor:
    """A MASK (B, H, W) of the picture, from cells (B, h, w) of its latent of a `shape`; all 1 where there are none."""
    pixels = model.get_model_object("latent_format").spacial_downscale_ratio
    size = [pixels * cells for cells in shape[-2:]]
    if cells is None:
        return torch.ones(1, *size)
    return torch.nn.functional.interpolate(cells[:, None], size, mode="bilinear")[:, 0]
