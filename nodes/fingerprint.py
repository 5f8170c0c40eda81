"""What a cached prediction depends on, as a key: equal keys mean that nothing that matters has changed."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .prompts import KEY, digest

# All of a MODEL that nodes may set and its predictions depend on, besides the network itself and `patches_uuid`.
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
# Of a guider: what belongs to one run, and what is looked at on its own.
OF_A_RUN = ("conds", "model_options", "inner_model", "loaded_models", "original_conds")


class _Identity:
    """Compares by identity and keeps its object alive, so that an id cannot be taken over by another object."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self):
        return id(self.value)


def settings_of(guider: comfy.samplers.CFGGuider, denoise_mask: Tensor | None) -> tuple:
    """All that a reference prediction of a run depends on besides the picture: guidance, other prompts, models, mask.

    An object that a node makes anew counts as another one, so what cannot be compared is computed again. What this pack
    itself has put there does not count. It is asked for before the run has changed the guider.
    """
    prompts = {name: conds for name, conds in guider.original_conds.items() if name != "positive"}
    settings = {name: value for name, value in vars(guider).items() if name not in OF_A_RUN}
    return (*_leaves(prompts), *_leaves(settings), None if denoise_mask is None else digest(denoise_mask))


def _leaves(value) -> Iterator:
    if isinstance(value, ModelPatcher):
        yield _Identity(value.model)
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
        yield value if isinstance(value, (str, int, float, type(None))) else _Identity(value)
