"""Derivatives through a loaded MODEL: what ComfyUI does for speed is undone while a product is taken, and put back.

- Inference mode makes products silently zero, so callers leave it first (nodes/host.py).
- `in_training` switches off fused kernels that drop tangents (rotary embeddings of Flux, Lumina, Qwen-Image, Wan).
- Attention and operations that write into a given tensor are replaced as core/attention.py does, wherever they are
  called: some models ignore ComfyUI's attention override.
- Backward passes need layers that save no weights: loaded weights are inference tensors, and may be
  offloaded or quantized.
- Layers that round their inputs (fp8 and int8 products) take exact products with the same weights.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import comfy.hooks
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher

from ..core.attention import DifferentiableFunctions
from ..core.errors import DerivativeError
from .caches import drop_step_caches

COMPILE_KEY = "torch.compile"  # of the wrapper that Torch Compile Model adds
OTHER_ATTENTION = (
    "Another node has put an attention of its own on the MODEL. Exact derivatives go through plain attention in its"
    " place; they are used only where the self-check finds that they agree with the model as it samples."
)
COMPILED = "torch.compile on the MODEL was left out: derivatives and the checks around them go through its plain code."
HOOKED = "A LoRA hook on a prompt changes the model's weights from call to call, which a backward pass cannot follow."


def derivative_clone(model: ModelPatcher) -> tuple[ModelPatcher, list[str]]:
    """A clone of a MODEL that can be differentiated, its step caches and torch.compile off, and remarks on that.

    The remarks are sentences for a report; taking derivatives may add one.
    """
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    remarks = drop_step_caches(clone.wrappers)
    if any([of_kind.pop(COMPILE_KEY, None) for of_kind in clone.wrappers.values()]):
        remarks.append(COMPILED)
    override = options.get("optimized_attention_override")
    options["optimized_attention_override"] = functools.partial(_attention, override, remarks)
    return clone, remarks


def swaps_weights(conds: dict[str, list[dict]]) -> bool:
    """Whether a prompt of a guider carries a hook that changes weights; hooks of other kinds change none."""
    groups = [entry.get("hooks") for entries in conds.values() for entry in entries]
    kinds = {hook.hook_type for group in groups if group is not None for hook in group.hooks}
    return comfy.hooks.EnumHookType.Weight in kinds


@contextlib.contextmanager
def derivative_mode(diffusion_model: torch.nn.Module, hooked: bool, backward: bool):
    """Inside it D can be differentiated by forward AD and, with `backward`, backward; all is put back at the end.

    Raises:
        DerivativeError: `backward` where the weights are swapped (`hooked`): they are cast again when the backward pass
            needs them, and may be another prompt's by then.
    """
    if backward and hooked:
        raise DerivativeError(HOOKED)
    training = comfy.model_management.in_training
    with contextlib.ExitStack() as stack:
        comfy.model_management.in_training = True
        stack.callback(setattr, comfy.model_management, "in_training", training)
        stack.enter_context(_differentiable_layers(diffusion_model, backward))
        stack.enter_context(DifferentiableFunctions(_PLAIN_KERNELS))
        yield


def _attention(override, remarks, func, q, k, v, heads, *args, **kwargs):
    """An attention override: another node's own or ComfyUI's outside derivatives, plain torch attention inside.

    ComfyUI's attention_pytorch knows every argument convention; inside derivative_mode its fused call is replaced.
    """
    if comfy.model_management.in_training:
        if override is not None and OTHER_ATTENTION not in remarks:
            remarks.append(OTHER_ATTENTION)
        return attention_pytorch(q, k, v, heads, *args, **kwargs)
    if override is not None:
        return override(func, q, k, v, heads, *args, **kwargs)
    return func(q, k, v, heads, *args, **kwargs)


def _plain_kernels() -> dict[str, Callable]:
    """ComfyUI's fused norms and rotary embeddings by the names of their operators, in plain torch.

    Some models (Cosmos-Predict2, Anima) call the fused ones, which drop tangents and gradients, even in training.
    """
    try:
        from comfy_kitchen.backends import eager
    except ImportError:  # a ComfyUI without them
        return {}
    names = [name for name in dir(eager) if name.startswith(("adaln", "rms_adaln", "apply_rope", "rms_rope"))]
    return {f"comfy_kitchen.{name}": getattr(eager, name) for name in names}


_PLAIN_KERNELS = _plain_kernels()


def _weight_of(layer, x, product: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]) -> torch.Tensor:
    """product(weight, bias) with both as ComfyUI would use them now: moved, cast, patched by LoRA, dequantized.

    It asks for a cancel, as ComfyUI's own layers do, for no layer is called in a backward pass.
    """
    comfy.ops.run_every_op()
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    try:
        return product(weight.dequantize() if isinstance(weight, comfy.ops.QuantizedTensor) else weight, bias)
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


class _WithoutWeights(torch.autograd.Function):
    """x -> W x + b of a linear or convolution layer that saves nothing for backward: W is cast again when needed."""

    @staticmethod
    def forward(x, layer):
        def product(weight, bias):
            if not _is_linear(layer):
                return layer._conv_forward(x, weight, bias)
            out = torch.nn.functional.linear(x, weight, bias)
            return out.clone() if out._is_view() else out  # blocks that add in place may not change a view

        return _weight_of(layer, x, product)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.layer = inputs
        ctx.input_shape = tuple(x.shape)

    @staticmethod
    def jvp(ctx, tangent, _layer):
        return _LinearPart.apply(tangent, ctx.layer, ctx.input_shape, False)

    @staticmethod
    def backward(ctx, grad):
        return _LinearPart.apply(grad, ctx.layer, ctx.input_shape, True), None


class _LinearPart(torch.autograd.Function):
    """x -> W x, or W' x where `transposed`, of the same kind; `input_shape` is that of the layer's input."""

    @staticmethod
    def forward(x, layer, input_shape, transposed):
        def product(weight, _bias):
            if _is_linear(layer):
                return x @ weight if transposed else torch.nn.functional.linear(x, weight)
            if not transposed:
                return layer._conv_forward(x, weight, None)
            return torch.ops.aten.convolution_backward(
                x, x.new_empty(1).expand(input_shape), weight, None, layer.stride, layer.padding, layer.dilation,
                False, [0] * len(layer.kernel_size), layer.groups, (True, False, False),
            )[0]  # fmt: skip

        return _weight_of(layer, x, product)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.layer, ctx.input_shape, ctx.transposed = inputs

    @staticmethod
    def jvp(ctx, tangent, _layer, _shape, _transposed):
        return _LinearPart.apply(tangent, ctx.layer, ctx.input_shape, ctx.transposed)

    @staticmethod
    def backward(ctx, grad):
        return _LinearPart.apply(grad, ctx.layer, ctx.input_shape, not ctx.transposed), None, None, None


def _forward_without_weights(layer, x):
    scale = getattr(layer, "pre_quant_scale", None)
    if scale is not None:
        x = x * comfy.model_management.cast_to_device(scale, x.device, x.dtype)
    return _WithoutWeights.apply(x, layer)


def _is_linear(layer):
    """Whether a layer of ComfyUI's is linear; those of quantised checkpoints do not derive from torch's."""
    return isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Linear"


def _is_recastable(layer):
    """ComfyUI's own linear and convolution layers; others (GGUF's, say) cast their weights differently."""
    if type(layer).__module__ != "comfy.ops" or "forward" in layer.__dict__ or getattr(layer, "weight", None) is None:
        return False
    if _is_linear(layer):
        return True
    convolution = isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))
    return convolution and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _rounds_input(layer):
    """Whether a layer may round its input to fp8 or int8, which has no derivative; exact products are taken instead."""
    return isinstance(layer.weight, comfy.ops.QuantizedTensor) or isinstance(layer, comfy.ops.fp8_ops.Linear)


def _clone_input(_layer, args):
    return (args[0].clone(memory_format=torch.contiguous_format), *args[1:]) if args else None


@contextlib.contextmanager
def _differentiable_layers(root: torch.nn.Module, backward: bool):
    """Lets autograd run through loaded modules; they are as before when the block ends, however it ends.

    Networks that D runs beside the diffusion model (ControlNet, say) are prepared when they are first called.
    """
    prepared = set()
    with contextlib.ExitStack() as undo:

        def prepare(network, _args=None):
            if network in prepared:
                return
            for module in network.modules():
                if module not in prepared:
                    prepared.add(module)
                    _prepare(module, backward, undo)

        prepare(root)
        undo.callback(torch.nn.modules.module.register_module_forward_pre_hook(prepare).remove)
        yield


def _prepare(module: torch.nn.Module, backward: bool, undo: contextlib.ExitStack) -> None:
    """Make one module differentiable, forward and with `backward` backward; `undo` gets what puts it back."""
    if _is_recastable(module) and (backward or _rounds_input(module)):
        module.forward = functools.partial(_forward_without_weights, module)
        undo.callback(module.__dict__.pop, "forward")
        return
    if isinstance(module, torch.nn.GroupNorm):  # its forward AD needs a contiguous tangent
        undo.callback(module.register_forward_pre_hook(_clone_input).remove)
    if not backward:
        return
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
        # some blocks add to a norm's input in place afterwards; the norm's backward needs it as it was
        undo.callback(module.register_forward_pre_hook(_clone_input).remove)
    for kind in ("weight_function", "bias_function"):
        if hasattr(module, kind):  # inference tensors cannot be saved for backward; a copy can
            undo.callback(functools.partial(_restore, module, kind, module.__dict__.get(kind)))
            setattr(module, kind, [*getattr(module, kind), torch.clone])
    if not hasattr(module, "weight_function"):
        for store in (module._parameters, module._buffers):
            for name, tensor in list(store.items()):
                if tensor is not None and tensor.is_inference():
                    copy = tensor.detach().clone()
                    is_parameter = store is module._parameters
                    store[name] = torch.nn.Parameter(copy, requires_grad=False) if is_parameter else copy
                    undo.callback(store.__setitem__, name, tensor)


def _restore(module, name, value):
    if value is None:
        del module.__dict__[name]
    else:
        setattr(module, name, value)
