"""The key of cached predictions: equal where nothing has changed, and it keeps nothing alive."""

import gc
import weakref

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from families import Family, sd3
from node_runs import loaded

from latent_directions.nodes.prediction_keys import settings_of_run

SIGMAS = torch.tensor([0.8, 0.4, 0.0])


@pytest.fixture
def test_model():
    return loaded(Family("sd3", sd3))


def guider_of(test_model, model=None, cfg: float = 2.0) -> comfy.samplers.CFGGuider:
    """As CFG Guider makes one, on a clone as the slider gives at every strength."""
    guider = comfy.samplers.CFGGuider((model or test_model.model).clone())
    guider.set_conds(test_model.positive, test_model.negative)
    guider.set_cfg(cfg)
    return guider


def key(test_model, model=None, sigmas=SIGMAS, mask=None, **options) -> tuple:
    return settings_of_run(guider_of(test_model, model, **options), sigmas, mask)


def test_equal_where_nothing_has_changed(test_model):
    assert key(test_model) == key(test_model)
    assert hash(key(test_model)) == hash(key(test_model))
    patched = RescaleCFG().patch(test_model.model, 0.7)[0]
    assert key(test_model, patched) == key(test_model, patched)


def test_another_where_anything_has(test_model):
    shifted = ModelSamplingSD3().patch(test_model.model, 7.0)[0]
    again = ModelSamplingSD3().patch(test_model.model, 7.0)[0]
    keys = [
        key(test_model),
        key(test_model, cfg=3.0),
        key(test_model, sigmas=torch.tensor([0.8, 0.3, 0.0])),
        key(test_model, mask=torch.ones(1, 1, 8, 8)),
        key(test_model, shifted),
        key(test_model, again),
        key(test_model, RescaleCFG().patch(test_model.model, 0.7)[0]),
    ]
    for number, one in enumerate(keys):
        assert all(one != other for other in keys[number + 1 :])


def test_the_positive_prompt_does_not_count(test_model):
    """The slider changes it; what is cached is the prediction under the source prompt."""
    guider = guider_of(test_model)
    guider.set_conds(test_model.negative, test_model.negative)
    assert settings_of_run(guider, SIGMAS, None) == key(test_model)


def test_it_keeps_no_model_alive(test_model):
    other = loaded(Family("sd3", sd3))
    network, made = weakref.ref(other.model.model), key(other)
    assert made == key(other)
    del other
    gc.collect()
    assert network() is None
    assert made != key(test_model)
