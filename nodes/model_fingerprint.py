"""A fingerprint of a MODEL, by which a direction says on which of a family's models it was found.

What is guaranteed:
- The same weights give the same fingerprint on every device, loaded, offloaded or not loaded at all: few values are
  read where they are, and nothing is moved or changed.
- LoRA and merges (patches on a MODEL, LoRA hooks) do not count: where ComfyUI has put them into the weights, the
  weights that it keeps aside are read. A model that was saved with them in it is another.
- A model stored with less precision (fp8, int8, 4 bits) is not told from the whole one, as long as its parameters have
  the same names and shapes: both say how far their formats round, and only differences beyond that count. So a
  fine-tune that changes the weights by less than that is not told from its base either.
- Weights that PyTorch cannot read as numbers (GGUF) are left out; then the structure alone is compared.
"""

from __future__ import annotations

import hashlib
import math
import weakref

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.direction import Fingerprint

PARAMETERS, VALUES = 12, 8  # how many are sampled, and values of each
DIGITS = 5  # of a value
# What formats may round a parameter's values by, relative to their norm: those of two bytes or more, and the others.
FINE, COARSE = 2**-7, 2**-2
# Parameters that belong to a format, not to the model.
OF_A_FORMAT = {"weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "scale_weight", "scale_input"}

_known: weakref.WeakKeyDictionary[torch.nn.Module, Fingerprint] = weakref.WeakKeyDictionary()


def fingerprint_of(model: ModelPatcher) -> Fingerprint:
    """The fingerprint of a MODEL's diffusion model; computed once for all clones of a MODEL."""
    if model.model not in _known:
        _known[model.model] = _fingerprint(model)
    return _known[model.model]


def _fingerprint(model: ModelPatcher) -> Fingerprint:
    parameters = {
        name.replace("_orig_mod.", ""): _unpatched(model, f"diffusion_model.{name}", parameter)
        for name, parameter in model.model.diffusion_model.named_parameters()
        if name.rpartition(".")[2] not in OF_A_FORMAT
    }
    parameters = dict(sorted(parameters.items()))
    structure = "\n".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters.items())
    # changes of a model are in its matrices first of all
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    sampled = [matrices[place] for place in _places(len(matrices), PARAMETERS)]
    return Fingerprint(
        hashlib.sha256(structure.encode()).hexdigest(),
        tuple(map(_values, sampled)),
        max(map(_rounding, sampled), default=0.0),
    )


def _places(length: int, count: int) -> list[int]:
    """At most `count` places in a row of this length, evenly spread."""
    count = min(count, length)
    return [(2 * number + 1) * length // (2 * count) for number in range(count)]


def _unpatched(model: ModelPatcher, key: str, parameter: Tensor) -> Tensor:
    """A parameter without the patches that ComfyUI has put into it; it keeps the parameter as it was."""
    if key in model.backup:
        return model.backup[key].weight
    if key in model.hook_backup:
        return model.hook_backup[key][0]
    return parameter


@torch.no_grad()
def _values(parameter: Tensor) -> tuple[float, ...]:
    """Values at fixed places of a parameter; none where it cannot be read as numbers."""
    if not parameter.is_floating_point():
        return ()
    places = torch.tensor(_places(parameter.numel(), VALUES))
    try:
        if isinstance(parameter, comfy.ops.QuantizedTensor):
            parameter = parameter.cpu().dequantize()
        values = parameter[torch.unravel_index(places, parameter.shape)].double().tolist()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):  # formats of other nodes
        return ()
    return tuple(float(f"{value:.{DIGITS}g}") for value in values) if all(map(math.isfinite, values)) else ()


def _rounding(parameter: Tensor) -> float:
    """What the format of a parameter may round its values by."""
    quantised = isinstance(parameter, comfy.ops.QuantizedTensor)
    return COARSE if quantised or parameter.element_size() == 1 else FINE
