"""Derivatives on every family and of every kind of weight, against a float64 copy; planted faults are caught."""

import comfy.model_management
import pytest
import torch
from derivative_errors import measure, reference
from families import MANY, flux, sd3, sdxl
from model_variants import (
    FAULTS,
    FP8,
    INT8,
    STEP_CACHES,
    fp8_stored,
    in_float64,
    offloaded,
    quantised,
    rebuilt,
    with_controlnet,
    with_lora,
    with_merged_patches,
    with_step_cache,
)
from more_families import MORE
from node_runs import find, invert

from latent_directions.core.operators import DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD


def errors(model, exact, guidance=1.0, blocks=(2,)):
    truth = reference(exact, guidance)
    assert truth.uncertainty < 1e-4
    return measure(model, truth, guidance, blocks)


def assert_exact(found, limit=1e-3):
    assert not found.refusal
    assert found.check.jacobian.mode == FORWARD_AD
    assert found.check.backward
    assert max(found.forward.values()) <= limit
    assert max(found.double.values()) <= limit
    assert max(found.adjoint.values()) <= limit


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("family", [*MANY, *MORE], ids=str)
def test_products_of_a_family(family, guidance):
    with torch.inference_mode():
        model = family.build()
    found = errors(model, model, guidance, (1, 2) if guidance == 1.0 else (2,))
    assert_exact(found)
    assert found.distance < 1e-4
    assert found.check.sentence == "Derivatives passed their self-check."


def test_everything_is_put_back():
    with torch.inference_mode():
        model = MORE[-1].build()
        network = model.model.model.diffusion_model
        before = {name: dict(module.__dict__) for name, module in network.named_modules()}
        hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    measure(model, reference(model, 1.0), 1.0)
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks
    assert not comfy.model_management.in_training
    for name, module in network.named_modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks
        assert module._parameters.keys() == before[name]["_parameters"].keys()
        for kind in ("weight_function", "bias_function"):
            assert not getattr(module, kind, [])


@pytest.mark.parametrize("format", ["stored fp8", "scaled fp8", "fp8 inputs", "int8 inputs"])
def test_quantised_weights(format):
    """Products are those of the model with its weights dequantised, also where its layers round their inputs."""
    with torch.inference_mode():
        base = sd3()
        model, exact = {
            "stored fp8": lambda: fp8_stored(base),
            "scaled fp8": lambda: quantised(base, FP8, inputs=False),
            "fp8 inputs": lambda: quantised(base, FP8),
            "int8 inputs": lambda: quantised(base, INT8),
        }[format]()
    found = errors(model, exact)
    assert_exact(found)
    if "inputs" in format:
        assert 1e-3 < found.distance < 0.1
        assert "rounding" in found.check.sentence
    else:
        assert found.distance < 1e-4


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)], ids=str)
@pytest.mark.parametrize("build", [sd3, sdxl])
def test_half_precision(build, dtype, limit):
    """As exact as the model's own rounding lets products be: central differences miss by twice as much and more."""
    with torch.inference_mode():
        model = rebuilt(build(), dtype)
    assert_exact(errors(model, model), limit)


def test_half_precision_weights_computed_in_float32():
    with torch.inference_mode():
        model = rebuilt(flux(), torch.bfloat16, torch.float32)
    assert_exact(errors(model, model))


@pytest.mark.parametrize("weights", ["loaded", "offloaded"])
def test_lora(weights):
    with torch.inference_mode():
        base = flux()
        merged = with_merged_patches(with_lora(base))
        model = with_lora(offloaded(base) if weights == "offloaded" else base)
    assert_exact(errors(model, merged))


def test_a_controlnet_that_encodes_its_hint_at_the_first_call_alone():
    """Layers that run once beside the diffusion model are no sign of a cache on it."""

    class Encoder(torch.nn.Conv2d):
        def spacial_compression_encode(self):
            return 1

        def encode(self, pixels):
            return self(pixels.movedim(-1, 1)).detach()

    with torch.inference_mode():
        test_model = with_controlnet(sdxl())
        for entry in (*test_model.positive, *test_model.negative):
            entry[1]["control"].vae = Encoder(3, 3, 1)
    encoded = invert(test_model, method="backward euler")
    directions, _ = find(test_model, encoded.inversion, "LOCO", count=1)
    assert len(directions) == 1


def test_controlnet():
    with torch.inference_mode():
        base = sdxl()
        model, exact = with_controlnet(base), with_controlnet(in_float64(base))
    found = errors(model, exact, guidance=4.0)
    assert_exact(found)
    without = errors(model, base)
    assert without.distance > 1e-2, "the ControlNet had no effect"


@pytest.mark.parametrize("cache", STEP_CACHES)
def test_step_caches_are_taken_off(cache):
    with torch.inference_mode():
        base = flux()
        model = with_step_cache(base, STEP_CACHES[cache])
    assert_exact(errors(model, base))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, guidance):
    with torch.inference_mode():
        model = FAULTS[fault](flux())
    found = errors(model, model, guidance)
    if "cache" in fault:
        assert "without running its network" in found.refusal
    elif fault == "random output":
        assert "at the same input differ" in found.refusal
    elif fault == "wrong adjoint":
        assert found.check.jacobian.mode == FORWARD_AD
        assert not found.check.backward
        assert max(found.forward.values()) <= 1e-3
    elif fault == "wrong tangent":
        assert found.check.jacobian.mode == DOUBLE_BACKWARD
        assert max(found.forward.values()) <= 1e-3
    else:
        assert found.check.jacobian.mode == DIFFERENCES
        assert max(found.forward.values()) <= 1e-2
