"""What a long search shows while it runs, and how much memory it took."""

from __future__ import annotations

import time

import comfy.utils
import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

# Seconds between two texts on the node.
INTERVAL = 0.5


class SearchProgress:
    """A progress bar over model evaluations, and a line on the node with the time left."""

    def __init__(self, expected: int):
        """Expect about `expected` evaluations; more of them leave the bar full."""
        self.expected, self.started, self.shown = expected, time.perf_counter(), 0.0
        self.bar = comfy.utils.ProgressBar(expected)
        context, self.server = get_executing_context(), getattr(PromptServer, "instance", None)
        self.node = context.node_id if context is not None else None

    def __call__(self, done: int) -> None:
        """Show that `done` evaluations are over."""
        self.bar.update_absolute(min(done, self.expected))
        now = time.perf_counter()
        if self.node is None or self.server is None or now - self.shown < INTERVAL or not done:
            return
        self.shown = now
        left = (now - self.started) * max(0, self.expected - done) / done
        text = f"{done} of about {self.expected} model evaluations, {left:.0f} s left"
        self.server.send_progress_text(text, self.node)


def reset_peak(device: torch.device) -> None:
    """Start to measure peak memory, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_megabytes(device: torch.device) -> float | None:
    """Peak memory of torch on a CUDA device since `reset_peak`, in MB; None elsewhere, where torch does not know it."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None
