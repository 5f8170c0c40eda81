"""A headless Chromium over its DevTools protocol, with nothing but aiohttp, which ComfyUI requires anyway."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]


def find_chromium() -> str | None:
    """The program named by CHROMIUM, or an installed one."""
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page of a browser with a profile of its own; a context manager."""

    def __init__(self, program: str, size: tuple[int, int] = (1800, 1000)):
        self.profile = Path(tempfile.mkdtemp(prefix="latent-directions-browser-"))
        window = [f"--user-data-dir={self.profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self.process = subprocess.Popen(
            [program, *FLAGS, *window], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.loop = asyncio.new_event_loop()
        self.number = 0
        self.problems: list[str] = []  # uncaught errors and console.error of the page, and warnings of the pack

    def __enter__(self) -> "Browser":
        try:
            self.loop.run_until_complete(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if hasattr(self, "session"):
            self.loop.run_until_complete(self.session.close())
        self.loop.close()
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)

    async def _connect(self) -> None:
        announced = self.profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (announced.is_file() and announced.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                message = f"{self.process.args[0]} did not start (status {self.process.poll()})"
                raise RuntimeError(message)
            await asyncio.sleep(0.05)
        port = announced.read_text().split()[0]
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(target for target in await answer.json(content_type=None) if target["type"] == "page")
        self.socket = await self.session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime"):
            await self._call(f"{domain}.enable", {})

    async def _call(self, method: str, params: dict) -> dict:
        self.number += 1
        called = self.number
        await self.socket.send_json({"id": called, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description") or details["text"])
            elif message.get("method") == "Runtime.consoleAPICalled" and is_problem(message["params"]):
                parts = (str(a.get("value", a.get("description"))) for a in message["params"]["args"])
                self.problems.append(" ".join(parts))
            elif message.get("method") == "Page.javascriptDialogOpening":  # whether to leave unsaved work
                self.number += 1
                answer = {"id": self.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                await self.socket.send_json(answer)
            if message.get("id") == called:
                if "error" in message:
                    raise RuntimeError(message["error"])
                return message["result"]

    def call(self, method: str, timeout: float = 120.0, **params) -> dict:
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, params), timeout))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str, timeout: float = 120.0):
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", timeout, expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout: float = 300.0):
        """Evaluate until the value is true; the page may still be on its way, so errors count as not yet."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if value := self.evaluate(f"({script}) || false"):
                    return value
            except RuntimeError as error:
                last = error
            else:
                last = value
            if time.monotonic() > deadline:
                message = f"{script} is still {last} after {timeout:.0f} seconds; page: {self.problems[-3:]}"
                raise TimeoutError(message)
            time.sleep(0.2)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


def is_problem(said: dict) -> bool:
    """Whether what a page wrote to its console is an error, or a warning with a file of this pack on the call stack."""
    frames = said.get("stackTrace", {}).get("callFrames", [])
    ours = any("/extensions/latent-directions/" in frame["url"] for frame in frames)
    return said["type"] == "error" or (said["type"] == "warning" and ours)


def as_json(value) -> str:
    """A Python value as a JavaScript literal."""
    return json.dumps(value)
