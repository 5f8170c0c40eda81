"""The Direction Slider at 0: no case of its own, and the picture comes back all the same."""

import pytest
import torch
from families import CORE
from node_runs import find, invert, loaded, sample

from latent_directions.nodes.manipulate import DirectionSlider


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("method", ["HSDS", "text", "LOCO"])
@pytest.mark.parametrize("family", CORE, ids=str)
def test_zero_with_keep_and_weight(family, method, cfg):
    test_model = loaded(family)
    encoded = invert(test_model)
    keep = "a person with glasses | a person hat" if method != "LOCO" else ""
    directions, _ = find(test_model, encoded.inversion, method, keep=keep)
    model, positive, noise = DirectionSlider.execute(encoded.inversion, directions, 0, 0.0, 0.7).args
    assert model is not encoded.model
    samples = sample(test_model, encoded, cfg=cfg, model=model, positive=positive, noise=noise)
    assert torch.equal(samples, encoded.latent["samples"])
    model, positive, noise = DirectionSlider.execute(encoded.inversion, directions, 0, 1.0, 0.7).args
    moved = sample(test_model, encoded, cfg=cfg, model=model, positive=positive, noise=noise)
    assert not torch.allclose(moved, samples, atol=1e-3)
