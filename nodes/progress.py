"""What a node shows while it works, and what the work took: evaluations, time and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from server import PromptServer

# Seconds between two texts on the node.
INTERVAL = 0.5


class SearchProgress:
    """A progress bar, over model evaluations or what else `unit` says, and a line on the node with the time left."""

    def __init__(self, expected: int, unit: str = "model evaluations"):
        """Expect about `expected` of them; more leave the bar full."""
        self.expected, self.unit = expected, unit
        self.started, self.shown = time.perf_counter(), 0.0
        self.bar = comfy.utils.ProgressBar(expected)

    def __call__(self, done: int, preview: tuple | None = None) -> None:
        """Show that `done` of them are over, and a picture (format, PIL image, largest side) where there is one."""
        self.bar.update_absolute(min(done, self.expected), preview=preview)
        now = time.perf_counter()
        if now - self.shown < INTERVAL or not done:
            return
        self.shown = now
        left = (now - self.started) * max(0, self.expected - done) / done
        show_line(f"{done} of about {self.expected} {self.unit}, {left:.0f} s left")


def show_line(text: str) -> None:
    """Show a line of text on the running node, in place of its last one; nothing where there is no server."""
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def result_line(count: int, what: str, seconds: float) -> str:
    """What came out and how long it took, such as "1 direction, 3 s"."""
    duration = "less than 1 s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{count} {what}{'' if count == 1 else 's'}, {duration}"


@dataclass
class RunStatistics:
    """What the sampling runs on one inversion have cost so far, and of the latest run alone what a report says.

    Attributes:
        last_peak_megabytes: peak memory on a CUDA device; None elsewhere.
        last_return_error: how far the sampler strays when it returns to the picture, relative, in the trial run before
            it; None where the run did not get as far.
        last_remarks: sentences on what was done to the MODEL for the run.
    """

    runs: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    last_evaluations: int = 0
    last_seconds: float = 0.0
    last_peak_megabytes: float | None = None
    last_return_error: float | None = None
    last_remarks: list[str] = field(default_factory=list)

    def add(
        self,
        evaluations: int,
        seconds: float,
        peak_megabytes: float | None,
        return_error: float | None,
        remarks: list[str],
    ) -> None:
        """Count one run, whether it came to its end or not."""
        self.runs += 1
        self.evaluations += evaluations
        self.seconds += seconds
        self.last_evaluations, self.last_seconds = evaluations, seconds
        self.last_peak_megabytes, self.last_return_error, self.last_remarks = peak_megabytes, return_error, remarks


class RunsCost:
    """What several sampling runs on one inversion cost together, from when this is made."""

    def __init__(self, statistics: RunStatistics):
        self._statistics = statistics
        self._before = statistics.evaluations, statistics.seconds
        self._peaks: list[float | None] = []
        self._remarks: list[str] = []

    def note(self) -> None:
        """Keep what is known of the latest run alone; to be called after each."""
        self._peaks.append(self._statistics.last_peak_megabytes)
        self._remarks += self._statistics.last_remarks

    def report(self) -> dict:
        """The entries of a report."""
        statistics, (evaluations, seconds) = self._statistics, self._before
        cost = {
            "model_evaluations": statistics.evaluations - evaluations,
            "seconds": round(statistics.seconds - seconds, 3),
            "peak_megabytes": None if None in self._peaks else max(self._peaks),
        }
        return cost | ({"remarks": list(dict.fromkeys(self._remarks))} if self._remarks else {})


def sum_of_costs(*costs: dict) -> dict:
    """The notes of several runs as those of one: evaluations and seconds added, the highest peak, all remarks.

    Of all else the last counts.
    """
    total = {"model_evaluations": 0, "seconds": 0.0, "peak_megabytes": None}
    costs = [cost for cost in costs if cost]
    for cost in costs:
        peaks = [one["peak_megabytes"] for one in (total, cost) if one["peak_megabytes"] is not None]
        total |= cost | {
            "model_evaluations": total["model_evaluations"] + cost["model_evaluations"],
            "seconds": round(total["seconds"] + cost["seconds"], 3),
            "peak_megabytes": max(peaks, default=None),
        }
    remarks = list(dict.fromkeys(remark for cost in costs for remark in cost.get("remarks", [])))
    return total | ({"remarks": remarks} if remarks else {})


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
