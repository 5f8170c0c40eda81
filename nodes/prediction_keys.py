"""What a cached prediction depends on, as a key: equal keys mean that nothing that matters has changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .prompts import KEY, digest

# The attributes of a ModelPatcher that nodes set and predictions depend on, besides the network and `patches_uuid`.
SET_BY_NODES = (
    "object_patches",
    "weight_wrapper_patches",
    "model_options",
    "attachments",
    "additional_models",
    "callbacks",
    "wrappers",
    "injections",
    "hook_patches",
    "forced_hooks",
    "force_cast_weights",
)
# The attributes of a guider that are left out: those of a single run, and those that are compared on their own.
OF_A_RUN = ("conds", "model_options", "inner_model", "loaded_models", "original_conds")


class Identity:
    """Compares by identity. An object that is gone equals nothing: its id may be another object's by then.

    Models and prompts are not kept alive by the keys of a cache.
    """

    def __init__(self, value):
        self._id = id(value)
        try:
            self._value = weakref.ref(value)
        except TypeError:  # objects of a few built-in types, all small
            self._value = lambda: value

    def __eq__(self, other):
        return isinstance(other, Identity) and self._value() is not None and self._value() is other._value()

    def __hash__(self):
        return self._id


def settings_of_run(guider: comfy.samplers.CFGGuider, sigmas: Tensor, denoise_mask: Tensor | None) -> tuple:
    """All that a reference prediction depends on besides the picture: guidance, other prompts, models, schedule, mask.

    Some models look at the next noise level of the schedule, and context windows at the step.

    Objects are compared by identity, so that what a node makes anew is computed again. What this pack itself has put
    there does not count. To be called before the guider's own sampling, which changes it; LoRA hooks have been prepared
    anew for the run by then, so that runs with them share nothing.
    """
    prompts = {name: conds for name, conds in guider.original_conds.items() if name != "positive"}
    settings = {name: value for name, value in vars(guider).items() if name not in OF_A_RUN}
    mask = None if denoise_mask is None else digest(denoise_mask)
    return (*_leaves(prompts), *_leaves(settings), tuple(sigmas.tolist()), mask)


def settings_of_search(model: ModelPatcher, prompts: dict[str, list]) -> tuple:
    """All that a prediction outside a sampling run depends on besides the picture: the model, and other prompts."""
    return (*_leaves(model), *_leaves(prompts))


def _leaves(value) -> Iterator:
    if isinstance(value, ModelPatcher):
        yield Identity(value.model)
        yield value.patches_uuid
        yield from _leaves({name: getattr(value, name, None) for name in SET_BY_NODES})
    elif isinstance(value, dict):
        yield len(value)
        for key, item in value.items():
            if key not in (KEY, "uuid"):  # ours, and a number that ComfyUI draws anew at every run
                yield key
                yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        yield len(value)
        for item in value:
            yield from _leaves(item)
    else:
        by_value = isinstance(value, (str, int, float, type(None), torch.device, torch.dtype))
        yield value if by_value else Identity(value)
