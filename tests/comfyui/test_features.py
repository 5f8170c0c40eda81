"""Features inside models of every family: what is read, that it can be differentiated, and that the run ends there."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management
import comfy.supported_models
import diffusers_folders
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_edit_model import ReferenceLatent
from derivative_errors import directions, relative
from families import MANY, Family, TestModel, assemble, flux, sd1, sd3, sdxl, unet_config
from model_variants import (
    copied,
    rebuilt,
    with_cache_around_network,
    with_cache_inside_network,
    with_controlnet,
    with_hooks,
    with_lora,
    with_merged_patches,
    with_nan,
    with_weights,
)
from more_families import MORE, flux2, qwen_image, z_image
from node_runs import loaded, state_of
from test_edit_models import omnigen2
from torch import Tensor

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import NotFiniteError
from latent_directions.core.operators import DOUBLE_BACKWARD, FORWARD_AD, Jacobian
from latent_directions.core.self_check import self_check
from latent_directions.nodes.errors import CachedModelError, InputError, UnsupportedModelError
from latent_directions.nodes.features import find_layer
from latent_directions.nodes.host import run
from nodes import ConditioningCombine, ConditioningSetArea, ConditioningSetMask, ConditioningSetTimestepRange

IMAGE, TEXT = 16, 7  # tokens of the small models' latents, 8 x 8 cells in patches of 2 x 2, and of their prompts


@dataclass(frozen=True)
class Case:
    """A block of a family, where it is, and how the test takes the image tokens from its output."""

    family: str
    block: int
    name: str
    path: str
    take: Callable
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


def whole(output):
    return output


def part(number: int) -> Callable:
    return lambda outputs: outputs[number]


def after(others: int, count: int = IMAGE) -> Callable:
    return lambda output: output[:, others : others + count]


def middle(family: str, width: int) -> Case:
    return Case(family, -1, "middle block", "middle_block.2", whole, (width, 4, 4))


CASES = [
    middle("sd1", 64),
    middle("sdxl", 64),
    middle("sd2", 64),
    Case("sd3", -1, "joint_blocks 1 of 2", "joint_blocks.0", part(1), (IMAGE, 128)),
    Case("sd3", 2, "joint_blocks 2 of 2", "joint_blocks.1", part(1), (IMAGE, 128)),
    Case("flux", 1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("flux", -1, "single_blocks 1 of 2", "single_blocks.0", after(TEXT), (IMAGE, 64)),
    Case("flux2", -1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("flux2", 2, "single_blocks 1 of 1", "single_blocks.0", after(512), (IMAGE, 64)),
    Case("chroma", 1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("chroma", -1, "single_blocks 1 of 2", "single_blocks.0", after(TEXT), (IMAGE, 64)),
    Case("chroma_radiance", 1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("chroma_radiance", -1, "single_blocks 1 of 2", "single_blocks.0", after(TEXT), (IMAGE, 64)),
    Case("lumina2", -1, "layers 1 of 2", "layers.0", after(TEXT), (IMAGE, 96)),
    Case("z_image", -1, "layers 1 of 2", "layers.0", after(32), (IMAGE, 256)),
    Case("qwen_image", -1, "transformer_blocks 1 of 2", "transformer_blocks.0", part(1), (IMAGE, 64)),
    Case("aura_flow", -1, "double_layers 1 of 1", "double_layers.0", part(1), (IMAGE, 64)),
    Case("aura_flow", 2, "single_layers 1 of 1", "single_layers.0", after(8 + TEXT), (IMAGE, 64)),
    Case("pixart", -1, "blocks 1 of 2", "blocks.0", whole, (66, 64)),
    Case("hunyuan_dit", -1, "blocks 2 of 4", "blocks.1", whole, (IMAGE, 64)),
    Case("wan", -1, "blocks 1 of 2", "blocks.0", whole, (IMAGE, 64)),
    Case("cosmos_predict2", -1, "blocks 1 of 2", "blocks.0", lambda output: output.flatten(1, 3), (IMAGE, 64)),
    Case("anima", -1, "blocks 1 of 2", "blocks.0", lambda output: output.flatten(1, 3), (IMAGE, 64)),
    Case("diffusers pixels", -1, "middle block", "unet.mid_block", whole, (64, 8, 8)),
    Case("diffusers text", -1, "middle block", "unet.mid_block", whole, (64, 8, 8)),
]
FAMILIES = {family.name: family for family in [*MANY, *MORE]}
JOINT = [case for case in CASES if case.take.__qualname__.startswith("after")]


@pytest.fixture(autouse=True)
def not_interrupted():
    yield
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def build(tmp_path, monkeypatch) -> Callable[[str], TestModel]:
    """Builds the test model of a case."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], ["folder"]))

    def of(name: str) -> TestModel:
        if not name.startswith("diffusers"):
            return loaded(FAMILIES[name])
        write = {"diffusers pixels": diffusers_folders.pixels, "diffusers text": diffusers_folders.with_text}[name]
        write(tmp_path / "model")
        return diffusers_folders.test_model(name, diffusers_folders.load("model"))

    return of


def network_of(test_model: TestModel) -> torch.nn.Module:
    return test_model.model.model.diffusion_model


def at(test_model: TestModel, body, block: int | None = -1, **prompts):
    """body(denoiser, x) at a noisy latent, with the features of a block."""
    x0, noise = torch.randn(2, *test_model.latent_shape, generator=torch.Generator().manual_seed(21))
    prompts = {"source": test_model.positive, "negative": test_model.negative, "target": test_model.negative, **prompts}
    with torch.inference_mode():
        latent = {"samples": test_model.model.get_model_object("latent_format").process_out(x0)}

        def noised(denoiser: Denoiser, x0: Tensor):
            return body(denoiser, denoiser.noised(x0, noise, test_model.sigma))

        return run(test_model.model, prompts, latent, test_model.sigma, noised, block=block)[0]


def read(test_model: TestModel, block: int = -1, prompt: str = "source", **prompts) -> Tensor:
    """h at that latent."""
    return at(test_model, lambda d, x: d.features.read(x, test_model.sigma, prompt), block, **prompts)


def captured(module: torch.nn.Module, evaluate: Callable) -> list:
    """What a module gives back while `evaluate` runs."""
    outputs = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(_copied(output)))
    try:
        evaluate()
    finally:
        hook.remove()
    return outputs


def _copied(output):
    """What comes after may write into it."""
    if isinstance(output, Tensor):
        return output.clone()
    return tuple(None if one is None else one.clone() for one in output)


def calls(network: torch.nn.Module, evaluate: Callable) -> list[torch.nn.Module]:
    """The modules of a network that run, in order."""
    called, inside = [], set(network.modules())
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _inputs: called.append(module))
    try:
        evaluate()
    finally:
        hook.remove()
    return [module for module in called if module in inside]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_features_of_a_family(case, build):
    test_model = build(case.family)
    network, sigma = network_of(test_model), test_model.sigma
    module = network.get_submodule(case.path)
    with torch.inference_mode():
        v = directions(test_model)
        w = torch.randn(2, *case.shape, generator=torch.Generator().manual_seed(23))

    def body(denoiser: Denoiser, x: Tensor):
        def features(points: Tensor) -> Tensor:
            return denoiser.features.read(points, sigma, "source")

        assert denoiser.features.layer == case.name
        before = denoiser.counter.evaluations
        h = features(x)
        assert denoiser.counter.evaluations == before + 1

        (output,) = captured(module, lambda: denoiser(x, sigma))
        assert h.shape == (1, *case.shape)
        assert torch.equal(h, case.take(output))
        (output,) = captured(module, lambda: denoiser(x, sigma, "target"))
        assert torch.equal(denoiser.features.read(x, sigma, "target"), case.take(output))

        two = features(torch.cat([x, 2 * x]))
        assert relative(two, torch.cat([h, features(2 * x)])) < 1e-5

        full = calls(network, lambda: denoiser(x, sigma))
        until = calls(network, lambda: features(x))
        assert until == full[: len(until)]
        assert module in until
        assert not set(until) & {later for later in full[len(until) :] if later not in full[: len(until)]}
        assert len(until) < len(full)

        jacobian = Jacobian(features, x, counter=denoiser.counter, differentiable=denoiser.differentiable)
        check = self_check(jacobian)
        assert check.jacobian.mode == FORWARD_AD
        assert check.backward
        before = denoiser.counter.evaluations
        products = jacobian.matvec(v)
        assert denoiser.counter.evaluations == before + 4
        coarse, fine = (jacobian.difference(v, step)[0] for step in (1e-2, 5e-3))
        assert relative(products, (4 * fine - coarse) / 3) < 5e-3
        double = dataclasses.replace(jacobian, mode=DOUBLE_BACKWARD).matvec(v)
        assert relative(double, products) < 1e-4
        transposed = jacobian.rmatvec(w)
        gap = (products * w).flatten(1).sum(1) - (v * transposed).flatten(1).sum(1)
        assert float(gap.abs().max() / (products.norm() * w.norm())) < 1e-5
        return h

    h = at(test_model, body, case.block)
    if test_model.positive is not test_model.negative:  # models without prompts have one
        assert relative(read(test_model, case.block, "target"), h) > 1e-3 or "double" in case.name

    before = state_of(test_model.model)
    hooks = len(torch.nn.modules.module._global_forward_hooks), len(torch.nn.modules.module._global_forward_pre_hooks)
    assert torch.equal(read(test_model, case.block), h)
    assert state_of(test_model.model) == before
    assert hooks == (
        len(torch.nn.modules.module._global_forward_hooks),
        len(torch.nn.modules.module._global_forward_pre_hooks),
    )
