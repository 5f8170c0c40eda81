"""Run ruff and the whole test suite in the project's own environment: python scripts/test.py [pytest arguments].

The tests of `core` come first, which need no ComfyUI; then the others. With arguments pytest runs once, with these.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, SetupError, enter, tools_folder

IN_PARALLEL = ["--numprocesses", "2", "--dist", "loadgroup"]


def main() -> int:
    """Return the exit status: of ruff where it finds something, else of pytest."""
    environment = enter()
    try:
        tools = tools_folder(environment)
    except SetupError as error:
        sys.exit(f"error: {error}")
    # two processes of tests and a server share the cores: with more threads each they would wait for one another
    variables = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(tools)} if tools else {})
    suites = [sys.argv[1:]] if sys.argv[1:] else [[*IN_PARALLEL, folder] for folder in ("tests/core", "tests/comfyui")]
    for command in (["ruff", "check", "."], *(["pytest", *arguments] for arguments in suites)):
        print("$", *command, flush=True)
        status = subprocess.run(
            [str(environment.python), "-m", *command], cwd=ROOT, env=variables, check=False
        ).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
