"""What a node shows while it works, how long a search is expected to be, and how much memory the work took."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..core.find import AUTOMATIC, DIFFERENCES, DOUBLE_BACKWARD, HSDS, LOCO, LOW_PASS, T_LOCO, Settings
from ..core.jacobian_directions import forward_products

# Seconds between two texts on the node.
INTERVAL = 0.5


def search_evaluations(settings: Settings, masked: bool) -> int:
    """Evaluations that a search is expected to take; only a progress bar depends on them.

    Sums of what each part takes by construction, but for the pairs of products with J and J' that a search needs, of
    four evaluations each: these depend on the model, and are those of the demo model. Random weights take two to three
    times as many.
    """
    backward = settings.derivatives in (AUTOMATIC, DOUBLE_BACKWARD)
    reverse = settings.method == T_LOCO or (settings.method in (LOCO, HSDS) and backward)
    check = (10 if reverse else 7) + 2 * (settings.derivatives in (DIFFERENCES, DOUBLE_BACKWARD))
    null_rank = settings.null_rank if masked else 0
    if settings.method == LOCO:
        if not reverse:
            return check + forward_products(check, 1, settings.count, null_rank)
        return round(check + 4 * (_pairs(null_rank) + _pairs(settings.count)))
    # the difference of the prompts; without guidance that of the source is known
    words = (1 if settings.guidance == 1 else 4) + settings.keep * (2 if settings.guidance == 1 else 4)
    if settings.method == T_LOCO:
        return round(check + words + 4 * _pairs(null_rank) + 5)
    filters = {HSDS: 32 if reverse else 16, LOW_PASS: check + 2}
    return check + words + filters.get(settings.method, 0) + 2  # and a product for the step of strength 1


def _pairs(count: int) -> float:
    """Pairs of products for so many singular vectors."""
    return min(60.0, 5 * count**0.6)


class SearchProgress:
    """A progress bar, over model evaluations or what else `unit` says, and a line on the node with the time left."""

    def __init__(self, expected: int, unit: str = "model evaluations"):
        """Expect about `expected` of them; more leave the bar full."""
        self.expected, self.unit = expected, unit
        self.started, self.shown = time.perf_counter(), 0.0
        self.bar = comfy.utils.ProgressBar(expected)
        context, self.server = get_executing_context(), getattr(PromptServer, "instance", None)
        self.node = context.node_id if context is not None else None

    def __call__(self, done: int, preview: tuple | None = None) -> None:
        """Show that `done` of them are over, and a picture (format, PIL image, largest side) where there is one."""
        self.bar.update_absolute(min(done, self.expected), preview=preview)
        now = time.perf_counter()
        if self.node is None or self.server is None or now - self.shown < INTERVAL or not done:
            return
        self.shown = now
        left = (now - self.started) * max(0, self.expected - done) / done
        text = f"{done} of about {self.expected} {self.unit}, {left:.0f} s left"
        self.server.send_progress_text(text, self.node)


def reset_peak(device: torch.device) -> None:
    """Start to measure peak memory, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_megabytes(model: ModelPatcher) -> float | None:
    """Peak memory on a model's CUDA device since `reset_peak`, in MB; None elsewhere, where torch does not know it.

    Torch knows the exact peak of its own memory, but not what dynamic VRAM maps beside it: buffers, and weights that
    within a run only give way as torch takes more, so that what is left at the end was there at torch's peak.
    """
    device = model.load_device
    if device.type != "cuda":
        return None
    beside = sum(weights.loaded_size() for weights in getattr(model.model, "dynamic_vbars", {}).values())
    buffers = getattr(comfy.model_management, "STREAM_AIMDO_CAST_BUFFERS", {})  # older ComfyUI has none
    beside += sum(buffer.size() for buffer in buffers.values())
    return round((torch.cuda.max_memory_allocated(device) + beside) / 1e6, 1)
