"""A server that cannot start, dies or has lost the pack: real processes with real faults."""

import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.comfy_server import Server, ServerError
from scripts.environment import ROOT, Environment, ensure

SLEEP = {"1": {"class_type": "EmptyImage", "inputs": {"width": 4096, "height": 4096, "batch_size": 8, "color": 1}}}
BLUR = {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 10.0}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}


def test_busy_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} is in use by another program.*--port"):
            Server(ensure(), port=port)


def test_server_that_dies_while_starting_shows_its_log(tmp_path):
    (tmp_path / "main.py").write_text("print('reading models')\nraise SystemExit('the disk is full')\n")
    with Server(Environment(ensure().python, tmp_path)) as server, pytest.raises(ServerError) as error:
        server.wait()
    assert "ended with status 1 while starting" in str(error.value)
    assert "reading models" in str(error.value)
    assert "the disk is full" in str(error.value)
    assert not server.run_folder.exists()


def test_server_that_never_answers(tmp_path):
    (tmp_path / "main.py").write_text("import time\nprint('waiting')\ntime.sleep(60)\n")
    with Server(Environment(ensure().python, tmp_path)) as server, pytest.raises(ServerError, match="did not answer"):
        server.wait(timeout=1.5)
    assert server.process.poll() is not None


def test_pack_that_fails_to_load_then_a_server_that_dies_in_a_prompt(tmp_path):
    shutil.copy(ROOT / "__init__.py", tmp_path)
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "__init__.py").write_text("raise RuntimeError('broken on purpose')\n")
    with Server(ensure(), pack=tmp_path) as server:
        with pytest.raises(ServerError) as error:
            server.wait()
        assert "failed to load" in str(error.value)
        assert "Traceback" in str(error.value)
        assert "broken on purpose" in str(error.value)
        assert "comfy_entrypoint" in str(error.value)

        threading.Thread(target=lambda: (time.sleep(1.5), server.process.kill())).start()
        with pytest.raises(ServerError, match="while a prompt ran"):
            server.run({**SLEEP, "2": BLUR, "3": SAVE})


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_existing_comfyui_stays_as_it_is(monkeypatch, tmp_path):
    own = tmp_path / "ComfyUI"
    shutil.copytree(ensure().comfyui, own, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    before = files(own)
    environment = ensure()
    assert environment.comfyui == own
    with Server(environment) as server:
        server.wait()
        image = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}}
        server.run({"2": image, "3": SAVE})
    assert files(own) == before
