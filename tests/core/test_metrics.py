"""Measures of what an edit or a return changed."""

import pytest
import torch

from latent_directions.core.metrics import psnr


def test_psnr():
    """-10 log10 of the mean squared error."""
    reference = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert psnr(reference + 0.1, reference) == pytest.approx(20, abs=1e-4)
    assert psnr(reference + 0.01, reference) == pytest.approx(40, abs=1e-3)
    half = reference.clone()
    half[:, :4] += 0.1
    assert psnr(half, reference) == pytest.approx(20 + 3.0103, abs=1e-4)


def test_equal_pictures_have_none():
    reference = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert psnr(reference.clone(), reference) is None


def test_half_precision_is_compared_in_single_precision():
    reference = torch.full((1, 4, 4, 3), 0.5).half()
    assert psnr(reference + 2**-10, reference) == pytest.approx(60.206, abs=1e-3)  # its square underflows in half
