"""What the page shows of this pack's nodes, in a real Chromium, on the classic canvas and on Nodes 2.0."""

import itertools
import json
import re

import pytest
from browser import as_json
from canvas import PREFIX, SEEDS, opened, refused, run, screenshot, see_all, setting, shown
from hand import press
from test_browser import TEMPLATES


@pytest.fixture
def template(renderer):
    """The page with the first template, whose steps are fewer and whose search needs no model."""
    return opened(renderer)


@pytest.fixture(scope="module")
def finished(renderer):
    """The page after a run of all nodes that show a picture or words, under live previews."""
    page = opened(renderer)
    page.evaluate(f"""
      test.add("{PREFIX}PreviewDirections", 0, 900); test.add("{PREFIX}EditReport", 400, 900);
      test.add("{PREFIX}SaveDirection", 800, 900);
      test.link("LoadDemoModel", "VAE", "InvertImage", "vae");
      test.link("LoadDemoModel", "VAE", "PreviewDirections", "vae");
      test.link("InvertImage", "inversion", "PreviewDirections", "inversion");
      test.link("FindDirections", "directions", "PreviewDirections", "directions");
      test.link("InvertImage", "inversion", "EditReport", "inversion");
      test.link("SamplerCustomAdvanced", "output", "EditReport", "latent");
      test.link("FindDirections", "directions", "SaveDirection", "directions");
      test.set("PreviewDirections", "steps", 1); test.set("PreviewDirections", "columns", 3);
      test.set("FindDirections", "method", "HSDS"); test.set("FindDirections", "seed", {next(SEEDS)});
    """)
    setting(page, "Comfy.Execution.PreviewMethod", "latent2rgb")
    try:
        run(page)
    finally:
        setting(page, "Comfy.Execution.PreviewMethod", "default")
    see_all(page)  # only what lies within the window is drawn
    screenshot(page, "results")
    return page


@pytest.mark.parametrize("node", ["PreviewDirections", "InvertImage"])
def test_a_node_shows_its_picture_after_a_run(finished, node):
    """The sheet, and the check of the return: both three portraits wide, and not the last frame of their making."""
    address, width = finished.wait_for(f"(p => p?.[0].includes('/view?') && p)(test.pictures('{node}')[0])", 20)
    assert width >= 3 * 64, address


LINES = {
    "InvertImage": r"0 model evaluations, (less than 1|\d+) s",
    "FindDirections": r"1 direction, (less than 1|\d+) s",
    "PreviewDirections": r"3 pictures, (less than 1|\d+) s",
    "EditReport": r"The latent was changed by .* The last run took .*\.",
    "SaveDirection": r"direction(_\d+)?\.safetensors",
}


@pytest.mark.parametrize("node", LINES)
def test_a_node_says_what_came_out_where_it_can_be_read(finished, node):
    line = finished.wait_for(f"test.line('{node}')", 20)
    assert re.fullmatch(LINES[node], line)
    seen = finished.wait_for(SEEN % as_json(node), 20)
    assert seen["whole"], seen
    assert seen["inside"], seen


# Where the page draws a node's line: whether all of it is seen, and whether it lies inside the node.
SEEN = """((type) => {
  const node = test.find(type), text = test.line(type);
  const element = [...document.querySelectorAll("span, p")].find((e) => e.textContent === text);
  if (!element) return null;
  const scrolled = element.closest(".overflow-y-auto"), line = element.getBoundingClientRect();
  const canvas = app.canvas.canvas.getBoundingClientRect(), ds = app.canvas.ds;
  const [x, y, width, height] = test.box(node).map((value) => value * ds.scale);
  const left = canvas.left + x + ds.offset[0] * ds.scale, top = canvas.top + y + ds.offset[1] * ds.scale;
  return {
    whole: !scrolled || scrolled.scrollHeight <= scrolled.clientHeight + 1,
    inside: line.left > left && line.right < left + width && line.top > top && line.bottom < top + height,
    line: [line.left, line.top, line.right, line.bottom], node: [left, top, left + width, top + height],
  };
})(%s)"""


# One of each form: few groups and many, with a checkpoint, with loaders of parts, with a strip.
LAID_OUT = ("First slider", "SDXL", "Flux.1 dev", "Transfer and strip", "Common directions")


@pytest.mark.parametrize("path", [p for p in TEMPLATES if p.stem in LAID_OUT], ids=lambda path: path.stem)
def test_a_line_of_text_keeps_the_nodes_of_a_template_in_their_places(renderer, path):
    page = renderer
    shown(page, json.loads(path.read_text(encoding="utf-8")), path.stem)
    text = "39 of about 47 model evaluations, 3 s left"
    for node in ("InvertImage", "FindDirections"):
        if not page.evaluate(f"Boolean(test.find('{node}'))"):
            continue
        message = f"{{nodeId: String(test.find('{node}').id), text: {as_json(text)}}}"
        page.evaluate(f"app.api.dispatchCustomEvent('progress_text', {message})")
        page.wait_for(f"test.line('{node}') && {SEEN % as_json(node)}", 20)
    page.evaluate("new Promise(done => setTimeout(() => done(true), 700))")  # until the page has laid the nodes out
    screenshot(page, f"lines_{path.stem}")
    boxes = page.evaluate("app.graph.nodes.map(n => [n.type, n.id, test.box(n)])")
    groups = page.evaluate("app.graph.groups.map(g => Array.from(g._bounding ?? g.bounding))")
    graph = json.loads(path.read_text(encoding="utf-8"))
    drawn = {node["id"]: node for node in graph["nodes"]}
    for (kind, key, box), (other, _, second) in itertools.combinations(boxes, 2):
        assert not overlap(box, second), (kind, key, other, box, second)
    for kind, key, (x, y, width, height) in boxes:
        if kind == "MarkdownNote":
            continue
        left, top = drawn[int(key)]["pos"]
        homes = [g for g in groups if g[0] <= left <= g[0] + g[2] and g[1] <= top <= g[1] + g[3]]
        assert len(homes) == 1, kind
        group = homes[0]
        assert group[0] <= x, (kind, group)
        assert group[1] <= y, (kind, group)
        assert x + width <= group[0] + group[2], (kind, group)
        assert y + height <= group[1] + group[3], (kind, group)


def overlap(one: list, two: list) -> bool:
    """Whether two boxes (x, y, width, height) share more than an edge."""
    return all(one[i] + 1 < two[i] + two[i + 2] and two[i] + 1 < one[i] + one[i + 2] for i in (0, 1))


SAMPLER = "test.set('KSamplerSelect', 'sampler_name', 'euler_ancestral')"
TWO_PICTURES = """
  test.set("FindDirections", "method", "HSDS");
  test.add("RepeatLatentBatch", 330, 900); test.set("RepeatLatentBatch", "amount", 2);
  test.link("VAEEncode", "LATENT", "RepeatLatentBatch", "samples");
  test.link("RepeatLatentBatch", "LATENT", "InvertImage", "latent");
"""
# The panel of errors: the button beside "Find Directions - source" that opens the details.
PANEL_DETAILS = "button[aria-controls][aria-label*='Find Directions - source']"
WRONG = {
    "empty source": ("test.set('FindDirections', 'source', ' ')", "Find Directions: source", "'source' is empty, but"),
    "empty target": ("test.set('FindDirections', 'target', '')", "Find Directions: target", "'target' is empty, but"),
    "equal words": (
        "test.set('FindDirections', 'target', test.widget('FindDirections', 'source').value)",
        "Find Directions: target",
        "'source' and 'target' are the same",
    ),
    "stochastic sampler": (SAMPLER, "KSamplerSelect: sampler_name", "'euler_ancestral', which adds noise"),
    "batch": (TWO_PICTURES, "Encode Picture: latent", "'latent' is a batch of several pictures"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_not_queued_and_the_page_says_why(comfy, template, case):
    change, title, sentence = WRONG[case]
    template.evaluate(change)
    toast = refused(comfy, template)
    assert title in toast
    assert sentence in toast
    field = title.split(": ")[1]
    assert f"rejected the value for {field}" in template.wait_for("test.overlay()", 20)
    if case == "empty source":
        screenshot(template, "refused")
        template.evaluate("document.querySelector('[data-testid=error-overlay-see-errors]').click()")
        template.wait_for(f"(b => b && (b.click(), true))(document.querySelector({as_json(PANEL_DETAILS)}))", 20)
        template.wait_for(f"document.body.innerText.split({as_json(sentence)}).length > 2", 20)  # toast and panel


def test_the_page_queues_where_the_check_does_not_answer(template):
    page = template
    page.evaluate(SAMPLER)
    page.call("Network.enable")
    page.call("Network.setBlockedURLs", urls=["*latent_directions/check*"])
    try:
        error = run(page, "execution_error")
    finally:
        page.call("Network.setBlockedURLs", urls=[])
        page.call("Network.disable")
    assert "Use a deterministic one" in error["exception_message"]


RUN_ERRORS = {
    "in a node of the pack": (
        "test.set('FindDirections', 'keep', 'glasses')",
        "Find Directions",
        "Line 1 of 'keep' is 'glasses'",
    ),
    "in a sampler": (
        "test.set('KSamplerSelect', 'sampler_name', 'dpm_fast')",
        "SamplerCustomAdvanced",
        "leaves the path back to the encoded picture",
    ),
}


@pytest.mark.parametrize("case", RUN_ERRORS)
def test_the_sentence_of_a_run_that_failed_is_in_a_toast(template, case):
    change, title, sentence = RUN_ERRORS[case]
    run(template)
    template.evaluate(change)
    run(template, "execution_error")
    toast = template.wait_for("test.toasts().at(-1)", 20)
    assert title in toast
    assert sentence in toast
    # what the node said before is no longer true, and a node that said nothing gets no line
    lines = template.evaluate("[test.line('FindDirections'), test.line('SamplerCustomAdvanced')]")
    assert (lines[0] == "failed") == (title == "Find Directions")
    assert lines[1] is None
    screenshot(template, "failed")


def test_an_error_of_another_node_gets_no_toast_of_ours(template):
    template.evaluate("""
      test.add("EmptyLatentImage", 0, 900); test.add("PreviewImage", 400, 900);
      test.link("EmptyLatentImage", "LATENT", "VAEDecode", "samples");
    """)
    assert run(template, "execution_error")["node_type"] == "VAEDecode"
    template.wait_for("test.overlay()", 20)
    assert template.evaluate("test.toasts()") == []


class TestLoadDirection:
    def test_nothing_saved_new_files_and_the_choice_after_a_reload(self, comfy, template):
        page, folder = template, comfy.run_folder / "models" / "latent_directions"
        for file in folder.glob("**/*.safetensors"):
            file.unlink()
        page.evaluate("app.refreshComboInNodes().then(() => true)")
        page.evaluate(f"""
          test.add("{PREFIX}LoadDirection", 760, 900); test.add("{PREFIX}SaveDirection", 1200, 900);
          test.link("LoadDirection", "directions", "DirectionSlider", "directions");
        """)
        assert page.evaluate("test.widget('LoadDirection', 'file').value") == ""
        toast = refused(comfy, page)
        assert "Load Direction: file" in toast
        assert "'file' is empty" in toast

        # saved by another graph, of which this page knows nothing
        page.evaluate("""
          test.link("FindDirections", "directions", "DirectionSlider", "directions");
          test.link("FindDirections", "directions", "SaveDirection", "directions");
        """)
        for name in ("first", "second"):
            page.evaluate(f"test.set('SaveDirection', 'name', 'page/{name}')")
            run(page)
        assert page.evaluate("test.widget('LoadDirection', 'file').options.values") == []
        page.evaluate("""{
          const node = test.find("LoadDirection"), button = node.widgets.find((w) => w.type === "button");
          const element = [...document.querySelectorAll(`[data-node-id="${node.id}"] button`)]
            .find((e) => e.innerText.includes("Refresh files"));
          element ? element.click() : button.callback(button.value, app.canvas, node);
        }""")
        files = page.wait_for("(v => v.length && v)(test.widget('LoadDirection', 'file').options.values)", 20)
        assert files == ["page/first.safetensors", "page/second.safetensors"]
        page.wait_for("test.widget('LoadDirection', 'file').value === 'page/first.safetensors'", 20)

        # a reload of the graph keeps the choice, also of a file that is gone
        for chosen in ("page/second.safetensors", "page/gone.safetensors"):
            page.evaluate(f"test.set('LoadDirection', 'file', {as_json(chosen)})")
            graph = page.evaluate("app.graph.serialize()")
            made = shown(page, graph, "reloaded")
            (loader,) = (node for node in made.values() if node["class_type"].endswith("LoadDirection"))
            assert loader["inputs"] == {"file": chosen}
        page.evaluate("""
          test.set('LoadDirection', 'file', 'page/second.safetensors');
          test.link("LoadDirection", "directions", "DirectionSlider", "directions");
        """)
        run(page)


BOX = "app.graph.nodes.find((n) => n.title === 'Edit Picture by Words')"
FEED = """(box) => {
  const [model, portrait, save] = ["LoadDemoModel", "DemoPortrait", "SaveImage"].map(test.find);
  const feed = (from, output, to, input) => from.connect(
    from.outputs.findIndex((o) => o.name === output), to, to.inputs.findIndex((i) => i.name === input));
  feed(portrait, "image", box, "picture"); feed(box, "picture", save, "images");
  for (const name of ["model", "clip", "vae"]) feed(model, name.toUpperCase(), box, name);
  const words = { source: "a portrait of a person, neutral", target: "a portrait of a person, smiling" };
  for (const [name, text] of Object.entries(words)) box.widgets.find((w) => w.name === name).value = text;
  portrait.widgets.find((w) => w.name === "control_after_generate").value = "fixed";
}"""


@pytest.mark.parametrize("renderer", ["classic"], indirect=True)
def test_the_blueprint_is_found_by_search_and_edits_a_picture(comfy, renderer):
    page = renderer
    shown(page, {"nodes": [], "links": [], "version": 0.4}, "blueprint")
    page.evaluate(f"""
      test.add("{PREFIX}LoadDemoModel", -500, 0); test.add("{PREFIX}DemoPortrait", -500, 200);
      test.add("SaveImage", 700, 0);
      app.extensionManager.command.execute("Workspace.SearchBox.Toggle");
    """)
    page.wait_for("document.activeElement?.tagName === 'INPUT'", 20)
    page.call("Input.insertText", text="Edit Picture by Words")
    page.wait_for(
        "[...document.querySelectorAll('[role=option]')].some(e => /Edit Picture by Words/.test(e.innerText))"
    )
    press(page, "Enter")
    page.wait_for(f"{BOX} && app.canvas.state.ghostNodeId", 20)  # the new node follows the pointer until a click
    for _ in range(10):  # until the page has drawn the node and takes the click
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            page.call("Input.dispatchMouseEvent", type=kind, x=900, y=400, button="left", clickCount=1)
        if page.evaluate("new Promise(done => setTimeout(() => done(app.canvas.state.ghostNodeId === null), 500))"):
            break
    page.wait_for("app.canvas.state.ghostNodeId === null", 20)
    page.evaluate(f"({FEED})({BOX})")
    pictures = []
    for strength in (0, 2):
        page.evaluate(f"{BOX}.widgets.find((w) => w.name === 'strength').value = {strength}; test.ended = null")
        run(page)
        saved = page.wait_for("app.nodeOutputs[test.find('SaveImage').id]?.images?.[0]", 20)
        pictures.append(comfy.client.view(saved))
    screenshot(page, "blueprint")
    assert pictures[0] != pictures[1]
    assert page.problems == []
