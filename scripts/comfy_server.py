"""A headless ComfyUI of our own.

The server gets a fresh run folder (models, input, output, custom_nodes, user) under `.run`, so that nothing is written
into the ComfyUI it is started from and two servers never share a folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
from pathlib import Path

from scripts.comfy_client import Client, Result
from scripts.environment import ROOT, Environment, tail

PACK_FOLDER = "latent-directions"
READY_NODE = "LatentDirections_InvertImage"


class ServerError(Exception):
    """ComfyUI could not be started or has gone; the message holds the end of its log."""


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise ServerError where something listens on the port already."""
    with socket.socket() as probe:
        if os.name != "nt":  # a port that was closed a moment ago is usable, as ComfyUI's own server finds
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            message = f"Port {port} is in use by another program ({error.strerror}). Choose another with --port."
            raise ServerError(message) from error


def link_folder(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`: a symbolic link, on Windows a junction (which needs no rights)."""
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True)
    else:
        link.symlink_to(target, target_is_directory=True)


def run_folder(pack: Path) -> Path:
    """Return a new folder with everything that ComfyUI writes to, and `pack` as its only custom node pack."""
    (ROOT / ".run").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=ROOT / ".run", prefix="server-"))
    for name in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (folder / name).mkdir()
    link_folder(folder / "custom_nodes" / PACK_FOLDER, pack)
    return folder


def pack_failure(log: str) -> str:
    """Return the traceback of the pack from ComfyUI's log, or the log's end where there is none."""
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if line.strip() == "Traceback (most recent call last):"]
    ends = [i for i, line in enumerate(lines) if PACK_FOLDER in line and ("Cannot import" in line or "Error" in line)]
    if not starts:
        return tail(log)
    start = max((i for i in starts if not ends or i < ends[-1]), default=starts[-1])
    stop = next((i for i in ends if i > start), start + 40)
    return "\n".join(lines[start : stop + 1])


class Server:
    """A running ComfyUI; use it as a context manager, which stops it and removes its run folder."""

    def __init__(self, environment: Environment, pack: Path = ROOT, port: int | None = None):
        """Prepare the run folder and start ComfyUI with `pack` as its only custom node pack; does not wait."""
        self.port = port or free_port()
        check_port(self.port)
        options = ["--listen", "127.0.0.1", "--port", str(self.port), "--database-url", "sqlite:///:memory:"]
        options += ["--disable-api-nodes", "--disable-auto-launch", *([] if cuda_is_available() else ["--cpu"])]
        variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.run_folder = run_folder(pack)
        self.log_path = self.run_folder / "comfyui.log"
        command = [str(environment.python), str(environment.comfyui / "main.py")]
        command += ["--base-directory", str(self.run_folder), *options]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=self.run_folder
            )
        self.client = Client(f"http://127.0.0.1:{self.port}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def log(self) -> str:
        """Everything ComfyUI has written so far, without its colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_text(encoding="utf-8", errors="replace"))

    def wait(self, timeout: float = 300.0) -> Server:
        """Wait until the pack's nodes are there; raises ServerError with the log where they will not be."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(self.ended("while starting"))
            with contextlib.suppress(OSError, urllib.error.URLError, json.JSONDecodeError):
                # ComfyUI loads custom nodes before it answers, so its first answer is final.
                if not self.client.object_info(READY_NODE):
                    message = f"ComfyUI runs, but the pack Latent Directions failed to load:\n{pack_failure(self.log)}"
                    raise ServerError(message)
                return self
            time.sleep(0.2)
        message = f"ComfyUI did not answer within {timeout:.0f} seconds. The end of its log:\n{tail(self.log, 25)}"
        raise ServerError(message)

    def run(self, prompt: dict, *arguments, **options) -> Result:
        """Run a prompt as Client.run does; a server that dies meanwhile is reported with the end of its log."""
        try:
            return self.client.run(prompt, *arguments, **options)
        except (OSError, urllib.error.URLError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            if self.process.poll() is None:
                raise
            raise ServerError(self.ended("while a prompt ran")) from error

    def ended(self, when: str) -> str:
        """Word the end of a server that was not asked to stop."""
        return f"ComfyUI ended with status {self.process.returncode} {when}:\n{tail(self.log, 25)}"

    def stop(self) -> None:
        """Stop ComfyUI and remove its run folder; the pack itself is only linked there."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        link = self.run_folder / "custom_nodes" / PACK_FOLDER
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(link) if os.name == "nt" else link.unlink()
        shutil.rmtree(self.run_folder, ignore_errors=True)


def cuda_is_available() -> bool:
    """Say whether ComfyUI can use an NVIDIA GPU here."""
    import torch

    return torch.cuda.is_available()
