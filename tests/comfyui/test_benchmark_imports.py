"""Every benchmark starts outside of pytest, whose search path would hide a module that it does not find."""

import os
import subprocess
import sys

from scripts.environment import ROOT


def test_every_benchmark_can_be_imported():
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "benchmarks").rglob("*.py"))
    names = sorted(".".join(path.parts) for path in paths if not path.stem.startswith("__"))
    command = [sys.executable, "-c", "".join(f"import {name}\n" for name in names)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
