"""Make the pictures of docs/workflows/: results of templates, each with the template inside.

    python scripts/workflow_pictures.py

Dragged into ComfyUI's page, such a picture opens its workflow, as every picture does that was saved from the page.
"""

import json
import sys
from pathlib import Path

if not __package__:  # started as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import workflow
from scripts.comfy_server import Server
from scripts.environment import ROOT, enter

TEMPLATES, PICTURES = ROOT / "example_workflows", ROOT / "docs" / "workflows"
NAMES = ("First slider", "Keep and mask", "Explore without words")
SIZE = 256  # pixels; the demo model's pictures have 64


def make(server: Server, name: str, info: dict) -> bytes:
    """Run a template and return its result as a larger PNG that holds the template."""
    graph = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    prompt = workflow.to_prompt(graph, info)
    save = workflow.find(prompt, "SaveImage")
    enlarge = {"image": prompt[save]["inputs"]["images"], "upscale_method": "lanczos", "crop": "disabled"}
    larger = {"class_type": "ImageScale", "inputs": {**enlarge, "width": SIZE, "height": SIZE}}
    prompt = workflow.with_inputs({**prompt, "larger": larger}, {save: {"images": ["larger", 0]}})
    return server.client.view(server.run(prompt, graph=graph).outputs[save]["images"][0])


def main() -> None:
    """Write the pictures."""
    with Server(enter()) as server:
        info = server.wait().client.object_info()
        PICTURES.mkdir(exist_ok=True)
        for name in NAMES:
            (PICTURES / f"{name}.png").write_bytes(make(server, name, info))


if __name__ == "__main__":
    main()
