"""What tests do with a graph in ComfyUI's page: open it, change it, run it, and look at it."""

import itertools
import json
import os
from pathlib import Path

from browser import Browser, as_json

from scripts.environment import ROOT

FIRST = ROOT / "example_workflows" / "First slider.json"
PREFIX = "LatentDirections_"
SEEDS = itertools.count(1000)  # a new one makes a node run again in place of being taken from the cache
RUN_ENDS = ("execution_success", "execution_error", "execution_interrupted")
HELPERS = """
window.test = {
  find: (type) => app.graph.nodes.find((n) => n.type === type || n.type === "LatentDirections_" + type),
  widget: (type, name) => test.find(type).widgets.find((w) => w.name === name),
  set: (type, name, value) => { test.widget(type, name).value = value },
  add: (type, x, y) => {
    const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); return node.id
  },
  link: (from, output, to, input) => {
    const [a, b] = [test.find(from), test.find(to)];
    a.connect(a.outputs.findIndex((o) => o.name === output), b, b.inputs.findIndex((i) => i.name === input));
  },
  line: (type) => test.find(type).widgets?.find((w) => w.name === "$$node-text-preview")?.value ?? null,
  toasts: () => [...document.querySelectorAll(".p-toast-message-error")].map((t) => t.innerText),
  overlay: () => document.querySelector("[data-testid=error-overlay]")?.innerText ?? "",
  // on the classic canvas a node's pictures are drawn, on Nodes 2.0 they are elements
  pictures: (type) => {
    const node = test.find(type), element = document.querySelector(`[data-node-id="${node.id}"]`);
    const images = element ? [...element.querySelectorAll("img")] : node.imgs ?? [];
    return images.filter((i) => i.complete && i.naturalWidth).map((i) => [i.src, i.naturalWidth]);
  },
  box: (n) => [n.pos[0], n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, n.size[0], n.size[1] + LiteGraph.NODE_TITLE_HEIGHT],
  ended: null,
};
for (const kind of %s) app.api.addEventListener(kind, (e) => { test.ended = [kind, e.detail] });
""" % as_json(RUN_ENDS)  # noqa: UP031 (the script is full of braces)


def shown(page: Browser, graph: dict, name: str) -> dict:
    """Open a graph in the page as a graph, also one that opens as an app, and return the page's own API prompt."""
    page.problems.clear()
    if graph.get("extra", {}).get("linearMode"):
        graph = graph | {"extra": graph["extra"] | {"linearMode": False}}
    page.evaluate(f"app.loadGraphData({json.dumps(graph)}, true, true, {json.dumps(name)}).then(() => true)")
    return page.evaluate("app.graphToPrompt().then(made => made.output)")


def opened(page: Browser) -> Browser:
    shown(page, json.loads(FIRST.read_text(encoding="utf-8")), "nodes")
    page.evaluate("app.extensionManager.toast.removeAll(); test.ended = null")
    page.evaluate("test.set('InvertImage', 'steps', 4); test.set('FindDirections', 'method', 'text')")
    page.evaluate(f"test.set('InvertImage', 'seed', {next(SEEDS)})")
    page.wait_for("test.toasts().length === 0")
    return page


def setting(page: Browser, name: str, value) -> None:
    page.evaluate(f"app.extensionManager.setting.set({as_json(name)}, {as_json(value)}).then(() => true)")


def run(page: Browser, expected: str = "execution_success") -> dict:
    """Queue the graph and wait for its end; what the page was told about it."""
    page.evaluate("test.ended = null; app.queuePrompt(0).then(() => true)")
    return ended(page, expected)


def ended(page: Browser, expected: str = "execution_success", timeout: float = 120) -> dict:
    """Wait for the end of the run that was queued after `test.ended = null`; what the page was told about it."""
    kind, detail = page.wait_for("test.ended", timeout)
    assert kind == expected, detail
    return detail


def queued(comfy) -> int:
    """How many prompts the server has taken so far."""
    history = json.loads(comfy.client.request("/history"))
    waiting = json.loads(comfy.client.request("/queue"))
    return len(history) + sum(map(len, waiting.values()))


def refused(comfy, page: Browser) -> str:
    """Queue the graph, which must not be taken; the words of the toast."""
    before = queued(comfy)
    page.evaluate("test.ended = null; app.queuePrompt(0).then(() => true, () => true)")
    toast = page.wait_for("test.toasts().at(-1)", 20)
    assert queued(comfy) == before
    assert page.evaluate("test.ended") is None
    return toast


def see_all(page: Browser) -> None:
    """Move the view so that all nodes are drawn; what is selected would be fitted into it alone."""
    page.evaluate("app.canvas.deselectAll(); app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.evaluate("new Promise(done => setTimeout(() => done(true), 1000))")  # the view moves there in steps


def kept(page: Browser, name: str, suffix: str = "png") -> Path | None:
    """The file to keep what a renderer showed in; None where the environment names no folder for such files."""
    folder = os.environ.get("LATENT_DIRECTIONS_SCREENSHOTS")
    drawn = "nodes2" if page.evaluate("Boolean(LiteGraph.vueNodesMode)") else "classic"
    return Path(folder) / f"{name}_{drawn}.{suffix}" if folder else None


def screenshot(page: Browser, name: str) -> None:
    if path := kept(page, name):
        see_all(page)
        page.screenshot(path)
