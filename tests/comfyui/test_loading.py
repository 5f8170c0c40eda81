"""How ComfyUI loads the pack: by path, from a folder whose name is no Python name, beside modules of the same names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.comfy_server import link_folder
from scripts.environment import ROOT, ensure

NODE_IDS = {
    f"LatentDirections_{name}"
    for name in (
        "InvertImage",
        "FindDirections",
        "FindCommonDirections",
        "CombineDirections",
        "TransferDirection",
        "DirectionSlider",
        "ApplySliders",
        "PrepareQuickSlider",
        "QuickSlider",
        "SliderStrip",
        "SliderBoard",
        "PreviewDirections",
        "PlotDirections",
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
assert not [name for name in ("core", "demo", "decoyed", "diffusers", "matplotlib") if name in sys.modules]
print(*found)
"""
IMPORT_ALL = """
import importlib
from pathlib import Path
pack = Path({pack!r})
entry = str(pack / "__init__.py")
name = next(name for name, module in sys.modules.items() if getattr(module, "__file__", None) == entry)
for path in (path for folder in ("core", "nodes", "demo") for path in (pack / folder).glob("*.py")):
    importlib.import_module(f"{{name}}.{{path.parent.name}}.{{path.stem}}")
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


def git_files(*options: str) -> set[str]:
    """Paths of tracked files; those of a pattern file's rules with -i."""
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A repository whose version changes in the last commit but one, and its commits by what they hold."""
    folder, commits = tmp_path_factory.mktemp("pushed"), {}
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "-q"], check=True)
    for name, version in (("old", "0.1.0"), ("new version", "0.2.0"), ("later", "0.2.0")):
        (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n# {name}\n', encoding="utf-8")
        subprocess.run([*git, "add", "pyproject.toml"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", name], check=True)
        shown = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        commits[name] = shown.stdout.strip()
    return folder, commits


@pytest.mark.skipif(os.name == "nt", reason="GitHub runs it with bash")
@pytest.mark.parametrize(
    ("before", "publishes"),
    [("old", True), ("new version", False), ("0" * 40, True), ("", True)],
    ids=["version and a later commit", "later commit alone", "new branch", "started by hand"],
)
def test_a_push_with_another_version_is_published(pushed, tmp_path, before, publishes):
    folder, commits = pushed
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    script = next(step["run"] for step in workflow["jobs"]["publish"]["steps"] if step.get("id") == "version")
    output = tmp_path / "output"
    output.touch()
    variables = {**os.environ, "BEFORE": commits.get(before, before), "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=folder, env=variables, check=True)
    assert output.read_text(encoding="utf-8") == ("publish=true\n" if publishes else "")


def test_what_is_published_is_whole_and_loads(tmp_path):
    """The files that `comfy node pack` packs: all tracked ones that .comfyignore, in Git's pattern format, leaves."""
    published = git_files() - git_files("-i", "-c", "--exclude-from=.comfyignore")
    for name in published:
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "pack" / name)
    pack = str(tmp_path / "pack")
    code = LOAD.format(comfyui=str(ensure().comfyui), decoys=str(tmp_path), base=str(tmp_path), pack=pack)
    assert set(python(code + IMPORT_ALL.format(pack=pack)).split()) == NODE_IDS
    users = ("web/", "locales/", "example_workflows/", "subgraphs/", "docs/examples/", "docs/workflows/", "core/")
    users += ("nodes/", "demo/weights/")
    assert {name for name in git_files() - published if name.startswith(users)} == set()
    makers = ("tests/", "benchmarks/", "scripts/", ".github/", "demo/train_")
    assert {name for name in published if name.startswith(makers)} == set()
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    pictures = {link for link in links if link.endswith(".webp")}
    folders = {link for link in links if any(name.startswith(f"{link}/") for name in published)}
    assert set(links) - pictures - folders - published == set()
