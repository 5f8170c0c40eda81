"""What the pack adds to ComfyUI's start."""

import json
import subprocess
import sys

from benchmarks.start import COMFYUI, PACK
from scripts.environment import ROOT

MOST = 0.05  # seconds
SHARE = 0.016  # of what ComfyUI itself imports: as much, on machines that are slower than that of the benchmarks


def test_the_pack_adds_at_most_50_ms_to_the_start(tmp_path):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.start", "--times", "10", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    (comfyui,) = (row["processor"] for row in rows if row["what"] == COMFYUI)
    pack = [row["processor"] for row in rows if row["what"] == PACK]
    assert len(pack) == 10
    assert min(pack) <= max(MOST, SHARE * comfyui)
