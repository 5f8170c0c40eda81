"""Measures of what an edit or a return changed."""

from __future__ import annotations

import math

from torch import Tensor


def psnr(picture: Tensor, reference: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB of two pictures with values 0 to 1; None where they are equal."""
    error = float((picture.float() - reference.float()).square().mean())
    return None if error == 0 else -10 * math.log10(error)
