"""The folder core/ as a plain library: but for two modules, it needs torch and the standard library alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("comfy", "numpy", "safetensors", "PIL", "matplotlib", "diffusers", "transformers", "scipy")
NEED_MORE = {"direction_files": "safetensors", "contact_sheet": "PIL"}
# torch itself takes numpy where there is one, and does without where there is none
BLOCK = f"""
import importlib, sys, warnings

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Finder())
sys.path.insert(0, {str(ROOT)!r})
warnings.simplefilter("ignore")  # torch says that there is no numpy
"""
USE = """
import torch
from core import Denoiser, invert, Search, METHODS, AnchoredPrediction, NoisePaths, WordsMove

torch.manual_seed(0)
mix = {name: torch.randn(16, 16) / 8 for name in ("source", "target")}

def predict(x, sigma, prompt="source", guidance=1.0):
    return torch.tanh(x.flatten(1) @ mix[prompt].T).view_as(x)

denoiser = Denoiser(predict, lambda sigma: (1 - sigma, sigma))
x0 = denoiser(torch.randn(1, 1, 4, 4), 0.1)
x = invert(denoiser, x0, [0.2, 0.4, 0.6])
(move,) = METHODS["HSDS"].run(Search(denoiser, x, 0.6))
paths = NoisePaths(denoiser.noise_of(x, x0, 0.6))
moves = (WordsMove(strength=1.0, towards="target"),)
found = AnchoredPrediction(x0, paths, denoiser.noised, moves)(x, 0.6, denoiser.predictions)
assert torch.isfinite(found).all() and move.step > 0
"""


def run(script: str) -> str:
    """What a script prints where the blocked packages cannot be imported."""
    done = subprocess.run([sys.executable, "-c", BLOCK + script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", BLOCKED)
def test_what_is_blocked_is_blocked(name):
    script = f"try:\n    import {name}\nexcept ImportError as error:\n    print(error)"
    assert run(script).strip() == f"{name} is blocked"


def test_every_module_of_core_but_two_is_imported_without_them():
    modules = sorted(path.stem for path in (ROOT / "core").glob("*.py"))
    assert len(modules) > 10
    plain = [f"core.{name}" for name in modules if name not in ("__init__", *NEED_MORE)]
    script = f"""
import core
for name in {plain}:
    importlib.import_module(name)
for name, package in {NEED_MORE}.items():
    try:
        importlib.import_module(f"core.{{name}}")
    except ModuleNotFoundError as error:
        assert error.name.split(".")[0] == package, (name, error.name)
    else:
        raise AssertionError(f"{{name}} does not need {{package}}")
assert core.__file__ == {str(ROOT / "core" / "__init__.py")!r}, core.__file__
names = core.__all__
assert len(names) <= 15, len(names)
assert len(set(names)) == len(names)
assert not [name for name in names if getattr(core, name, None) is None]
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & set({BLOCKED}), loaded & set({BLOCKED})
print(*names)
"""
    assert {"Denoiser", "invert", "Search", "METHODS", "AnchoredPrediction"} <= set(run(script).split())


def test_it_encodes_searches_and_edits_without_them():
    run(USE)


def test_a_chart_says_that_matplotlib_is_missing():
    script = """
from core import charts, errors
for draw in (lambda: charts.bar_chart([("a", 1.0)]), charts.require_matplotlib):
    try:
        draw()
    except errors.MissingPackageError as error:
        print(error)
"""
    assert run(script).splitlines() == ["Charts need the Python package 'matplotlib', which is missing."] * 2
