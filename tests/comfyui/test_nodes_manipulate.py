"""The Direction Slider at 0: no case of its own, and the picture comes back all the same."""

from dataclasses import replace

import pytest
import torch
from families import CORE
from node_runs import find, invert, loaded, sample

from latent_directions.nodes.errors import InputError
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


class TestAnotherLevel:
    """A direction found at one noise level and used at another."""

    @pytest.mark.parametrize("level", [0.3, 0.8])
    def test_the_noise_moves_by_as_much_and_the_report_says_so(self, level):
        test_model = loaded(CORE[0])
        found, used = invert(test_model), invert(test_model, level=level)
        (direction, *_), _ = find(test_model, found.inversion, "LOCO")
        moves = []
        for encoded in (found, used):
            model, positive, noise = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
            moves.append(noise.noise - encoded.inversion.paths.base)
            sample(test_model, encoded, model=model, positive=positive, noise=noise)
        assert torch.allclose(*moves, rtol=1e-4, atol=1e-6)
        assert found.inversion.statistics.last_remarks == []
        (remark,) = used.inversion.statistics.last_remarks
        assert f"was found at noise level sigma {direction.sigma:.4g} and is used at" in remark

    def test_a_level_that_the_model_does_not_have(self):
        test_model = loaded(CORE[0])
        encoded = invert(test_model)
        (direction, *_), _ = find(test_model, encoded.inversion, "LOCO")
        with pytest.raises(InputError, match="says that it was found at noise level sigma 1e[+]06"):
            DirectionSlider.execute(encoded.inversion, [replace(direction, sigma=1e6)], 0, 1.0)
        (words,), _ = find(test_model, encoded.inversion, "text")
        DirectionSlider.execute(encoded.inversion, [replace(words, sigma=1e6)], 0, 1.0)  # words have no noise level
