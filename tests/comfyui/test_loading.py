"""How ComfyUI loads the pack: by path, from a folder whose name is no Python name, beside modules of the same names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.comfy_server import link_folder
from scripts.environment import ROOT, ensure

NODE_IDS = {
    f"LatentDirections_{name}"
    for name in (
        "InvertImage",
        "FindDirections",
        "CombineDirections",
        "TransferDirection",
        "DirectionSlider",
        "ApplySliders",
        "PrepareQuickSlider",
        "QuickSlider",
        "SliderStrip",
        "PreviewDirections",
        "EditReport",
        "MeasureWords",
        "MeasureDisentanglement",
        "MeasureDemo",
        "SaveDirection",
        "LoadDirection",
        "LoadDiffusersModel",
        "LoadDemoModel",
        "DemoPortrait",
    )
}
LOAD = """
import asyncio, sys
sys.path[:0] = [{comfyui!r}]
sys.path.append({decoys!r})
from comfy.cli_args import args
args.cpu, args.base_directory = True, {base!r}
import nodes
assert asyncio.run(nodes.load_custom_node({pack!r})), "the loader reported a failure"
found = sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("LatentDirections_"))
assert not [name for name in ("core", "demo", "decoyed", "diffusers") if name in sys.modules]
print(*found)
"""


def python(code: str, **variables) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def decoys(tmp_path) -> Path:
    """Modules with the names of ours, on the path; importing one of them leaves a trace."""
    folder = tmp_path / "decoys"
    folder.mkdir()
    for name in ("nodes", "core", "demo"):
        (folder / f"{name}.py").write_text("import sys\nsys.modules['decoyed'] = True\nraise ImportError('a decoy')\n")
    return folder


def test_comfyui_loads_the_pack_from_a_hyphenated_folder_beside_decoys(tmp_path, decoys):
    pack = tmp_path / "latent-directions-main.v1"
    link_folder(pack, ROOT)
    code = LOAD.format(comfyui=str(ensure().comfyui), decoys=str(decoys), base=str(tmp_path), pack=str(pack))
    assert set(python(code).split()) == NODE_IDS


def test_importing_the_package_imports_nothing_else():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from scripts.environment import register_package; "
        "before = set(sys.modules); register_package(); print(*sorted(set(sys.modules) - before))"
    )
    assert python(code).split() == ["latent_directions"]
