"""What the training scripts share: finding ComfyUI, a schedule over wall time, an average of the weights."""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
POOL_SEED, HELD_OUT_SEED = 1, 90001


def arguments(description: str, minutes: float) -> argparse.ArgumentParser:
    """The options that every training script takes."""
    parser = argparse.ArgumentParser(description=description)
    comfyui_option(parser)
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "demo", help="folder for the new weights")
    parser.add_argument("--resume", type=Path, help="folder with weights to start from (demo/weights)")
    parser.add_argument("--minutes", type=float, default=minutes, help="wall time; the schedule follows it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def comfyui_option(parser: argparse.ArgumentParser) -> None:
    """The option that names ComfyUI's folder."""
    parser.add_argument("--comfyui", help="ComfyUI's folder (default: COMFYUI_PATH, then the project's own copy)")


def use_comfyui(path: str | None) -> None:
    """Make ComfyUI importable, on the CPU where there is no GPU; ends with a sentence where there is none."""
    from scripts.environment import SetupError, add_comfyui_to_path, ensure

    if path:
        os.environ["COMFYUI_PATH"] = path
    try:
        add_comfyui_to_path(ensure(), ROOT / ".run" / "in-process")
    except SetupError as error:
        sys.exit(f"error: {error}")


def prepare(options) -> None:
    """Seed everything and set the number of threads."""
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # tiny moments in the optimizer halve the speed of a CPU
    options.out.mkdir(parents=True, exist_ok=True)


def save(weights: dict, path: Path) -> None:
    """Write weights in float16, single numbers such as the VAE's scale in float32."""
    import safetensors.torch

    stored = {k: v.detach().half() if v.dim() else v.detach().float() for k, v in weights.items()}
    safetensors.torch.save_file({k: v.contiguous() for k, v in stored.items()}, path)


class WallClock:
    """Steps until a wall time is over; the learning rate warms up, then follows a cosine of the elapsed share."""

    def __init__(self, minutes: float, rate: float, optimizer, warmup: int = 100) -> None:
        """Start the clock."""
        self.begin, self.seconds, self.rate = time.time(), minutes * 60, rate
        self.optimizer, self.warmup, self.steps = optimizer, warmup, 0

    @property
    def share(self) -> float:
        """Elapsed share of the time, 0 to 1."""
        return min((time.time() - self.begin) / self.seconds, 1.0)

    def __iter__(self):
        """Yield step numbers and set the learning rate before each."""
        while self.share < 1.0:
            factor = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.share))
            factor *= min(1.0, (self.steps + 1) / self.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            yield self.steps
            self.steps += 1

    def report(self, text: str) -> None:
        """Print a line with the step and the elapsed time."""
        elapsed = time.time() - self.begin
        pace = elapsed / max(self.steps, 1)
        print(f"{elapsed / 60:6.1f} min  step {self.steps:6d}  {pace:.3f} s/step  {text}", flush=True)


class Average:
    """An exponential average of a module's weights; early steps count less."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        """Copy the module."""
        self.module, self.decay, self.steps = copy.deepcopy(module).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Move the average towards the module's present weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        mine, theirs = list(self.module.parameters()), [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(mine, theirs, share)
