"""What the page calls each method of Find Directions, and which inputs it shows for it (web/shown_inputs.js)."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..core.methods import METHODS
from ..core.presets import has_presets
from ..core.search import Method

ROUTE = "/latent_directions/method_inputs"
# Settings in `Method.reads` whose inputs are called differently.
INPUT_NAMES = {"null_rank": "hold_outside", "decode": "look_at", "features": "block"}


def inputs_of(method: Method) -> list[str]:
    """The inputs that a method uses, of those that not every method uses; settings without an input are among them."""
    used = [INPUT_NAMES.get(setting, setting) for setting in method.reads]
    if method.compares_words:
        used += ["source", "target", "keep"]
    if method.compares_words or method.is_named:
        used += ["find_keeps", "candidates"]
    if method.moves_words:
        used += ["where"]
    if method.moves_words and method.run is not None:  # a method without a search moves the words alone
        used += ["image_share", "text_share"]
    if has_presets(method.name):
        used += ["preset"]
    return list(dict.fromkeys(used))


async def _answer(_request: web.Request) -> web.Response:
    """{method: {"label": what the page calls it, "inputs": their names}}."""
    answer = {name: {"label": method.label or name, "inputs": inputs_of(method)} for name, method in METHODS.items()}
    return web.json_response(answer)


def register_route() -> None:
    """Let the page ask which inputs to show; without a server there is no page."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(ROUTE)(_answer)
