"""What a cached prediction depends on, as a key: equal keys mean that nothing that matters has changed."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.samplers


class _Identity:
    """Compares by identity and keeps its object alive, so that an id cannot be taken over by another object."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self):
        return id(self.value)


def settings_of(guider: comfy.samplers.CFGGuider, mask_digest: str | None, own_key: str) -> tuple:
    """All that a reference prediction depends on besides the picture: guidance, negative prompt, patches, options.

    Options under `own_key`, which this pack has put there, do not count.
    """
    numbers = tuple(sorted((k, v) for k, v in vars(guider).items() if isinstance(v, (int, float))))
    others = {name: conds for name, conds in guider.original_conds.items() if name != "positive"}
    return (
        numbers,
        guider.model_patcher.patches_uuid,
        *_leaves(others, own_key),
        *_leaves(guider.model_patcher.model_options, own_key),
        mask_digest,
    )


def _leaves(value, own_key: str) -> Iterator:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in (own_key, "uuid"):  # ours, and a number that ComfyUI draws anew at every run
                yield key
                yield from _leaves(item, own_key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, own_key)
    else:
        yield value if isinstance(value, (str, int, float, type(None))) else _Identity(value)
