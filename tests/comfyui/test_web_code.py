"""The page's own code, web/*.js: its types, a linter, and its size; tests/web/package-lock.json pins the tools."""

import shutil
import subprocess

import pytest

from scripts.environment import ROOT, has_stamp, write_stamp

TOOLS = ROOT / "tests" / "web"
CODE = sorted((ROOT / "web").glob("*.js"))
LARGEST = 100_000  # bytes that the page loads of all files together
COMMANDS = {
    "types": ["tsc", "--project", "tests/web/tsconfig.json"],
    "linter": ["oxlint", "--config", "tests/web/oxlint.json", "--deny-warnings", "web"],
}


@pytest.fixture(scope="module")
def programs():
    """The folder with the programs; npm installs them when they are missing or have other versions."""
    modules, lock = TOOLS / "node_modules", (TOOLS / "package-lock.json").read_text(encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.fail("The checks of web/*.js need Node.js 18 or newer and npm: install the packages 'nodejs' and 'npm'.")
    if not (modules.is_dir() and has_stamp(modules, lock)):
        done = subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=TOOLS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        write_stamp(modules, lock)
    return modules / ".bin"


@pytest.mark.parametrize("check", COMMANDS)
def test_types_and_linter_find_nothing(programs, check):
    program, *arguments = COMMANDS[check]
    done = subprocess.run([str(programs / program), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_code_of_the_page_is_small():
    assert CODE
    assert sum(path.stat().st_size for path in CODE) <= LARGEST
