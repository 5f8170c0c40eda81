"""A live ComfyUI under test: queue prompts, wait without trusting the server, notice its death, start it again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
import threading
import time
import urllib.error
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from PIL import Image

from benchmarks.process_memory import memory_of
from benchmarks.soak.outcomes import (
    CANCELLED,
    DEAD_SERVER,
    DEAD_WORKER,
    STUCK,
    TOO_LONG,
    Outcome,
    of_error,
    of_refusal,
    of_results,
)
from scripts.comfy_server import Server
from scripts.environment import ROOT

MARK = "soak-stray"  # in every path-like name, so that a file written anywhere can be told from others
# What the server may write, below its run folder.
ALLOWED = ("output", "temp", "models/latent_directions", "comfyui.log", "custom_nodes")
SPARE_ADDRESS_SPACE = 6 << 30  # bytes that hostile prompts may ask for before the system refuses
AFTER_CANCEL = 20.0  # seconds that a cancelled prompt may take to end
ENDED = (STUCK, DEAD_WORKER, DEAD_SERVER)


@dataclass
class Reply:
    """The end of one prompt: what went wrong with it or the server, or its entry in the history."""

    failed: Outcome | None
    history: dict | None
    seconds: float
    interrupted_at: str = ""  # class of the node that was cancelled

    @property
    def outputs(self) -> dict:
        """Outputs per node id."""
        return self.history["outputs"] if self.history else {}


class Live:
    """One ComfyUI, started again whenever a prompt has ended it; use as a context manager."""

    def __init__(self, start: Callable[[], Server], server: Server | None = None):
        """Use `server`, which stays the caller's own, or one that `start` gives."""
        self._start, self._lent, self.restarts = start, server, 0
        self.server = server or start().wait()
        self._prepare()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_):
        self._release()

    def _prepare(self) -> None:
        """Limit the server's address space, note what files there are, and listen like a page does."""
        self.pid, self.folder = self.server.process.pid, self.server.run_folder
        size = memory_of(self.pid, "VmSize") + SPARE_ADDRESS_SPACE
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import resource

            hard = resource.prlimit(self.pid, resource.RLIMIT_AS)[1]
            resource.prlimit(self.pid, resource.RLIMIT_AS, (size, hard))
        self.directions = self.folder / "models" / "latent_directions"
        self.directions.mkdir(parents=True, exist_ok=True)
        self._files, self._log_at = self._snapshot(), self.server.log_path.stat().st_size
        self._client_id, self._quit = uuid.uuid4().hex, threading.Event()
        connected = threading.Event()
        self._listener = threading.Thread(target=lambda: asyncio.run(self._listen(connected)), daemon=True)
        self._listener.start()
        connected.wait(10)

    async def _listen(self, connected: threading.Event) -> None:
        """Read and drop the events, which the server sends only where a page listens."""
        import aiohttp

        quit_, address = self._quit, f"{self.server.client.url.replace('http', 'ws', 1)}/ws?clientId={self._client_id}"
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as events:
                connected.set()
                while not quit_.is_set() and not events.closed:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await events.receive(timeout=0.5)

    def _release(self) -> None:
        self._quit.set()
        self._listener.join(5)
        if self.server is self._lent:
            with contextlib.suppress(ImportError, AttributeError, OSError):
                import resource

                hard = resource.prlimit(self.pid, resource.RLIMIT_AS)[1]
                resource.prlimit(self.pid, resource.RLIMIT_AS, (hard, hard))
        else:
            self.server.stop()

    def restart(self) -> None:
        """Leave this server, which no longer runs prompts, and start another."""
        self._release()
        self.restarts += 1
        self.server = self._start().wait()
        self._prepare()

    def run(self, prompt: dict, patience: float = 60.0, *, heavy: bool = False, cancel_after: float | None = None):
        """Queue a prompt and wait for its end, at most `patience` seconds, then cancel it.

        Args:
            prompt: the API prompt.
            patience: seconds until it is cancelled.
            heavy: whether it may well take longer; else that is a fault.
            cancel_after: seconds after which it is cancelled as a test of cancelling.
        """
        began, client = time.monotonic(), self.server.client
        body = json.dumps({"prompt": prompt, "client_id": self._client_id}).encode()
        try:
            answer = json.loads(client.request("/prompt", body))
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            said = json.loads(text) if text.startswith("{") else {"error": {"message": text}}
            return Reply(of_refusal(error.code, said), None, time.monotonic() - began)
        except OSError as error:
            return Reply(self._dead(error), None, time.monotonic() - began)
        if answer["node_errors"]:  # a branch was dropped; what is left runs
            self._wait(answer["prompt_id"], began, patience, None)
            return Reply(of_refusal(200, answer), None, time.monotonic() - began)
        return self._wait(answer["prompt_id"], began, patience, cancel_after, heavy)

    def _wait(self, prompt_id, began, patience, cancel_after, heavy=False) -> Reply:
        client, pause, cancelled = self.server.client, 0.01, None
        limit = patience if cancel_after is None else min(patience, cancel_after)
        while True:
            now = time.monotonic() - began
            try:
                history = json.loads(client.request(f"/history/{prompt_id}")).get(prompt_id)
                if history is not None:
                    client.request("/history", json.dumps({"delete": [prompt_id]}).encode())
                    return self._ended(history, now, cancelled is not None and cancel_after is None, heavy)
                if self._worker_died():
                    return Reply(Outcome(DEAD_WORKER, self._last_exception()), None, now)
                if cancelled is None and now > limit:
                    cancelled = now
                    client.interrupt()
                elif cancelled is not None and now > cancelled + AFTER_CANCEL:
                    return Reply(Outcome(STUCK, f"not ended {AFTER_CANCEL:.0f} s after cancelling"), None, now)
            except (OSError, ValueError) as error:
                if self.server.process.poll() is not None or now > limit + AFTER_CANCEL:
                    return Reply(self._dead(error), None, now)
            time.sleep(min(pause, max(0.0, limit - now)) if cancelled is None else pause)
            pause = min(0.05, pause * 1.2)

    def _ended(self, history: dict, seconds: float, timed_out: bool, heavy: bool) -> Reply:
        for name, data in (history["status"] or {}).get("messages", []):
            if name == "execution_error":
                return Reply(of_error(data), history, seconds)
            if name == "execution_interrupted":
                kind = None if not timed_out else Outcome(CANCELLED if heavy else TOO_LONG, f"{seconds:.0f} s")
                return Reply(kind, history, seconds, data["node_type"])
        return Reply(None, history, seconds)

    def _dead(self, error: Exception) -> Outcome:
        with contextlib.suppress(Exception):
            self.server.process.wait(5)
        status = self.server.process.poll()
        return Outcome(DEAD_SERVER, f"exit status {status}: {type(error).__name__}: {error}")

    def _worker_died(self) -> bool:
        """Whether the thread that runs prompts has ended: Python logs the exception that ends a thread."""
        with self.server.log_path.open("rb") as log:
            log.seek(self._log_at)
            new = log.read()
        self._log_at += max(0, len(new) - 200)  # the words may come in two parts
        return b"Exception in thread" in new and b"prompt_worker" in new

    def _last_exception(self) -> str:
        """The exception that ended the thread, and the place where it was raised."""
        traceback = self.server.log.rpartition("Exception in thread")[2].splitlines()
        places = [line.strip() for line in traceback if line.strip().startswith('File "')]
        said = next((line for line in reversed(traceback) if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)), "")
        return f"{said[:300]} ({places[-1].rpartition('/')[2]})" if places else said[:300]

    def results(self, reply: Reply, *, check: bool = True) -> Outcome:
        """Read what a prompt that ended well has written, then remove it; `check` says whether it must be finite."""
        reports, latents, pictures = [], [], []
        for key, output in reply.outputs.items():
            for file in [*output.get("latents", []), *output.get("images", [])]:
                path = self.folder / file["type"] / file["subfolder"] / file["filename"]
                if not path.exists():
                    continue  # a node that was taken from the cache names the file that an earlier prompt has written
                if path.suffix == ".latent":
                    latents.append(safetensors.torch.load_file(path)["latent_tensor"])
                else:
                    with Image.open(path) as picture:
                        pictures.append(np.asarray(picture.convert("RGB")))
                path.unlink()
            if key == "report text":
                reports.append(json.loads(output["text"][0]))
        reply.latents, reply.pictures, reply.reports = latents, pictures, reports
        return of_results(reports, latents, pictures) if check else of_results([], [], [])

    def stray_files(self) -> list[str]:
        """Files that are where the pack may not write; each is named once."""
        now = self._snapshot()
        new, self._files = sorted(now - self._files), now
        return new

    def _snapshot(self) -> set[str]:
        found = set()
        allowed = {self.folder / name for name in ALLOWED}
        for folder, below, files in os.walk(self.folder):
            below[:] = [name for name in below if Path(folder, name) not in allowed]
            found |= {str(Path(folder, name)) for name in [*files, *below] if Path(folder, name) not in allowed}
        places = [*self.folder.parents, *(self.folder / name for name in ("custom_nodes", "models"))]
        places += [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), *(p for p in ROOT.iterdir() if p.is_dir())]
        for place_ in places:
            with contextlib.suppress(OSError):
                found |= {entry.path for entry in os.scandir(place_) if MARK in entry.name}
        return found
