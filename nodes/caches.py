"""Caches on a MODEL, which answer without running its network: known ones are taken off, others are noticed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ..core.denoiser import EvaluationCounter
from .errors import CachedModelError

# ComfyUI's step caches by the keys of their wrappers.
STEP_CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
EXPERTS = "experts"  # the name under which models hold the list of them
CACHED = (
    "The model answered without running its network: a cache node (such as EasyCache or LazyCache) sits on the MODEL. "
    "Connect the model from before that node."
)


def drop_step_caches(wrappers: dict[str, dict[str, list]]) -> list[str]:
    """Take step caches off a MODEL's or a run's own wrappers: they answer for one path where we ask for several.

    Returns:
        A sentence for a report that says which were taken off; empty where there were none.
    """
    dropped = {key for of_kind in wrappers.values() for key in STEP_CACHES if of_kind.pop(key, None)}
    if not dropped:
        return []
    names = " and ".join(STEP_CACHES[key] for key in sorted(dropped))
    return [f"{names} on the MODEL was left out: it reuses earlier answers, and here each must be the model's own."]


class CacheDetector:
    """Notices a cache: every call must run the network, and the layers that the first call of its kind ran.

    Layers in a list of experts (mixture of experts) are ignored: which of them run depends on the input.
    """

    def __init__(self, network: torch.nn.Module, counter: EvaluationCounter):
        """Watch `network`, whose forwards `counter` counts."""
        self._counter = counter
        experts = [module for name, module in network.named_modules() if name.rpartition(".")[2] == EXPERTS]
        self._watched = set(network.modules()).difference(*(list_of_them.modules() for list_of_them in experts))
        self._layers: dict[Hashable, set[torch.nn.Module]] = {}

    @contextmanager
    def watch(self, kind: Hashable) -> Iterator[None]:
        """Around one call; calls of one kind run the same layers.

        Raises:
            CachedModelError: the network did not run, or not the layers that it ran before.
        """
        before, called = self._counter.forwards, set()
        hook = register_module_forward_pre_hook(lambda module, _inputs: called.add(module))
        try:
            yield
        finally:
            hook.remove()
        # What runs beside the network may run once and be kept: a ControlNet encodes its hint at the first call alone.
        called.intersection_update(self._watched)
        first = self._layers.setdefault(kind, called)
        ran_nothing = self._counter.forwards == before
        if ran_nothing or called != first or (called is first and _runs_no_inner_layer(called)):
            raise CachedModelError(CACHED)


def _runs_no_inner_layer(called: set[torch.nn.Module]) -> bool:
    """Whether a network was called whose own layers were not: a cache sits inside it."""
    inner = {part for network in called for part in list(network.modules())[1:]}
    return any(
        list(network.children()) and not any(part in called for part in list(network.modules())[1:])
        for network in called
        if network not in inner
    )
