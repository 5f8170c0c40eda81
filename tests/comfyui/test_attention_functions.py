"""Derivatives with every attention function that ComfyUI may run with, on models that honour the attention override
and on models that ignore it."""

import sys

import comfy.ldm.modules.attention as functions
import comfy.model_management
import pytest
import torch
from derivative_errors import measure, reference
from families import sd3
from more_families import hunyuan_dit, pixart

from latent_directions.core.operators import DIFFERENCES, FORWARD_AD
from latent_directions.core.self_check import PASSED


class LittleMemory:
    """comfy.model_management on a device with next to no free memory: attention goes in slices and chunks."""

    def __getattr__(self, name):
        return getattr(comfy.model_management, name)

    def get_free_memory(self, device=None, torch_free_too=False):
        return (10_000, 10_000) if torch_free_too else 10_000


@torch.library.custom_op("latent_directions_tests::kernel", mutates_args=())
def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A fused kernel without derivatives, BHLE: forward AD loses its tangents, a backward pass fails."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def sage_kernel(q, k, v, tensor_layout, **_options):
    """SageAttention's own interface around that kernel."""
    if tensor_layout == "HND":
        return kernel(q, k, v)
    return kernel(*(t.transpose(1, 2).contiguous() for t in (q, k, v))).transpose(1, 2)


@pytest.fixture
def run_with(monkeypatch):
    """Let all model code use one attention function, as ComfyUI does when it is started with its option."""

    def choose(name: str, little_memory: bool) -> None:
        chosen, default = getattr(functions, f"attention_{name}"), functions.optimized_attention
        for module in list(sys.modules.values()):
            for holder in ("optimized_attention", "optimized_attention_masked"):
                if getattr(module, "__dict__", {}).get(holder) is default:
                    monkeypatch.setattr(module, holder, chosen)
        monkeypatch.setattr(functions, "sageattn", sage_kernel, raising=False)
        if little_memory:
            monkeypatch.setattr(functions, "model_management", LittleMemory())

    return choose


def errors(build, run_with, name, little_memory=False):
    with torch.inference_mode():
        model = build()
    truth = reference(model, 1.0)
    run_with(name, little_memory)
    found = measure(model, truth, 1.0, (2,))
    assert not found.refusal
    assert found.distance < 1e-4
    return found


@pytest.mark.parametrize(
    ("name", "little_memory"),
    [("basic", False), ("split", False), ("split", True), ("sub_quad", False), ("sub_quad", True), ("flash", False)],
)
@pytest.mark.parametrize("build", [pixart, hunyuan_dit])
def test_models_that_ignore_the_override(build, run_with, name, little_memory):
    found = errors(build, run_with, name, little_memory)
    assert found.check.sentence == PASSED
    assert max(found.forward.values()) <= 1e-3
    assert max(found.adjoint.values()) <= 1e-3


@pytest.mark.parametrize("name", ["split", "sub_quad", "sage"])
def test_models_that_honour_the_override(run_with, name):
    found = errors(sd3, run_with, name, little_memory=True)
    assert found.check.jacobian.mode == FORWARD_AD
    assert found.check.sentence == PASSED
    assert max(found.forward.values()) <= 1e-3
    assert max(found.adjoint.values()) <= 1e-3


def test_a_kernel_without_derivatives_that_no_override_reaches(run_with):
    """Nothing can be swapped there: the self-check notices, and products come from differences of plain calls."""
    found = errors(pixart, run_with, "sage")
    assert found.check.jacobian.mode == DIFFERENCES
    assert not found.check.backward
    assert "forward AD disagreed" in found.check.sentence
    assert max(found.forward.values()) <= 1e-3
