"""Features inside models of every family: what is read, that it can be differentiated, and that the run ends there."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import diffusers_folders
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod
from derivative_errors import directions, relative
from families import MANY, Family, TestModel, assemble, flux, sd1, sd3, sdxl, unet_config
from model_variants import (
    copied,
    rebuilt,
    with_cache_around_network,
    with_cache_inside_network,
    with_controlnet,
    with_lora,
    with_merged_patches,
    with_nan,
    with_weights,
)
from more_families import MORE, flux2, qwen_image, z_image
from node_runs import loaded
from test_edit_models import omnigen2
from test_nodes_model_unchanged import everything_of
from test_nodes_prompt_hooks import with_lora_hook
from torch import Tensor

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import NotFiniteError
from latent_directions.core.operators import DOUBLE_BACKWARD, FORWARD_AD, Jacobian
from latent_directions.core.self_check import self_check
from latent_directions.nodes.errors import CachedModelError, InputError, UnsupportedModelError
from latent_directions.nodes.features import MIDDLE, find_layer
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
    return Case(family, MIDDLE, "middle block", "middle_block.2", whole, (width, 4, 4))


CASES = [
    middle("sd1", 64),
    middle("sdxl", 64),
    middle("sd2", 64),
    Case("sd3", MIDDLE, "joint_blocks 1 of 2", "joint_blocks.0", part(1), (IMAGE, 128)),
    Case("sd3", 2, "joint_blocks 2 of 2", "joint_blocks.1", part(1), (IMAGE, 128)),
    Case("flux", 1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("flux", MIDDLE, "single_blocks 1 of 2", "single_blocks.0", after(TEXT), (IMAGE, 64)),
    Case("flux2", MIDDLE, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("flux2", 2, "single_blocks 1 of 1", "single_blocks.0", after(512), (IMAGE, 64)),
    Case("chroma", 1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("chroma", MIDDLE, "single_blocks 1 of 2", "single_blocks.0", after(TEXT), (IMAGE, 64)),
    Case("chroma_radiance", 1, "double_blocks 1 of 1", "double_blocks.0", part(0), (IMAGE, 64)),
    Case("chroma_radiance", MIDDLE, "single_blocks 1 of 2", "single_blocks.0", after(TEXT), (IMAGE, 64)),
    Case("lumina2", MIDDLE, "layers 1 of 2", "layers.0", after(TEXT), (IMAGE, 96)),
    Case("z_image", MIDDLE, "layers 1 of 2", "layers.0", after(32), (IMAGE, 256)),
    Case("qwen_image", MIDDLE, "transformer_blocks 1 of 2", "transformer_blocks.0", part(1), (IMAGE, 64)),
    Case("aura_flow", MIDDLE, "double_layers 1 of 1", "double_layers.0", part(1), (IMAGE, 64)),
    Case("aura_flow", 2, "single_layers 1 of 1", "single_layers.0", after(8 + TEXT), (IMAGE, 64)),
    Case("pixart", MIDDLE, "blocks 1 of 2", "blocks.0", whole, (66, 64)),
    Case("hunyuan_dit", MIDDLE, "blocks 2 of 4", "blocks.1", whole, (IMAGE, 64)),
    Case("wan", MIDDLE, "blocks 1 of 2", "blocks.0", whole, (IMAGE, 64)),
    Case("cosmos_predict2", MIDDLE, "blocks 1 of 2", "blocks.0", lambda output: output.flatten(1, 3), (IMAGE, 64)),
    Case("anima", MIDDLE, "blocks 1 of 2", "blocks.0", lambda output: output.flatten(1, 3), (IMAGE, 64)),
    Case("diffusers pixels", MIDDLE, "middle block", "unet.mid_block", whole, (64, 8, 8)),
    Case("diffusers text", MIDDLE, "middle block", "unet.mid_block", whole, (64, 8, 8)),
]
FAMILIES = {family.name: family for family in [*MANY, *MORE]}


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


def at(test_model: TestModel, body, block: int | None = MIDDLE, **prompts):
    """body(denoiser, x) at a noisy latent, with the features of a block."""
    x0, noise = torch.randn(2, *test_model.latent_shape, generator=torch.Generator().manual_seed(21))
    prompts = {"source": test_model.positive, "negative": test_model.negative, "target": test_model.negative, **prompts}
    with torch.inference_mode():
        latent = {"samples": test_model.model.get_model_object("latent_format").process_out(x0)}

        def noised(denoiser: Denoiser, x0: Tensor):
            return body(denoiser, denoiser.noised(x0, noise, test_model.sigma))

        return run(test_model.model, prompts, latent, test_model.sigma, noised, block=block)[0]


def read(test_model: TestModel, block: int = MIDDLE, prompt: str = "source", **prompts) -> Tensor:
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
        assert relative(read(test_model, case.block, "target"), h) > 1e-3

    before = everything_of(test_model.model)
    assert torch.equal(read(test_model, case.block), h)
    assert everything_of(test_model.model) == before


LAST = {"flux": 3, "flux2": 2, "chroma": 3, "chroma_radiance": 3, "lumina2": 2, "z_image": 2, "aura_flow": 2}


@pytest.mark.parametrize("family", LAST)
def test_the_image_tokens_are_those_that_become_the_prediction(family, build):
    """Of the last block's output, the prediction depends on the tokens that are read and on no others."""
    test_model, block = build(family), LAST[family]
    take = next(case.take for case in CASES if case.family == family and case.take.__qualname__.startswith("after"))
    module = find_layer(network_of(test_model), block).module

    def body(denoiser: Denoiser, x: Tensor):
        def with_noise(inside: bool) -> Tensor:
            def exchange(_module, _inputs, output):
                noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
                goal, source = (output.clone(), noise) if inside else (noise, output)
                take(goal)[:] = take(source)
                return goal

            hook = module.register_forward_hook(exchange)
            try:
                return denoiser(x, test_model.sigma)
            finally:
                hook.remove()

        plain = denoiser(x, test_model.sigma)
        assert relative(with_noise(inside=False), plain) < 1e-6
        assert relative(with_noise(inside=True), plain) > 1e-2
        (output,) = captured(module, lambda: denoiser(x, test_model.sigma))
        assert torch.equal(denoiser.features.read(x, test_model.sigma, "source"), take(output))

    at(test_model, body, block)


@pytest.mark.parametrize("method", [None, "index_timestep_zero"])
@pytest.mark.parametrize(("family", "block", "before"), [(flux2, 1, 0), (flux2, 2, 512), (qwen_image, 1, 0)])
def test_tokens_of_reference_pictures_are_left_out(family, block, before, method):
    check_references(loaded(Family("", family)), block, before, method)


@pytest.mark.parametrize("method", [None, "offset", "uxo/uno"])
@pytest.mark.parametrize(("block", "before"), [(1, 0), (2, TEXT)])
def test_tokens_of_reference_pictures_are_left_out_of_flux_kontext(block, before, method):
    check_references(loaded(Family("flux", flux)), block, before, method)


def check_references(test_model: TestModel, block: int, before: int, method: str | None):
    """Of a block that has `before` text tokens first, the picture's tokens are read and its references' are not."""
    references = [torch.randn(*test_model.latent_shape[:-2], *size) for size in ((6, 4), (4, 8))]
    with torch.inference_mode():
        for reference in references:
            (test_model.positive,) = ReferenceLatent.execute(test_model.positive, {"samples": reference}).args
        if method is not None:
            (test_model.positive,) = FluxKontextMultiReferenceLatentMethod.execute(test_model.positive, method).args
    module = find_layer(network_of(test_model), block).module
    image = 1 if test_model.name == "qwen_image" else 0

    def body(denoiser: Denoiser, x: Tensor):
        h = denoiser.features.read(x, test_model.sigma, "source")
        (output,) = captured(module, lambda: denoiser(x, test_model.sigma))
        tokens = output[image] if isinstance(output, tuple) else output
        assert tokens.shape[1] > before + IMAGE
        assert torch.equal(h, tokens[:, before : before + IMAGE])

    at(test_model, body, block)


@pytest.mark.parametrize("size", [(6, 10), (7, 9), (5, 8)], ids=str)
@pytest.mark.parametrize("family", [flux, z_image, qwen_image], ids=lambda family: family.__name__)
def test_sizes_that_patches_do_not_divide(family, size):
    test_model = loaded(Family("", family))
    test_model.latent_shape = (*test_model.latent_shape[:-2], *size)
    h = read(test_model)
    assert h.shape[1] == -(-size[0] // 2) * -(-size[1] // 2)


def test_block_numbers_go_through_all_lists():
    network = network_of(loaded(Family("flux", flux)))
    names = [find_layer(network, number).name for number in (1, 2, 3)]
    assert names == ["double_blocks 1 of 1", "single_blocks 1 of 2", "single_blocks 2 of 2"]
    assert find_layer(network, 3).module is network.single_blocks[1]
    assert find_layer(network) == find_layer(network, 2)
    assert find_layer(network_of(loaded(Family("sd1", sd1))), 1).name == "middle block"


def test_no_features_without_a_block():
    assert at(loaded(Family("sd3", sd3)), lambda denoiser, _x: denoiser.features, None) is None


class TestWhatIsOnTheModel:
    def test_a_lora(self):
        base = loaded(Family("flux", flux))
        with torch.inference_mode():
            patched = with_lora(base)
            merged = with_merged_patches(patched)
        h, plain = read(patched), read(base)
        assert relative(h, read(merged)) < 1e-5
        assert relative(plain, h) > 1e-2

        def products(test_model):
            def body(denoiser: Denoiser, x: Tensor):
                features = lambda points: denoiser.features.read(points, test_model.sigma, "source")  # noqa: E731
                jacobian = Jacobian(features, x, counter=denoiser.counter, differentiable=denoiser.differentiable)
                product = jacobian.matvec(directions(test_model))
                return product, jacobian.rmatvec(product)

            return at(test_model, body)

        for found, exact in zip(products(patched), products(merged), strict=True):
            assert relative(found, exact) < 1e-4

    def test_a_lora_on_one_prompt_alone(self):
        base = loaded(Family("sd3", sd3))
        hooked = with_lora_hook(base)

        def body(denoiser: Denoiser, x: Tensor):
            return [denoiser.features.read(x, base.sigma, prompt) for prompt in ("source", "target", "source")]

        first, plain, again = at(hooked, body)
        assert torch.equal(first, again)
        assert relative(first, read(base)) > 1e-2
        assert torch.equal(plain, read(base, prompt="target"))

    def test_a_controlnet_changes_transformers_and_not_what_comes_before_it(self):
        """ComfyUI adds a ControlNet's part to a U-Net behind the middle block's own output."""
        base = loaded(Family("sdxl", sdxl))
        with torch.inference_mode():
            controlled = with_controlnet(base)

        def body(denoiser: Denoiser, x: Tensor):
            h = denoiser.features.read(x, base.sigma, "source")
            module = find_layer(network_of(controlled)).module
            (output,) = captured(module, lambda: denoiser(x, base.sigma))
            assert torch.equal(h, output)

        at(controlled, body)

    @pytest.mark.parametrize("memory", ["together", "one by one"])
    def test_one_that_asks_for_the_negative_too(self, memory, monkeypatch):
        test_model = loaded(Family("sd3", sd3))
        plain = read(test_model)
        clone = test_model.model.clone()
        clone.set_model_sampler_cfg_function(lambda args: args["cond"], disable_cfg1_optimization=True)
        asking = dataclasses.replace(test_model, model=clone)
        if memory == "one by one":
            monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0)

        def body(denoiser: Denoiser, x: Tensor):
            batches = []
            hook = network_of(asking).register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
            h = denoiser.features.read(torch.cat([x, 2 * x]), test_model.sigma, "source")
            hook.remove()
            assert batches in ([[4]] if memory == "together" else [[2], [2, 2]])
            assert denoiser.counter.evaluations == sum(batches)
            return h[:1]

        assert relative(at(asking, body), plain) < 1e-5

    def test_half_precision_is_widened(self):
        base = loaded(Family("sdxl", sdxl))
        with torch.inference_mode():
            half = rebuilt(base, torch.float16)
        h = read(half)
        assert h.dtype is torch.float32
        assert relative(h, read(base)) < 1e-2

    def test_features_that_are_no_numbers(self):
        test_model = loaded(Family("sd1", sd1))
        with torch.inference_mode():
            broken = with_weights(test_model, copied(test_model.model.model))
            network_of(broken).middle_block[2].out_layers[3].bias[0] = float("inf")
        with pytest.raises(NotFiniteError, match="'middle block' hold values that are not numbers"):
            read(broken)

    def test_what_spoils_the_prediction_alone_does_not_matter(self):
        test_model = loaded(Family("sd1", sd1))
        assert torch.equal(read(with_nan(test_model)), read(test_model))

    @pytest.mark.parametrize("kind", [Exception, BaseException])
    def test_a_node_that_holds_up_what_the_network_raises(self, kind):
        """Some nodes run the network again after an error; the features are those of the first run all the same."""
        test_model, caught = loaded(Family("flux", flux)), []

        def wrapper(executor, *args, **kwargs):
            try:
                return executor(*args, **kwargs)
            except kind as error:
                caught.append(error)
                return args[0]

        clone = test_model.model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
        assert torch.equal(read(dataclasses.replace(test_model, model=clone)), read(test_model))
        assert len(caught) == (kind is BaseException)


class TestTheRunEnds:
    def test_the_next_prediction_is_right(self):
        for build in (sd1, flux):
            test_model = loaded(Family("", build))

            def body(denoiser: Denoiser, x: Tensor, sigma=test_model.sigma):
                before = denoiser(x, sigma, "source", 3.0)
                denoiser.features.read(x, sigma, "target")
                assert torch.equal(denoiser(x, sigma, "source", 3.0), before)

            at(test_model, body)

    def test_a_cancel_passes_through(self):
        test_model = loaded(Family("sd3", sd3))
        h = read(test_model)
        before = everything_of(test_model.model)
        inner = find_layer(network_of(test_model)).module.x_block.mlp
        cancel = inner.register_forward_hook(lambda *_: comfy.model_management.interrupt_current_processing())
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            read(test_model, 2)
        cancel.remove()
        assert everything_of(test_model.model) == before
        assert torch.equal(read(test_model), h)

    def test_an_error_of_the_model_passes_through(self):
        test_model = loaded(Family("sd3", sd3))
        h = read(test_model)
        before = everything_of(test_model.model)

        def fail(*_):
            raise LookupError

        hook = network_of(test_model).joint_blocks[0].register_forward_pre_hook(fail)
        with pytest.raises(LookupError):
            read(test_model)
        hook.remove()
        assert everything_of(test_model.model) == before
        assert torch.equal(read(test_model), h)


class TestWhatIsRefused:
    @pytest.mark.parametrize("block", [-1, -2, 4])
    def test_a_block_that_does_not_exist(self, block):
        with pytest.raises(InputError, match=f"'block' is {block}, but .* 3 blocks. Set it to a number from 1 to 3"):
            read(loaded(Family("flux", flux)), block)

    def test_a_second_block_of_a_unet(self):
        with pytest.raises(InputError, match="'block' is 2, but .* one block that can be read: middle block"):
            read(loaded(Family("sd1", sd1)), 2)

    def test_a_network_of_an_unknown_kind(self):
        with pytest.raises(UnsupportedModelError, match="class OmniGen2Transformer2DModel, of which no layer is"):
            read(loaded(Family("omnigen2", omnigen2)))

    def test_a_unet_without_a_middle_block(self):
        def small() -> TestModel:
            config = comfy.supported_models.SD15(unet_config(transformer_depth_middle=-2))
            return assemble("small", config, (1, 4, 8, 8), {"tokens": 7, "width": 24})

        with pytest.raises(UnsupportedModelError, match="made without it"):
            read(loaded(Family("small", small)))

    def test_a_model_on_several_cards(self):
        test_model = loaded(Family("sd3", sd3))

        def body(denoiser: Denoiser, x: Tensor):
            options["multigpu_clones"] = {}
            with pytest.raises(UnsupportedModelError, match="spread over several graphics cards"):
                denoiser.features.read(x, test_model.sigma, "source")

        options = {}
        clone = test_model.model.clone()

        def outer(executor, noise, latent, sampler, *args, **kwargs):
            sample = sampler.sample

            def noted(model_wrap, sigmas, extra_args, *rest):
                nonlocal options
                options = extra_args["model_options"]
                return sample(model_wrap, sigmas, extra_args, *rest)

            sampler.sample = noted
            return executor(noise, latent, sampler, *args, **kwargs)

        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer)
        at(dataclasses.replace(test_model, model=clone), body)

    def test_prompts_of_several_parts(self):
        test_model = loaded(Family("sd3", sd3))
        mask = torch.ones(1, 64, 64)
        with torch.inference_mode():
            combined = ConditioningCombine().combine(test_model.positive, test_model.negative)[0]
            area = ConditioningSetArea().append(test_model.positive, 32, 32, 0, 0, 1.0)[0]
            masked = ConditioningSetMask().append(test_model.positive, mask, "default", 1.0)[0]
            late = ConditioningSetTimestepRange().set_range(test_model.positive, 0.9, 1.0)[0]
        for positive, reason in (
            (combined, "has several parts"),
            (area, "is for an area or a mask"),
            (masked, "is for an area or a mask"),
            (late, "has no part that holds"),
        ):
            with pytest.raises(InputError, match=reason):
                read(dataclasses.replace(test_model, positive=positive))

    def test_but_not_parts_for_other_noise_levels(self):
        test_model = loaded(Family("sd3", sd3))
        with torch.inference_mode():
            early = ConditioningSetTimestepRange().set_range(test_model.positive, 0.0, 0.8)[0]
            late = ConditioningSetTimestepRange().set_range(test_model.negative, 0.9, 1.0)[0]
        two = dataclasses.replace(test_model, positive=early + late)
        assert torch.equal(read(two), read(test_model))

    def test_tokens_that_do_not_add_up(self):
        test_model = loaded(Family("z_image", z_image))
        reference = torch.randn(test_model.latent_shape)
        with torch.inference_mode():
            (test_model.positive,) = ReferenceLatent.execute(test_model.positive, {"samples": reference}).args
        with pytest.raises(UnsupportedModelError, match="the picture has 16 and the prompt 48 beside them"):
            read(test_model)

    def test_a_layer_that_another_node_replaces(self):
        test_model = loaded(Family("sd3", sd3))
        clone = test_model.model.clone()
        clone.set_model_patch_replace(lambda args, _extra: args, "dit", "double_block", 0)
        skipping = dataclasses.replace(test_model, model=clone)
        with pytest.raises(UnsupportedModelError, match="did not run its layer 'joint_blocks 1 of 2'"):
            read(skipping)
        assert read(skipping, 2).shape == (1, IMAGE, 128)

    @pytest.mark.parametrize("cache", [with_cache_around_network, with_cache_inside_network])
    def test_caches(self, cache):
        """The first run fills the cache, which would answer the second in the network's place."""
        test_model = loaded(Family("flux", flux))

        def body(denoiser: Denoiser, x: Tensor):
            denoiser(x, test_model.sigma)
            denoiser.features.read(x, test_model.sigma, "source")

        with pytest.raises(CachedModelError, match="without running its network"):
            at(cache(test_model), body)
