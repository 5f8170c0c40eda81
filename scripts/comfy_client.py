"""A client of ComfyUI's HTTP and websocket API."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class PromptError(Exception):
    """ComfyUI refused a prompt or a node of it failed; the message is the node's own."""


class Interrupted(PromptError):
    """The prompt was interrupted."""


@dataclass
class Result:
    """What one prompt did: outputs per node id as in the history, which nodes ran and how long, which were cached."""

    prompt_id: str
    outputs: dict[str, dict] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: list[tuple[str, float, float]] = field(default_factory=list)  # node id, value, maximum
    running: str | None = None
    began: float = 0.0

    def take(self, kind: str, data: dict) -> bool:
        """Note one event of this prompt; True once it has ended. Raises PromptError where it failed."""
        if kind == "execution_cached":
            self.cached += data["nodes"]
        elif kind == "executing":
            now = time.monotonic()
            if self.running is not None:
                self.seconds[self.running] = self.seconds.get(self.running, 0.0) + now - self.began
            self.running, self.began = data["node"], now
            if self.running is None:
                return True
            if self.running not in self.executed:
                self.executed.append(self.running)
        elif kind == "progress":
            self.progress.append((data["node"], data["value"], data["max"]))
        elif kind == "execution_interrupted":
            message = f"{data['node_type']}: interrupted."
            raise Interrupted(message)
        elif kind == "execution_error":
            message = f"{data['node_type']}: {data['exception_message'].strip()}"
            raise PromptError(message)
        return False


def refusal(answer: dict) -> str:
    """Word ComfyUI's refusal of a prompt: every input at fault with its reason."""
    reasons = [
        f"{node['class_type']}: {error['message']}: {error['details']}"
        for node in (answer.get("node_errors") or {}).values()
        for error in node["errors"]
    ]
    head = answer.get("error") or {}
    return "\n".join(reasons) or f"{head.get('message', 'refused')}: {head.get('details', '')}"


class Client:
    """ComfyUI's HTTP and websocket API at `url`."""

    def __init__(self, url: str):
        self.url = url

    def request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """GET, or POST where there is a body."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type} if body else {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def object_info(self, node: str | None = None) -> dict:
        """Return the descriptions of all node classes or of one."""
        return json.loads(self.request("/object_info" + (f"/{node}" if node else "")))

    def upload(self, path: Path) -> str:
        """Upload a picture and return the name that Load Image takes."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self.request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(part for part in (answer["subfolder"], answer["name"]) if part)

    def view(self, file: dict) -> bytes:
        """Return the content of an output file as a node's output in the history names it."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        return self.request(f"/view?{query}")

    def interrupt(self) -> None:
        """Interrupt the prompt that runs."""
        self.request("/interrupt", b"{}")

    def run(
        self,
        prompt: dict,
        on_event: Callable[[Result], None] | None = None,
        timeout: float = 900.0,
        graph: dict | None = None,
    ) -> Result:
        """Queue an API prompt, follow it over the websocket and return its Result; raises PromptError.

        `on_event` gets the growing Result after each event: `running` is the node, `progress[-1]` how far it is.
        `graph` is the workflow of the page that Save Image puts into its pictures.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._follow(prompt, on_event, graph), timeout))
        except asyncio.TimeoutError as error:  # noqa: UP041 (another class than TimeoutError on Python 3.10)
            message = f"The prompt did not end within {timeout:.0f} seconds."
            raise PromptError(message) from error

    async def _follow(self, prompt: dict, on_event: Callable[[Result], None] | None, graph: dict | None) -> Result:
        import aiohttp  # a requirement of ComfyUI itself

        client_id = uuid.uuid4().hex
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as events:
            result = Result(await asyncio.to_thread(self._queue, prompt, client_id, graph))
            async for message in events:
                if message.type != aiohttp.WSMsgType.TEXT:  # previews are binary
                    continue
                event = json.loads(message.data)
                if event["data"].get("prompt_id") != result.prompt_id:
                    continue
                if result.take(event["type"], event["data"]):
                    result.outputs = await asyncio.to_thread(self._outputs, result.prompt_id)
                    return result
                if on_event:
                    on_event(result)
        message = "ComfyUI closed the connection before the prompt had ended."
        raise ConnectionError(message)

    def _queue(self, prompt: dict, client_id: str, graph: dict | None) -> str:
        extra = {"extra_data": {"extra_pnginfo": {"workflow": graph}}} if graph else {}
        body = json.dumps({"prompt": prompt, "client_id": client_id, **extra}).encode()
        try:
            answer = json.loads(self.request("/prompt", body))
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptError(refusal(json.loads(error.read()))) from error
        if answer["node_errors"]:  # ComfyUI runs the branches it accepts and drops the others
            raise PromptError(refusal(answer))
        return answer["prompt_id"]

    def _outputs(self, prompt_id: str) -> dict[str, dict]:
        for _ in range(100):  # the history is written just after the last event is sent
            history = json.loads(self.request(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            time.sleep(0.05)
        message = "ComfyUI ended the prompt but wrote no history of it."
        raise PromptError(message)
