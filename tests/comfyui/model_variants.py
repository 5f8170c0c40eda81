"""What is done to a MODEL, on the small models: LoRA, ControlNet, other number formats, offloading, planted faults."""

import copy
import dataclasses
import json

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.quant_ops
import comfy.weight_adapter
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from families import TestModel, randomise
from planted import Identity

from nodes import ControlNetApplyAdvanced

INT8, FP8 = "int8_tensorwise", "float8_e4m3fn"


def copied(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model, but of its config: ComfyUI's configs cannot be copied."""
    return copy.deepcopy(model, {id(model.model_config): model.model_config})


def with_weights(test_model: TestModel, model: torch.nn.Module) -> TestModel:
    """The test model with another network behind its conditioning."""
    old = test_model.model
    patcher = type(old)(model, load_device=old.load_device, offload_device=old.offload_device)
    return dataclasses.replace(test_model, model=patcher)


def in_float64(test_model: TestModel) -> TestModel:
    """A float64 copy: what its float32 and quantised forms are compared with."""
    model = copied(test_model.model.model)
    model.diffusion_model.double()
    model.diffusion_model.dtype = torch.float64
    model.manual_cast_dtype = None
    return with_weights(test_model, model)


def rebuilt(test_model: TestModel, dtype, compute_dtype=None, custom_operations=None, quant_config=None, weights=None):
    """The same model built by ComfyUI for other number formats, its weights converted or taken from `weights`."""
    config = test_model.model.model.model_config
    config = type(config)(config.unet_config)
    config.custom_operations, config.quant_config = custom_operations, quant_config
    config.set_inference_dtype(dtype, compute_dtype)
    model = config.get_model({}, device="cpu")
    weights = test_model.model.model.diffusion_model.state_dict() if weights is None else weights
    missing, unexpected = model.diffusion_model.load_state_dict(dict(weights), strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    model.diffusion_model.requires_grad_(False)
    return with_weights(test_model, model)


def quantised_weights(test_model: TestModel, kind: str) -> tuple[dict, dict]:
    """(weights as in a quantised checkpoint, the same dequantised), for all linear layers of the network."""
    network = test_model.model.model.diffusion_model
    stored, exact = dict(network.state_dict()), dict(network.state_dict())
    marker = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    layout = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    for name, module in network.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        quantised = comfy.quant_ops.QuantizedTensor.from_float(module.weight.data, layout, scale="recalculate")
        key = f"{name}.weight"
        stored |= {f"{key[:-6]}comfy_quant": marker, **quantised.state_dict(key)}
        exact[key] = quantised.dequantize()
    return stored, exact


def quantised(test_model: TestModel, kind: str, inputs: bool = True) -> tuple[TestModel, TestModel]:
    """(the model in ComfyUI's own quantised layers, the float model with its weights dequantised).

    `inputs` says whether layers round their inputs too, as ComfyUI does where the hardware multiplies in that format.
    """
    stored, exact = quantised_weights(test_model, kind)
    disabled = set() if inputs else {kind}
    operations = comfy.ops.mixed_precision_ops({}, torch.float32, disabled=disabled)
    model = rebuilt(test_model, torch.float32, custom_operations=operations, weights=stored)
    return model, rebuilt(test_model, torch.float32, weights=exact)


def fp8_stored(test_model: TestModel) -> tuple[TestModel, TestModel]:
    """(weights kept in fp8 and cast at each call, as `weight_dtype` does; the float model with these weights)."""
    model = rebuilt(test_model, torch.float8_e4m3fn, torch.float32)
    weights = {k: w.float() for k, w in model.model.model.diffusion_model.state_dict().items()}
    return model, rebuilt(test_model, torch.float32, weights=weights)


def with_lora(test_model: TestModel, rank: int = 4) -> TestModel:
    """A LoRA of visible strength on every second linear layer, as a patch of the MODEL."""
    patcher = test_model.model.clone()
    generator = torch.Generator().manual_seed(11)
    patches = {}
    for name, module in patcher.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            out, into = module.weight.shape
            up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
            factors = (0.5 * up / rank**0.5, down / into**0.5, None, None, None, None)
            patches[f"diffusion_model.{name}.weight"] = comfy.weight_adapter.LoRAAdapter(set(), factors)
    chosen = dict(list(patches.items())[::2])
    assert len(patcher.add_patches(chosen, 1.0)) == len(chosen)
    return dataclasses.replace(test_model, model=patcher)


def lora_file(test_model: TestModel, rank: int = 4) -> dict:
    """The contents of a LoRA file of visible strength on every linear layer."""
    generator, weights = torch.Generator().manual_seed(11), {}
    for name, module in test_model.model.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            out, into = module.weight.shape
            up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
            weights[f"diffusion_model.{name}.lora_up.weight"] = 0.5 * up / rank**0.5
            weights[f"diffusion_model.{name}.lora_down.weight"] = down / into**0.5
    return weights


def with_hooks(test_model: TestModel, hooks: comfy.hooks.HookGroup) -> TestModel:
    """The test model with hooks on its positive prompt alone."""
    positive = comfy.hooks.set_hooks_for_conditioning(test_model.positive, hooks)
    return dataclasses.replace(test_model, positive=positive)


def with_merged_patches(test_model: TestModel) -> TestModel:
    """The same with its patches added to the weights of a copy."""
    model = copied(test_model.model.model)
    patcher = test_model.model
    merged = {
        key: comfy.lora.calculate_weight(patches, comfy.utils.get_attr(model, key).clone(), key)
        for key, patches in patcher.patches.items()
    }
    for key, weight in merged.items():
        comfy.utils.set_attr_param(model, key, weight)
    return with_weights(test_model, model)


def with_controlnet(test_model: TestModel) -> TestModel:
    """A small random ControlNet on a U-Net model's prompts, applied by ComfyUI's own node, in the model's precision."""
    model = test_model.model.model
    config = dict(model.model_config.unet_config)
    settings = {k: v for k, v in config.items() if k not in ("out_channels", "dtype", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(**settings, hint_channels=3, dtype=torch.float32, device="cpu")
    randomise(network, 17)
    network.to(model.get_dtype()).dtype = model.get_dtype()
    control = comfy.controlnet.ControlNet(network, compression_ratio=8, load_device=test_model.model.load_device)
    side = 8 * test_model.latent_shape[-1]
    hint = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(18))
    positive, negative = ControlNetApplyAdvanced().apply_controlnet(
        test_model.positive, test_model.negative, control, hint, 0.8, 0.0, 1.0
    )
    return dataclasses.replace(test_model, positive=positive, negative=negative)


class AlwaysOffloaded(comfy.model_patcher.ModelPatcher):
    """A patcher that keeps every weight where it is and casts it at each call, as with too little graphics memory."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        super().load(device_to, lowvram_model_memory=1, force_patch_weights=force_patch_weights)


def offloaded(test_model: TestModel) -> TestModel:
    """The test model with all its weights offloaded; patches added to it are applied at each call."""
    old = test_model.model
    model = copied(old.model)
    return dataclasses.replace(test_model, model=AlwaysOffloaded(model, old.load_device, old.offload_device))


def with_step_cache(test_model: TestModel, node: type = EasyCacheNode) -> TestModel:
    """A MODEL behind ComfyUI's own EasyCache or LazyCache, eager to reuse."""
    (model,) = node.execute(test_model.model, 3.0, 0.0, 1.0, False).args
    return dataclasses.replace(test_model, model=model)


def with_cache(test_model: TestModel, place: str) -> TestModel:
    """A MODEL with a wrapper of an unknown kind that answers for near inputs with its last output."""
    patcher, stored = test_model.model.clone(), {}

    def cached(executor, x, *args, **kwargs):
        near, output = stored.get(x.shape, (None, None))
        if near is None or (x - near).norm() > 0.5 * near.norm():
            near, output = x.detach().clone(), executor(x, *args, **kwargs)
            stored[x.shape] = near, output.detach()
        return output

    patcher.add_wrapper_with_key(place, "some_cache", cached)
    return dataclasses.replace(test_model, model=patcher)


def with_cache_around_network(test_model: TestModel) -> TestModel:
    """A cache that leaves out the call of the network."""
    return with_cache(test_model, comfy.patcher_extension.WrappersMP.APPLY_MODEL)


def with_cache_inside_network(test_model: TestModel) -> TestModel:
    """A cache that leaves out the network's layers while the network itself is called; for families that allow it."""
    return with_cache(test_model, comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL)


def with_output(test_model: TestModel, change) -> TestModel:
    """A MODEL with a function wrapper that changes every prediction."""
    patcher = test_model.model.clone()
    patcher.set_model_unet_function_wrapper(
        lambda apply, options: change(apply(options["input"], options["timestep"], **options["c"]))
    )
    return dataclasses.replace(test_model, model=patcher)


def with_noise(test_model: TestModel) -> TestModel:
    """A MODEL that answers a little differently each time."""
    return with_output(test_model, lambda d: d + 1e-3 * torch.randn_like(d))


def with_guidance_number(test_model: TestModel, number: float) -> TestModel:
    """The number that Flux takes as guidance, set in both prompts."""
    positive, negative = (
        [[text, {**options, "guidance": number}] for text, options in prompt]
        for prompt in (test_model.positive, test_model.negative)
    )
    return dataclasses.replace(test_model, positive=positive, negative=negative)


def with_wrong_tangent(test_model: TestModel) -> TestModel:
    """A MODEL whose forward AD is a tenth too small."""
    return with_output(test_model, lambda d: Identity.apply(d, 0.9, 1.0))


def with_nan(test_model: TestModel) -> TestModel:
    """A MODEL with one value in its predictions that is not a number, as after an overflow."""
    return with_output(test_model, lambda d: d.index_fill(-1, torch.tensor([0]), float("nan")))


def with_lost_tangent(test_model: TestModel) -> TestModel:
    """A MODEL with an operation that drops tangents and gradients, as fused kernels do."""
    return with_output(test_model, lambda d: 0.5 * d + 0.5 * d.detach())


def with_wrong_adjoint(test_model: TestModel) -> TestModel:
    """A MODEL whose backward pass is a tenth too small."""
    return with_output(test_model, lambda d: Identity.apply(d, 1.0, 0.9))


STEP_CACHES = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}
FAULTS = {
    "cache around the network": with_cache_around_network,
    "cache inside the network": with_cache_inside_network,
    "random output": with_noise,
    "wrong tangent": with_wrong_tangent,
    "lost tangent": with_lost_tangent,
    "wrong adjoint": with_wrong_adjoint,
}
