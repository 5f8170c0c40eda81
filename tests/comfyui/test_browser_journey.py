"""What an artist does in ComfyUI's page, from the template browser on: real clicks and keys, on both renderers."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from browser import as_json
from canvas import HELPERS, PREFIX, SEEDS, ended, kept, run, screenshot, shown
from hand import CANCEL, CONTROL, RUN, Hand
from PIL import Image

from latent_directions.demo.measures import Reader
from latent_directions.demo.world import Portrait, draw
from scripts import demo_templates

# The one that opens as an app has a test of its own in test_browser.py.
DEMO = [one.name for one in demo_templates.DEMO if one is not demo_templates.APP]
EMPTY = {"nodes": [], "links": [], "version": 0.4}
WORDS = ("sad", "with hat")
ROWS = (
    "test.find('SliderBoard').widgets.find((w) => w.name === 'sliders').element.shadowRoot.querySelectorAll('.words')"
)
PANEL = "test.find('%s').widgets.find((w) => w.name === '%s').element.shadowRoot"
# Where the dots of an output and of an input are drawn, in pixels of the window.
DOT = """(({ node: type, slot, side }) => {
  const node = test.find(type), number = node[`${side}puts`].findIndex((one) => one.name === slot);
  const element = document.querySelector(`[data-node-id="${node.id}"] [data-slot-key$="-${side}-${number}"]`);
  if (element) {
    const { left, top, width, height } = element.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
  }
  const [x, y] = node.getConnectionPos(side === "in", number), { ds, canvas } = app.canvas;
  const { left, top } = canvas.getBoundingClientRect();
  return [left + (x + ds.offset[0]) * ds.scale, top + (y + ds.offset[1]) * ds.scale];
})(%s)"""
# A place of the window where the canvas has room for a node.
FREE = """(() => {
  const { canvas, ds } = app.canvas, { left, top } = canvas.getBoundingClientRect();
  const boxes = [...app.graph.nodes.map(test.box), ...app.graph.groups.map((group) => Array.from(group._bounding))];
  for (let y = innerHeight - 200; y > 100; y -= 40) for (let x = 100; x < innerWidth - 300; x += 40) {
    const [a, b] = [(x - left) / ds.scale - ds.offset[0], (y - top) / ds.scale - ds.offset[1]];
    if (!boxes.some(([l, t, w, h]) => a > l - 320 && a < l + w + 20 && b > t - 300 && b < t + h + 40)) return [x, y];
  }
})()"""


@pytest.fixture
def hand(renderer):
    """A hand on the page with an empty graph."""
    shown(renderer, EMPTY, "empty")
    yield Hand(renderer)
    assert renderer.problems == []


def saved(page) -> list[dict]:
    """The pictures of Save Image's last run."""
    return page.wait_for("app.nodeOutputs[test.find('SaveImage')?.id]?.images", 20)


def picture(comfy, page) -> Image.Image:
    return Image.open(io.BytesIO(comfy.client.view(saved(page)[0]))).convert("RGB")


@pytest.mark.parametrize("name", DEMO)
def test_a_demo_template_opens_from_the_template_browser_and_runs(hand, comfy, name):
    hand.open_template(name)
    hand.run()
    if not hand.page.evaluate("Boolean(test.find('SaveVideo'))"):
        assert all(comfy.client.view(one) for one in saved(hand.page))
    screenshot(hand.page, f"template_{name}")


def dot(page, node: str, slot: str, side: str) -> tuple[float, float]:
    return tuple(page.evaluate(DOT % as_json({"node": node, "slot": slot, "side": side})))


@pytest.fixture
def portrait(tmp_path) -> Path:
    """A picture on the artist's disk: a smiling person with brown hair."""
    path = tmp_path / "mine.png"
    Image.fromarray(draw(Portrait(smile=0.7, mouth_opening=0.6, hair_length=0.8, background="green"))).save(path)
    return path


def test_a_new_artist_edits_a_picture_of_their_own_with_two_sliders(hand, comfy, portrait):
    """From the open page: at most eight clicks, drags and dropped files, and two texts."""
    page = hand.page

    def look(what: str) -> None:
        hand.note(what)
        if path := kept(page, f"artist_{len(hand.steps)}"):
            page.screenshot(path)

    look("the page is open")
    hand.open_template("Slider board")
    look("the template is open")
    hand.drop(portrait, page.evaluate(FREE))
    page.wait_for("Boolean(test.find('LoadImage'))", 20)
    look("the picture is dropped")
    hand.drag(dot(page, "LoadImage", "IMAGE", "out"), dot(page, "VAEEncode", "pixels", "in"))
    page.wait_for("test.find('VAEEncode').getInputNode(0).type === 'LoadImage'", 5)
    look("the picture is connected")
    for number, words in enumerate(WORDS):
        hand.click(f"({PANEL % ('SliderBoard', 'sliders')}.querySelectorAll('.words')[{number}])")
        hand.type(words)
    look("the words are typed")
    hand.run()
    edited = picture(comfy, page)
    look("the picture is edited")
    if path := kept(page, "artist", "json"):
        path.write_text(json.dumps(hand.steps, indent=1))
    rows = json.loads(page.evaluate("test.widget('SliderBoard', 'board').value"))["sliders"]
    assert [row["words"] for row in rows if row["on"]] == list(WORDS)
    seen = Reader().read([np.asarray(Image.open(portrait)), np.asarray(edited)])
    assert seen["smile"][1] < seen["smile"][0] - 0.5
    assert seen["hat"][0] < 0.5 < seen["hat"][1]
    assert hand.clicks <= 8
    assert hand.texts == 2


def test_a_direction_is_chosen_in_the_gallery_and_sampled(hand, comfy):
    page = hand.page
    hand.open_template("Explore without words")
    hand.run()
    page.wait_for("test.pictures('PreviewDirections')[0]", 20)  # the sheet
    first = picture(comfy, page)
    page.evaluate("app.canvas.centerOnNode(test.find('PreviewDirections'))")
    hand.click(f"({PANEL % ('PreviewDirections', 'gallery')}.querySelector('[data-index=\"1\"]'))")
    page.wait_for("test.widget('DirectionSlider', 'index').value === 1", 5)
    hand.run()
    assert not np.array_equal(np.asarray(picture(comfy, page)), np.asarray(first))


def test_the_slider_is_moved_on_the_strip_and_its_picture_is_sampled_on_a_click(hand, comfy):
    page, strip = hand.page, PANEL % ("SliderStrip", "scrub")
    hand.open_template("Transfer and strip")
    hand.run()
    before = picture(comfy, page)
    page.wait_for(f"{strip}.querySelector('output').textContent", 20)
    page.evaluate("app.canvas.centerOnNode(test.find('SliderStrip'))")
    strength = page.evaluate("test.widget('DirectionSlider', 'strength').value")
    hand.click(f"({strip}.querySelector('canvas'))")
    page.wait_for(f"{strip}.activeElement?.type === 'range'", 5)
    hand.press("ArrowLeft")
    page.wait_for(f"test.widget('DirectionSlider', 'strength').value < {strength}", 5)
    page.evaluate("test.ended = null")
    hand.click(f"([...{strip}.querySelectorAll('button')].find((e) => e.innerText === 'Run'))")
    ended(page)
    assert not np.array_equal(np.asarray(picture(comfy, page)), np.asarray(before))


def reloaded(hand, comfy) -> None:
    """Load the whole page anew, as the browser's button does."""
    hand.page.open(comfy.client.url)
    hand.page.wait_for("!window.test && Boolean(window.app && app.vueAppReady && app.graph?.nodes.length)")
    hand.page.evaluate(HELPERS)
    hand.page.problems.clear()  # the page complains about being asked for its graph before it has one


def test_saved_work_comes_back_after_a_reload_and_a_saved_direction_in_a_fresh_graph(hand, comfy):
    page, name = hand.page, f"mine {next(SEEDS)}"
    hand.open_template("Save and use again")
    page.evaluate(f"test.set('SaveDirection', 'name', {as_json(name)}); test.set('DirectionSlider', 'strength', 1.25)")
    hand.run()
    made = picture(comfy, page)
    hand.press("s", CONTROL)
    page.wait_for("document.activeElement?.tagName === 'INPUT'", 20)
    hand.type(name)
    page.wait_for(f"app.extensionManager.workflow.activeWorkflow?.path.includes({as_json(name)})", 20)
    reloaded(hand, comfy)
    page.wait_for("Boolean(test.find('SaveDirection'))", 60)
    assert page.evaluate("test.widget('SaveDirection', 'name').value") == name
    assert page.evaluate("test.widget('DirectionSlider', 'strength').value") == 1.25
    hand.run()
    assert np.array_equal(np.asarray(picture(comfy, page)), np.asarray(made))

    hand.open_template("First slider")
    page.evaluate(f"""
      test.add("{PREFIX}LoadDirection", 760, 900);
      test.set("LoadDirection", "file", {as_json(f"{name}.safetensors")});
      test.link("LoadDirection", "directions", "DirectionSlider", "directions");
      test.set("DirectionSlider", "strength", 1.25);
    """)
    hand.run()
    assert np.array_equal(np.asarray(picture(comfy, page)), np.asarray(made))


def test_a_bypassed_slider_gives_the_picture_back_and_a_search_can_be_cancelled(hand, comfy):
    page = hand.page
    hand.open_template("First slider")
    page.evaluate("test.set('DirectionSlider', 'strength', 0)")
    hand.run()
    still = picture(comfy, page)
    page.evaluate("test.set('DirectionSlider', 'strength', 1.5)")
    hand.run()
    assert not np.array_equal(np.asarray(picture(comfy, page)), np.asarray(still))
    page.evaluate("app.canvas.selectNodes([test.find('DirectionSlider')]); app.canvas.canvas.focus()")
    hand.press("b", CONTROL)
    page.wait_for("test.find('DirectionSlider').mode === 4", 5)
    hand.run()
    assert np.array_equal(np.asarray(picture(comfy, page)), np.asarray(still))

    page.evaluate(f"""
      test.set("InvertImage", "steps", 100); test.set("InvertImage", "method", "backward euler");
      test.set("InvertImage", "seed", {next(SEEDS)}); test.ended = null; test.started = false;
      app.api.addEventListener("progress_state", () => (test.started = true), {{ once: true }});
    """)
    hand.click(RUN)
    page.wait_for("test.started", 30)
    hand.click(CANCEL)
    ended(page, "execution_interrupted", 60)
    page.evaluate("test.set('InvertImage', 'steps', 8)")
    run(page)
