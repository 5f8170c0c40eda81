"""The tests' small random-weight models, for benchmarks that span model families."""

import sys

from scripts.environment import ROOT

sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("comfyui", "core")]
from families import MANY, conditioning, randomise, sd3  # noqa: E402
from more_families import MORE  # noqa: E402
from node_runs import HashingClip  # noqa: E402

__all__ = ["MANY", "MORE", "HashingClip", "conditioning", "randomise", "sd3"]
