"""The page itself, in a real Chromium: the templates open whole, and the converter agrees with the page."""

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from canvas import shown

from scripts import workflow
from scripts.environment import ROOT

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
# ComfyUI's own templates, for what ours do not hold: reroutes, primitive nodes, bypassed nodes, seeds, notes.
STOCK = ["default", "hidream_e1_1", "image_omnigen2_image_edit", "sdxl_refiner_prompt_example", "flux_schnell"]


@pytest.mark.parametrize("name", STOCK)
def test_converter_agrees_with_the_page_on_stock_templates(comfy, page, name):
    graph = json.loads(comfy.client.request(f"/templates/{name}.json"))
    assert shown(page, graph, name) == workflow.to_prompt(graph, comfy.client.object_info())


def test_converter_agrees_with_the_page_on_muted_nodes(comfy, page):
    graph = json.loads(comfy.client.request("/templates/default.json"))
    for node in graph["nodes"]:
        if node["type"] == "CLIPTextEncode":
            node["mode"] = workflow.MUTED
    made = shown(page, graph, "muted")
    assert made == workflow.to_prompt(graph, comfy.client.object_info())
    sampler = made[workflow.find(made, "KSampler")]
    assert "positive" not in sampler["inputs"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_opens_whole(comfy, page, path, tmp_path):
    listed = json.loads(comfy.client.request("/api/workflow_templates"))
    assert set(listed["latent-directions"]) == {one.stem for one in TEMPLATES}
    graph = json.loads(comfy.client.request(f"/api/workflow_templates/latent-directions/{quote(path.name)}"))
    picture = comfy.client.request(f"/api/workflow_templates/latent-directions/{quote(path.stem)}.jpg")
    assert picture[:3] == b"\xff\xd8\xff"

    assert shown(page, graph, path.stem) == workflow.to_prompt(graph, comfy.client.object_info())
    assert page.evaluate("app.graph.nodes.length") == len(graph["nodes"])
    missing = "app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"
    assert page.evaluate(missing) == []
    # Every link of the file is a link in the page: sockets are named and typed as the nodes have them now.
    assert page.evaluate("app.graph.links.size ?? Object.keys(app.graph.links).length") == len(graph["links"])
    # The page keeps what the file says where it can; a choice that is gone shows up as another value after saving.
    values = page.evaluate("app.graph.serialize().nodes.map(n => [n.id, n.widgets_values ?? []])")
    assert dict(map(tuple_of, values)) == {node["id"]: node.get("widgets_values", []) for node in graph["nodes"]}
    assert page.problems == []
    folder = Path(os.environ.get("LATENT_DIRECTIONS_SCREENSHOTS") or tmp_path)
    assert page.screenshot(folder / f"{path.stem}.png").stat().st_size > 50_000


def tuple_of(pair: list) -> tuple:
    return pair[0], pair[1]


def test_queued_from_the_page_the_first_template_makes_a_picture(comfy, page):
    path = ROOT / "example_workflows" / "First slider.json"
    shown(page, json.loads(path.read_text(encoding="utf-8")), "queued")
    find = 'app.graph.nodes.find(n => n.type === "LatentDirections_DirectionSlider")'
    save = 'app.graph.nodes.find(n => n.type === "SaveImage")'
    made = []
    for strength in (-1.5, 2):
        page.evaluate(f'{find}.widgets.find(w => w.name === "strength").value = {strength}')
        page.evaluate("app.queuePrompt(0).then(() => true)")
        name = page.wait_for(f"app.nodeOutputs[{save}.id]?.images?.[0]?.filename")
        made.append(name)
        page.evaluate(f"delete app.nodeOutputs[{save}.id]")
    assert len(set(made)) == 2


def test_the_template_that_is_an_app_opens_as_one_runs_and_shows_the_picture(comfy, page):
    path = ROOT / "example_workflows" / "Slider as an app.json"
    graph = path.read_text(encoding="utf-8")
    page.problems.clear()
    page.evaluate(f"app.loadGraphData({graph}, true, true, 'app').then(() => true)")
    asked = page.wait_for("document.querySelector('[data-testid=linear-widgets]')?.innerText", 20)
    assert asked.split() == ["seed", "source", "target", "strength"]
    run = "[...document.querySelectorAll('[data-testid=linear-run-button] button')].find(b => b.innerText === 'Run')"
    page.wait_for(f"!{run}.disabled", 20)
    page.evaluate(f"{run}.click()")
    picture = "document.querySelector('[data-testid=linear-center-panel] img:not([data-testid])')"
    page.wait_for(f"{picture}?.naturalWidth === 64 && {picture}.src.includes('/view?filename=latent_directions')", 120)
    assert page.problems == []
