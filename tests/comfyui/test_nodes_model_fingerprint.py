"""The fingerprint of a MODEL: the same for the same weights in any format and place, and another for another model."""

import gc
import weakref

import comfy.model_management
import pytest
import torch
from families import Family, assemble, sd3, sdxl
from model_variants import (
    FP8,
    INT8,
    copied,
    fp8_stored,
    in_float64,
    offloaded,
    quantised,
    rebuilt,
    with_lora,
    with_merged_patches,
    with_weights,
)
from node_runs import find, invert, loaded, sample, state_of

from latent_directions.core.direction import Fingerprint
from latent_directions.nodes import model_fingerprint
from latent_directions.nodes.inspect import EditReport
from latent_directions.nodes.manipulate import DirectionSlider
from latent_directions.nodes.model_fingerprint import OF_A_FORMAT, fingerprint_of


@pytest.fixture
def test_model():
    return loaded(Family("sd3", sd3))


def another(name: str = "another sd3"):
    """A model of the same structure with other weights."""
    one = loaded(Family("sd3", sd3))
    config = one.model.model.model_config
    return assemble(name, type(config)(config.unet_config), one.latent_shape, {"tokens": 7, "width": 24, "pooled": 32})


def of(one) -> Fingerprint:
    return fingerprint_of(one.model)


def test_what_it_holds(test_model):
    made = of(test_model)
    assert len(made.structure) == 64
    assert (len(made.weights), {len(values) for values in made.weights}) == (12, {8})
    names = dict(test_model.model.model.diffusion_model.named_parameters())
    every = {f"{value:.5g}" for weight in names.values() for value in weight.flatten().tolist()}
    assert {f"{value:.5g}" for values in made.weights for value in values} <= every


def test_the_same_weights(test_model):
    assert of(test_model) == of(loaded(Family("sd3", sd3)))
    assert not of(test_model).differs_from(of(in_float64(test_model)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_formats_of_the_same_weights(test_model, dtype):
    if dtype.itemsize == 1:
        stored, _ = fp8_stored(test_model)
    else:
        stored = rebuilt(test_model, dtype, torch.float32)
    assert of(stored).structure == of(test_model).structure
    assert not of(stored).differs_from(of(test_model))
    assert of(stored).differs_from(of(another()))


@pytest.mark.parametrize("kind", [FP8, INT8])
def test_quantised_weights(test_model, kind):
    stored, _ = quantised(test_model, kind)
    assert all(of(stored).weights)
    assert of(stored).structure == of(test_model).structure
    assert not of(stored).differs_from(of(test_model))
    assert of(stored).differs_from(of(another()))


def test_parameters_of_a_format_do_not_count(test_model):
    expected = of(test_model)
    with_scales = with_weights(test_model, copied(test_model.model.model))
    layer = next(m for m in with_scales.model.model.diffusion_model.modules() if isinstance(m, torch.nn.Linear))
    for name in OF_A_FORMAT:
        layer.register_parameter(name, torch.nn.Parameter(torch.ones(1), requires_grad=False))
    assert of(with_scales) == expected


def test_weights_that_are_no_numbers_are_left_out(test_model):
    packed = with_weights(test_model, copied(test_model.model.model))
    for parameter in packed.model.model.diffusion_model.parameters():
        parameter.data = parameter.data.to(torch.int16)
    assert not any(of(packed).weights)
    assert not of(packed).differs_from(of(test_model))


def test_values_that_are_not_finite_are_left_out(test_model):
    broken = with_weights(test_model, copied(test_model.model.model))
    for parameter in broken.model.model.diffusion_model.parameters():
        parameter.data = torch.full_like(parameter.data, torch.nan)
    assert not any(of(broken).weights)


@pytest.mark.parametrize("place", [lambda one: one, offloaded])
def test_a_lora_on_the_model_does_not_count(test_model, place):
    """While the model is loaded ComfyUI has it in the weights; then the fingerprint is taken of what it keeps aside."""
    expected = of(test_model)
    patched = with_lora(place(with_weights(test_model, copied(test_model.model.model))))
    comfy.model_management.load_models_gpu([patched.model])
    assert of(patched) == expected
    merged = with_merged_patches(with_lora(test_model))
    assert of(merged).structure == expected.structure
    assert of(merged).differs_from(expected)


def test_another_model_of_the_family(test_model):
    assert of(another()).structure == of(test_model).structure
    assert of(another()).differs_from(of(test_model))
    assert of(loaded(Family("sdxl", sdxl))).structure != of(test_model).structure


def test_taken_once_for_all_clones_and_keeps_nothing_alive(test_model, monkeypatch):
    fresh = with_weights(test_model, copied(test_model.model.model))
    before = state_of(fresh.model)
    made = fingerprint_of(fresh.model.clone())
    assert state_of(fresh.model) == before
    monkeypatch.setattr(model_fingerprint, "_fingerprint", None)  # which cannot be called
    assert fingerprint_of(fresh.model) is made
    gone = weakref.ref(fresh.model.model)
    del fresh
    gc.collect()
    assert gone() is None


class TestSlider:
    def remarks(self, test_model, encoded, direction) -> list[str]:
        with torch.inference_mode():
            model, positive, noise, inversion = DirectionSlider.execute(encoded.inversion, [direction], 0, 0.0).args
        samples = sample(test_model, encoded, model=model, positive=positive, noise=noise)
        EditReport.execute(inversion, {"samples": samples})
        return inversion.statistics.last_remarks

    def test_says_that_the_direction_is_of_another_model(self, test_model):
        encoded = invert(test_model)
        (direction,), _ = find(test_model, encoded.inversion, "text")
        assert direction.model == of(test_model)
        assert self.remarks(test_model, encoded, direction) == []
        other = another()
        encoded = invert(other)
        (remark,) = self.remarks(other, encoded, direction)
        assert "'a smiling person' was found on another model of the family SD3" in remark

    def test_says_nothing_where_the_model_is_not_known(self, test_model):
        encoded = invert(test_model)
        (direction,), _ = find(test_model, encoded.inversion, "text")
        object.__setattr__(direction, "model", None)
        assert self.remarks(test_model, encoded, direction) == []
