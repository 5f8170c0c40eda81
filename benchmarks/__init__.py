"""Benchmarks and the soak test: `python -m benchmarks.<name>` from the repository root (see benchmarks/README.md)."""

import sys

from scripts.environment import ROOT, add_comfyui_to_path, enter, register_package

add_comfyui_to_path(enter(), ROOT / ".run" / "in-process")
register_package()
# the tools of an artist's own ComfyUI, which scripts/test.py installs; hypothesis is among them
sys.path.append(str(ROOT / ".tools"))
