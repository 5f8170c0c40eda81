"""Make the pictures of the help pages, web/docs/pictures/, and the README's screenshot, in a real page of ComfyUI.

    python scripts/help_pictures.py [TEMPLATE ...]

It runs the templates that come with the pack, or those that are named, and takes a picture of each node beside what it
gives.
Needs Chromium, as the tests do.
"""

import base64
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.comfy_server import Server
from scripts.environment import ROOT, enter, register_package

PICTURES, DOCS = ROOT / "web" / "docs" / "pictures", ROOT / "docs"
TEMPLATES = ROOT / "example_workflows"
MARGIN, SCALE = 16, 0.75  # pixels around a picture, and of the canvas
SHOWN_LINKS, HIDDEN_LINKS = 2, -1  # values of the setting Comfy.LinkRenderMode
README_TEMPLATE = "First slider"
# Template: the pictures taken after its run, each of nodes by their titles. The first is the node of the help page;
# "Demo Portrait: image" is a Preview Image of that output, added before the run. None: the node stands alone.
SHOWN = {
    "First slider": [
        ("Load Demo Model", "Save Image"),
        ("Demo Portrait", "Demo Portrait: image"),
        ("Encode Picture", "Demo Portrait: image"),
        ("Find Directions", "Find Directions: what else moves"),
        ("Direction Slider", "Demo Portrait: image", "Save Image"),
        ("Apply Sliders", "Save Image"),
    ],
    "Slider board": [("Slider Board", "Save Image")],
    "Explore without words": [("Preview Directions",), ("Plot Directions",)],
    "Save and use again": [("Save Direction", "Save Image")],
    "Transfer and strip": [("Transfer Direction", "Second portrait: image", "Save Image"), ("Slider Strip",)],
    "Quick slider": [("Prepare Quick Slider",), ("Quick Slider", "Preview")],
    "Combine directions": [("Combine Directions", "Save Image")],
    "Common directions": [("Find Common Directions", "Save Image")],
    "Measure an edit": [
        ("Edit Report", "Save Image"),
        ("Measure Demo Portrait",),
        ("Measure Disentanglement",),
    ],
    "Diffusers folder": [("Load Diffusers Model", "Save Image")],
    # these need a file or a model that a fresh ComfyUI does not have
    None: [("Load Direction",), ("Measure Along Words",)],
}
PREVIEW = (200, 220)  # units of the canvas, of nodes that show a small picture
CHART = (360, 300)

SCRIPT = """
window.pictures = {
  y: 20000,
  find: (title) => app.graph.nodes.find((node) => node.title === title),
  preview: (title) => {
    if (pictures.find(title)) return;
    const [source, output] = title.split(": "), from = pictures.find(source);
    const node = LiteGraph.createNode("PreviewImage");
    node.title = title;
    app.graph.add(node);
    from.connect(from.outputs.findIndex((o) => o.name === output), node, 0);
  },
  // Puts nodes side by side, far from all others, and gives the first one's class and their box on the screen.
  look: async ({titles, sizes, scale, margin}) => {
    const gap = 24, place = 120, height = LiteGraph.NODE_TITLE_HEIGHT, nodes = titles.map(pictures.find);
    let x = pictures.y += 3000, bottom = 0;
    const left = x;
    nodes.forEach((node, i) => {
      if (sizes[i]) node.setSize(sizes[i]);
      node.pos = [x, pictures.y];
      x += node.size[0] + gap;
      bottom = Math.max(bottom, node.size[1]);
    });
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-left + place / scale, -pictures.y + place / scale];
    app.canvas.setDirty(true, true);
    await new Promise((done) => setTimeout(done, 1000));
    const canvas = app.canvas.canvas.getBoundingClientRect();
    return [nodes[0].type, {
      x: canvas.x + place - margin, y: canvas.y + place - height * scale,  // above are badges
      width: (x - gap - left) * scale + 2 * margin, height: (bottom + height) * scale + margin,
    }];
  },
};
"""


def main() -> int:
    """Make all pictures and return the exit status."""
    environment = enter()
    register_package()
    sys.path.insert(0, str(ROOT / "tests" / "comfyui"))
    from browser import Browser, find_chromium
    from canvas import HELPERS, setting, shown

    program = find_chromium()
    if program is None:
        sys.exit("error: The pictures need Chromium: install the package 'chromium', or name a program in CHROMIUM.")
    PICTURES.mkdir(exist_ok=True)
    with Server(environment) as server, Browser(program, (1700, 1250)) as page:
        server.wait()
        server.client.request("/settings/Comfy.TutorialCompleted", b"true")
        page.open(server.client.url)
        page.wait_for("Boolean(window.app && app.vueAppReady && app.graph)")
        page.evaluate(HELPERS + SCRIPT)
        for template in sys.argv[1:] or SHOWN:
            pictures = SHOWN[template]
            setting(page, "Comfy.LinkRenderMode", SHOWN_LINKS)
            opened(page, shown, template)
            setting(page, "Comfy.LinkRenderMode", HIDDEN_LINKS)
            for titles in pictures:
                wanted = {"titles": titles, "sizes": list(map(size, titles)), "scale": SCALE, "margin": MARGIN}
                kind, clip = page.evaluate(f"pictures.look({json.dumps(wanted)})")
                save(page, PICTURES / f"{kind}.webp", clip)
    return 0


def opened(page, shown, template: str | None) -> None:
    """Open a template with what SHOWN adds to it and run it, or make a graph of the nodes that stand alone."""
    if template is None:
        page.evaluate("app.graph.clear()")
        for title in ("LoadDirection", "MeasureWords"):
            page.evaluate(f"test.add('LatentDirections_{title}', 0, 0)")
        return
    shown(page, json.loads((TEMPLATES / f"{template}.json").read_text(encoding="utf-8")), template)
    if template == README_TEMPLATE:
        queued(page)
        page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.evaluate("new Promise(done => setTimeout(() => done(true), 2000))")
        save(page, DOCS / "first_slider.webp")
    for title in {title for titles in SHOWN[template] for title in titles if ": " in title}:
        page.evaluate(f"pictures.preview({json.dumps(title)})")
    queued(page)


def size(title: str) -> tuple[int, int] | None:
    """Return the size of a node that shows a picture, or None for a node that keeps its own."""
    if title == "Find Directions: what else moves":
        return CHART
    return PREVIEW if ": " in title or title in ("Save Image", "Preview") else None


def queued(page) -> None:
    """Queue the graph and wait until it has ended well."""
    page.evaluate("test.ended = null; app.queuePrompt(0).then(() => true)")
    kind, detail = page.wait_for("test.ended", 900)
    if kind != "execution_success":
        sys.exit(f"error: {kind}: {detail}")


def save(page, path: Path, clip: dict | None = None) -> None:
    """Save what the page shows, or a part of it, as a small WebP."""
    from PIL import Image

    options = {"clip": {**clip, "scale": 1}} if clip else {}
    data = base64.b64decode(page.call("Page.captureScreenshot", format="png", **options)["data"])
    Image.open(io.BytesIO(data)).convert("RGB").save(path, quality=80, method=6)
    print(path, flush=True)


if __name__ == "__main__":
    sys.exit(main())
