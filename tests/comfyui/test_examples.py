"""examples/ run as they are, with torch and diffusers alone."""

import os
import re
import subprocess
import sys

from PIL import Image

from scripts.environment import ROOT

EXAMPLE = ROOT / "examples" / "diffusers_model.py"
# Refuses to import ComfyUI, then runs the example as the main program.
WITHOUT_COMFYUI = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "latent_preview"):
            raise ImportError("ComfyUI was imported: " + name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_diffusers_example(tmp_path):
    strip = tmp_path / "strip.png"
    command = [sys.executable, "-c", WITHOUT_COMFYUI, str(EXAMPLE), str(strip)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    evaluations = int(re.search(r"evaluations of the search: (\d+)", done.stdout)[1])
    assert 20 <= evaluations <= 200
    assert float(re.search(r"zero-strength difference: (\S+)", done.stdout)[1]) <= 1e-5
    with Image.open(strip) as picture:
        tiles = [picture.crop((128 * i, 14, 128 * (i + 1), 142)) for i in range(5)]
    assert len({tile.tobytes() for tile in tiles}) == 5
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60
