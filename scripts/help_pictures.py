"""Make the pictures of the help pages, web/docs/pictures/, and the README's screenshot, in a real page of ComfyUI.

    python scripts/help_pictures.py

It runs one graph with every node that the demo model can run, and takes a picture of each node beside a result.
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
TEMPLATE = ROOT / "example_workflows" / "First slider.json"
OURS = "LatentDirections_"
HIGH, MARGIN = 1400, 16  # of a group's place on the canvas, and around a picture
SCALE = 0.75
NEUTRAL, SMILING = "a portrait of a person, neutral", "a portrait of a person, smiling"
ENCODED = {"model": ("encode", "model"), "inversion": ("encode", "inversion")}
FOUND = {"inversion": ("encode", "inversion"), "directions": ("find", "directions")}

# name: (class, widget values, {input: (name of a node, its output)})
NODES = {
    "load": ("LoadDemoModel", {}, {}),
    "portrait": ("DemoPortrait", {"seed": 7}, {}),
    "another": ("DemoPortrait", {"seed": 11}, {}),
    "prompt": ("CLIPTextEncode", {"text": ""}, {"clip": ("load", "CLIP")}),
    "smiling": ("CLIPTextEncode", {"text": SMILING}, {"clip": ("load", "CLIP")}),
    "neutral": ("CLIPTextEncode", {"text": NEUTRAL}, {"clip": ("load", "CLIP")}),
    "latent": ("VAEEncode", {}, {"pixels": ("portrait", "image"), "vae": ("load", "VAE")}),
    "latent of another": ("VAEEncode", {}, {"pixels": ("another", "image"), "vae": ("load", "VAE")}),
    "two": ("ImageBatch", {}, {"image1": ("portrait", "image"), "image2": ("another", "image")}),
    "latent of two": ("VAEEncode", {}, {"pixels": ("two", "IMAGE"), "vae": ("load", "VAE")}),
    **{
        name: (
            "InvertImage",
            {},
            {"model": ("load", "MODEL"), "positive": ("prompt", "CONDITIONING"), "latent": latent},
        )
        for name, latent in {
            "encode": ("latent", "LATENT"),
            "encode another": ("latent of another", "LATENT"),
            "encode two": ("latent of two", "LATENT"),
        }.items()
    },
    "find": (
        "FindDirections",
        {"source": NEUTRAL, "target": SMILING, "find_keeps": "demo portraits"},
        {**ENCODED, "clip": ("load", "CLIP")},
    ),
    "explore": ("FindDirections", {"method": "explore", "count": 3}, ENCODED),
    "slide": ("DirectionSlider", {"strength": 1.5}, FOUND),
    "apply": ("ApplySliders", {}, {"inversion": ("slide", "inversion")}),
    "guide": ("BasicGuider", {}, {"model": ("apply", "model"), "conditioning": ("apply", "conditioning")}),
    "sampler": ("KSamplerSelect", {"sampler_name": "euler"}, {}),
    "sample": (
        "SamplerCustomAdvanced",
        {},
        {
            "noise": ("apply", "noise"),
            "guider": ("guide", "GUIDER"),
            "sampler": ("sampler", "SAMPLER"),
            "sigmas": ("encode", "sigmas"),
            "latent_image": ("encode", "latent"),
        },
    ),
    "report": ("EditReport", {}, {"inversion": ("encode", "inversion"), "latent": ("sample", "output")}),
    "edited": ("VAEDecode", {}, {"samples": ("report", "latent"), "vae": ("load", "VAE")}),
    "sheet": ("PreviewDirections", {}, {**FOUND, "directions": ("explore", "directions"), "vae": ("load", "VAE")}),
    "strip": ("SliderStrip", {}, {**FOUND, "vae": ("load", "VAE")}),
    "strip decoded": ("VAEDecode", {}, {"samples": ("strip", "latent"), "vae": ("load", "VAE")}),
    "save": (
        "SaveDirection",
        {"name": "smile"},
        {"directions": ("find", "directions"), "thumbnail": ("edited", "IMAGE")},
    ),
    "combine": (
        "CombineDirections",
        {},
        {**ENCODED, "directions": ("explore", "directions"), "others": ("explore", "directions")},
    ),
    "combined": ("PreviewDirections", {}, {**FOUND, "directions": ("combine", "directions"), "vae": ("load", "VAE")}),
    "transfer": (
        "TransferDirection",
        {},
        {
            "model": ("encode another", "model"),
            "inversion": ("encode another", "inversion"),
            "directions": ("explore", "directions"),
        },
    ),
    "transferred": (
        "PreviewDirections",
        {},
        {
            "inversion": ("encode another", "inversion"),
            "directions": ("transfer", "directions"),
            "vae": ("load", "VAE"),
        },
    ),
    "common": (
        "FindCommonDirections",
        {"count": 1, "how": "principal components"},
        {"model": ("encode two", "model"), "inversion": ("encode two", "inversion")},
    ),
    "common at one": ("TransferDirection", {}, {**ENCODED, "directions": ("common", "directions")}),
    "common sheet": (
        "PreviewDirections",
        {},
        {**FOUND, "directions": ("common at one", "directions"), "vae": ("load", "VAE")},
    ),
    "prepare": ("PrepareQuickSlider", {}, FOUND),
    "quick": ("QuickSlider", {}, {**FOUND, "directions": ("prepare", "directions")}),
    "quickly": ("VAEDecode", {}, {"samples": ("quick", "latent"), "vae": ("load", "VAE")}),
    "demo": ("MeasureDemo", {}, {"image": ("portrait", "image"), "edited": ("edited", "IMAGE")}),
    "disentanglement": (
        "MeasureDisentanglement",
        {},
        {
            "model": ("load", "MODEL"),
            "vae": ("load", "VAE"),
            "image": ("portrait", "image"),
            "positive": ("neutral", "CONDITIONING"),
            "target": ("smiling", "CONDITIONING"),
        },
    ),
}
# The picture of a class: the node, and what Preview Image shows beside it or which other nodes stand there.
SHOWN = {
    "LoadDemoModel": ("load", [("edited", "IMAGE")]),
    "DemoPortrait": ("portrait", [("portrait", "image")]),
    "InvertImage": ("encode", [("portrait", "image")]),
    "FindDirections": ("find", [("find", "what else moves")]),
    "DirectionSlider": ("slide", [("portrait", "image"), ("edited", "IMAGE")]),
    "ApplySliders": ("apply", [("edited", "IMAGE")]),
    "EditReport": ("report", [("edited", "IMAGE")]),
    "PreviewDirections": ("sheet", []),
    "SliderStrip": ("strip", []),
    "SaveDirection": ("save", [("edited", "IMAGE")]),
    "CombineDirections": ("combine", ["combined"]),
    "TransferDirection": ("transfer", ["transferred"]),
    "FindCommonDirections": ("common", ["common sheet"]),
    "PrepareQuickSlider": ("prepare", []),
    "QuickSlider": ("quick", [("quickly", "IMAGE")]),
    "MeasureDemo": ("demo", [("demo", "plot")]),
    "MeasureDisentanglement": ("disentanglement", [("disentanglement", "plot")]),
}
# Added after the run: they need a file or a model that a fresh ComfyUI does not have.
ALONE = ("LoadDirection", "MeasureWords", "LoadDiffusersModel")

BUILD = """
(({nodes, high}) => {
  app.graph.clear();
  const made = window.made = {}, column = {};
  for (const [name, [type, values, links, group, size]] of Object.entries(nodes)) {
    const node = made[name] = LiteGraph.createNode(type);
    app.graph.add(node);
    for (const [key, value] of Object.entries(values)) node.widgets.find((w) => w.name === key).value = value;
    if (size) node.setSize(size);
    column[group] ??= 0;
    node.pos = [column[group], group * high];
    column[group] += node.size[0] + 24;
  }
  for (const [name, [type, values, links]] of Object.entries(nodes))
    for (const [input, [from, output]] of Object.entries(links)) {
      const a = made[from], b = made[name];
      const source = a.outputs.findIndex((o) => o.name === output), end = b.inputs.findIndex((i) => i.name === input);
      if (source < 0 || end < 0) throw new Error(`${from} ${output} -> ${name} ${input}`);
      a.connect(source, b, end);
    }
  return true;
})
"""
ADD = """
(({type, group, high}) => {
  const node = made[type] = LiteGraph.createNode(type);
  node.pos = [0, group * high];
  app.graph.add(node);
  return true;
})
"""
# Brings a group of nodes into view and gives its box on the screen.
LOOK = """
(async ({names, scale, margin}) => {
  app.canvas.deselectAll?.();
  const box = (n) => [n.pos[0], n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, ...n.size];
  const boxes = names.map((name) => box(made[name]));
  const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
  const right = Math.max(...boxes.map((b) => b[0] + b[2]));
  const bottom = Math.max(...boxes.map((b) => b[1] + b[3] + LiteGraph.NODE_TITLE_HEIGHT));
  const ds = app.canvas.ds;
  ds.scale = scale;
  ds.offset = [-left + 120 / scale, -top + 90 / scale];
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 700));
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = [canvas.x + 120 - margin, canvas.y + 90 - margin];
  return {x, y, width: (right - left) * scale + 2 * margin, height: (bottom - top) * scale + 2 * margin};
})
"""


def planned() -> tuple[dict, dict[str, list[str]]]:
    """Return the nodes to add with their groups and sizes, and for each picture the names of its nodes."""
    groups = {SHOWN[kind][0]: number for number, kind in enumerate(SHOWN, 1)}
    nodes, pictures = {}, {}
    for name, (kind, values, links) in NODES.items():
        nodes[name] = [full_name(kind), values, links, groups.get(name, 0), None]
    for kind, (name, beside) in SHOWN.items():
        pictures[kind] = [name]
        for number, other in enumerate(beside):
            if isinstance(other, str):
                added = other
                nodes[other][3] = groups[name]
            else:
                added = f"{name} {number}"
                nodes[added] = ["PreviewImage", {}, {"images": other}, groups[name], [300, 330]]
            pictures[kind].append(added)
    return nodes, pictures


def full_name(kind: str) -> str:
    """Return the id of a node class of the pack or of ComfyUI."""
    return OURS + kind if kind in SHOWN else kind


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
        page.evaluate(HELPERS)
        screenshots(page, shown)
        setting(page, "Comfy.LinkRenderMode", 3)  # hidden: the links lead to other groups
        nodes, pictures = planned()
        page.evaluate(f"({BUILD})({json.dumps({'nodes': nodes, 'high': HIGH})})")
        queued(page)
        for number, kind in enumerate(ALONE, len(SHOWN) + 1):
            page.evaluate(f"({ADD})({json.dumps({'type': OURS + kind, 'group': number, 'high': HIGH})})")
            pictures[kind] = [OURS + kind]
        for kind, names in pictures.items():
            clip = page.evaluate(f"({LOOK})({json.dumps({'names': names, 'scale': SCALE, 'margin': MARGIN})})")
            save(page, PICTURES / f"{OURS}{kind}.webp", clip)
    return 0


def screenshots(page, shown) -> None:
    """Take the screenshots of the README: the first template after a run."""
    shown(page, json.loads(TEMPLATE.read_text(encoding="utf-8")), "First slider")
    queued(page)
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.evaluate("new Promise(done => setTimeout(() => done(true), 2000))")
    save(page, DOCS / "first_slider.webp")


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
