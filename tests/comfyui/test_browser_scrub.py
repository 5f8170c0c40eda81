"""The pictures of Slider Strip, which follow a slider without a run."""

import statistics

import pytest
from browser import as_json
from canvas import PREFIX, SEEDS, opened, run, screenshot, shown
from hand import press

FRAMES, KEYFRAMES = 5, 3  # from strength -1 to 1
LONGEST = 50  # milliseconds from a slider's event to the changed picture
SCRUB = """window.scrub = {
  root: () => test.find("SliderStrip").widgets.find((w) => w.name === "scrub")?.element.shadowRoot,
  canvas: () => scrub.root()?.querySelector("canvas"),
  range: () => scrub.root().querySelector("input"),
  button: () => scrub.root().querySelector("button"),
  said: () => scrub.root().querySelector("output").textContent,
  status: () => scrub.root().querySelector(".status").textContent,
  // what is said of pictures from before a change, and how dim they are
  old: () => [scrub.root().querySelector(".old").textContent, Number(getComputedStyle(scrub.canvas()).opacity)],
  strength: () => test.widget("DirectionSlider", "strength").value,
  // the colours of the picture that is seen
  pixels: () => {
    const canvas = scrub.canvas();
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.join();
  },
  move: (frame) => { scrub.range().value = frame; scrub.range().dispatchEvent(new Event("input")); },
  slide: (strength) => {
    const node = test.find("DirectionSlider"), widget = test.widget("DirectionSlider", "strength");
    widget.value = strength; widget.callback(strength, app.canvas, node);
  },
  // what the page does when a hand has changed a widget
  change: (type, name, value) => {
    app.canvas.emitBeforeChange();
    test.set(type, name, value);
    app.canvas.emitAfterChange();
  },
};"""
FRESH = ["", 1]

# The middle of the picture in the window, once the view has stopped moving and nothing else lies there.
STILL = """(async () => {
  const middle = () => (b => [b.left + b.width / 2, b.top + b.height / 2])(scrub.canvas().getBoundingClientRect());
  const before = middle();
  await new Promise((done) => setTimeout(done, 700));
  const [x, y] = middle();
  return x === before[0] && y === before[1] && document.elementFromPoint(x, y) === scrub.root().host && [x, y];
})()"""


@pytest.fixture(scope="module")
def strip(renderer):
    """A run of Slider Strip with a VAE, beside the template's Direction Slider on the same direction."""
    page = opened(renderer)
    page.evaluate(SCRUB)
    page.evaluate(f"""
      test.add("{PREFIX}SliderStrip", -400, 0);
      test.link("LoadDemoModel", "VAE", "SliderStrip", "vae");
      test.link("InvertImage", "inversion", "SliderStrip", "inversion");
      test.link("FindDirections", "directions", "SliderStrip", "directions");
      test.set("SliderStrip", "frames", {FRAMES}); test.set("SliderStrip", "keyframes", {KEYFRAMES});
      test.set("SliderStrip", "steps", 2); test.set("InvertImage", "seed", {next(SEEDS)});
    """)
    run(page)
    page.wait_for("scrub.canvas() && scrub.said()", 20)
    yield page
    assert page.problems == []


def test_the_pictures_follow_the_strength_of_the_slider_within_50_ms(strip):
    seen = strip.evaluate("""(() => {
      const seen = [];
      for (const strength of [-1, -0.5, 0, 0.5, 1, 0.5, 0, -0.5, -1]) {
        const began = performance.now();
        scrub.slide(strength);
        const pixels = scrub.pixels();
        seen.push([strength, performance.now() - began, pixels, scrub.said(), Number(scrub.range().value)]);
      }
      return seen;
    })()""")
    pictures = {strength: pixels for strength, _, pixels, _, _ in seen}
    assert len(set(pictures.values())) == FRAMES
    for strength, _, pixels, said, frame in seen:
        assert pixels == pictures[strength]
        assert float(said) == strength
        assert frame == round((strength + 1) * 2)
    assert statistics.median(took for _, took, *_ in seen) < LONGEST


def test_the_slider_follows_the_pictures(strip):
    page = strip
    for frame in range(FRAMES):
        page.evaluate(f"scrub.move({frame})")
        assert page.evaluate("scrub.strength()") == -1 + frame / 2
    page.evaluate("scrub.range().dispatchEvent(new Event('change'))")
    assert page.evaluate("scrub.status()").startswith("Strength +1 is set for Direction Slider #")
    prompt = page.evaluate("app.graphToPrompt().then(made => made.output)")
    (slider,) = (node for node in prompt.values() if node["class_type"] == f"{PREFIX}DirectionSlider")
    assert slider["inputs"]["strength"] == 1


def test_arrow_keys_and_the_wheel_go_to_the_next_picture(strip):
    page = strip
    screenshot(page, "scrub")
    page.evaluate("scrub.move(2); scrub.range().focus()")
    press(page, "ArrowRight")
    assert page.evaluate("scrub.strength()") == 0.5
    press(page, "ArrowLeft")
    press(page, "ArrowLeft")
    assert page.evaluate("scrub.strength()") == -0.5
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    x, y = page.wait_for(STILL, 20)
    scale = page.evaluate("app.canvas.ds.scale")
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-100)
    page.wait_for("scrub.strength() === 0", 10)
    assert page.evaluate("app.canvas.ds.scale") == scale
    page.evaluate("scrub.range().blur()")  # without the focus the wheel is the canvas's
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-100)
    page.evaluate("new Promise(done => setTimeout(() => done(true), 300))")
    assert page.evaluate("scrub.strength()") == 0


def test_before_is_shown_while_the_button_or_the_key_is_held(strip):
    page = strip
    page.evaluate("scrub.move(2)")
    still = page.evaluate("scrub.pixels()")
    page.evaluate("scrub.move(4)")
    moved = page.evaluate("scrub.pixels()")
    assert moved != still
    page.evaluate("scrub.button().dispatchEvent(new PointerEvent('pointerdown'))")
    assert page.evaluate("scrub.pixels()") == still
    page.evaluate("scrub.button().dispatchEvent(new PointerEvent('pointerup'))")
    assert page.evaluate("scrub.pixels()") == moved
    page.evaluate("scrub.range().focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="b", code="KeyB", windowsVirtualKeyCode=66)
    assert page.evaluate("scrub.pixels()") == still
    page.call("Input.dispatchKeyEvent", type="keyUp", key="b", code="KeyB", windowsVirtualKeyCode=66)
    assert page.evaluate("scrub.pixels()") == moved
    assert page.evaluate("scrub.strength()") == 1


def test_a_strength_between_or_beyond_the_pictures_says_so(strip):
    page = strip
    page.evaluate("scrub.slide(0.3)")
    assert page.evaluate("scrub.said()") == "+0.3 (picture at +0.5)"
    page.evaluate("scrub.slide(2)")
    assert page.evaluate("scrub.said()") == "+2 (picture at +1)"


def test_a_slider_of_another_direction_or_with_a_link_is_left_alone(strip):
    page = strip
    page.evaluate("scrub.move(4); test.set('DirectionSlider', 'index', 1); scrub.move(0)")
    assert page.evaluate("scrub.strength()") == 1
    page.evaluate("test.set('DirectionSlider', 'index', 0)")
    page.evaluate(
        'test.add("PrimitiveFloat", 800, 900); test.link("PrimitiveFloat", "FLOAT", "DirectionSlider", "strength")'
    )
    page.evaluate("scrub.move(1)")
    assert page.evaluate("scrub.strength()") == 1
    assert page.evaluate("scrub.said()") == "-0.5"
    page.evaluate("{const n = test.find('DirectionSlider'); n.disconnectInput(n.findInputSlot('strength'))}")
    page.evaluate("scrub.move(2)")
    assert page.evaluate("scrub.strength()") == 0


def old(page, node: str) -> bool:
    """Whether the strip says that its pictures are from before a change in a node, and dims them."""
    sentence, opacity = page.evaluate("scrub.old()")
    label = page.evaluate("scrub.canvas().getAttribute('aria-label')")
    assert label.endswith(", from before a change") == bool(sentence)
    assert (opacity < 0.5) == bool(sentence)
    return sentence.startswith(f"These pictures are from before a change in {node} #")


def test_pictures_from_before_a_change_are_dim_until_the_next_run(strip):
    """Here behind the slider that the strip moves, whose strength alone makes no difference to the pictures."""
    page = strip
    page.evaluate("test.link('DirectionSlider', 'inversion', 'SliderStrip', 'inversion')")
    assert old(page, "Slider Strip")
    run(page)
    page.wait_for("scrub.old()[0] === ''", 20)  # the new pictures are loaded
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("scrub.move(0); scrub.range().dispatchEvent(new Event('change')); scrub.slide(0.3)")
    assert page.evaluate("scrub.old()") == FRESH
    changes = {"Demo Portrait": ("DemoPortrait", "seed"), "Slider Strip": ("SliderStrip", "steps")}
    for title, (node, widget) in changes.items():
        before = page.evaluate(f"test.widget('{node}', '{widget}').value")
        page.evaluate(f"scrub.change('{node}', '{widget}', {before + 1})")
        assert old(page, title)
        screenshot(page, f"scrub_old_{node}")
        page.evaluate(f"scrub.change('{node}', '{widget}', {before})")
        assert page.evaluate("scrub.old()") == FRESH
    # a setting of a node that comes after the strip, or beside it
    page.evaluate("scrub.change('SaveImage', 'filename_prefix', 'another')")
    assert page.evaluate("scrub.old()") == FRESH
    # a slider of another direction is one of the settings
    page.evaluate("scrub.change('DirectionSlider', 'index', 1)")
    assert old(page, "Direction Slider")
    page.evaluate("scrub.change('DirectionSlider', 'index', 0)")
    assert page.evaluate("scrub.old()") == FRESH


def test_of_two_sliders_of_the_same_direction_the_last_is_moved(strip):
    page = strip
    page.evaluate(f"""{{
      const last = test.find("DirectionSlider");
      const first = app.graph.getNodeById(test.add("{PREFIX}DirectionSlider", 0, 900));
      for (const name of ["inversion", "directions"]) {{
        const from = last.getInputLink(last.findInputSlot(name)), source = app.graph.getNodeById(from.origin_id);
        source.connect(from.origin_slot, first, first.findInputSlot(name));
      }}
      first.connect(first.findOutputSlot("inversion"), last, last.findInputSlot("inversion"));
      scrub.first = first.widgets.find((widget) => widget.name === "strength");
      scrub.first.value = 0.4;
    }}""")
    run(page)
    page.wait_for("scrub.old()[0] === ''", 20)
    page.evaluate("scrub.move(3)")
    assert page.evaluate("[scrub.strength(), scrub.first.value]") == [0.5, 0.4]
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("app.canvas.emitBeforeChange(); scrub.first.value = 0.5; app.canvas.emitAfterChange()")
    assert old(page, "Direction Slider")
    page.evaluate("""{
      const last = test.find("DirectionSlider"), first = last.getInputNode(last.findInputSlot("inversion"));
      test.link("InvertImage", "inversion", "DirectionSlider", "inversion");
      app.graph.remove(first);
    }""")


def test_what_is_changed_during_a_run_is_not_in_its_pictures(strip):
    page = strip
    page.evaluate(f"scrub.change('InvertImage', 'seed', {next(SEEDS)})")
    page.evaluate("test.ended = null; app.queuePrompt(0).then(() => scrub.change('SliderStrip', 'steps', 3))")
    page.wait_for("test.ended", 60)
    # no longer also in Encode Picture
    page.wait_for("/before a change in Slider Strip #\\d+\\. /.test(scrub.old()[0])", 20)
    page.evaluate("scrub.change('SliderStrip', 'steps', 2)")
    assert page.evaluate("scrub.old()") == FRESH


def test_the_run_button_runs_the_workflow(strip):
    page = strip
    page.evaluate("test.ended = null; scrub.change('SliderStrip', 'steps', 1)")
    assert old(page, "Slider Strip")
    button = "[...scrub.root().querySelectorAll('button')].find((one) => one.textContent === 'Run')"
    assert "Run button" in page.evaluate(f"{button}.title")
    page.evaluate(f"{button}.click()")
    assert page.wait_for("test.ended", 60)[0] == "execution_success"
    page.wait_for("scrub.old()[0] === ''", 20)
    assert page.evaluate("scrub.old()") == FRESH


def test_pictures_that_cannot_be_loaded_leave_nothing_of_those_before(strip):
    page = strip
    page.evaluate("scrub.move(4)")
    page.evaluate("""{
      const node = test.find("SliderStrip"), sent = app.nodeOutputs[node.id].scrub[0];
      const frames = [{ strength: 0, filename: "gone.png", subfolder: "", type: "temp" }];
      scrub.gone = () => node.onExecuted({ scrub: [JSON.stringify({ index: 1, name: "another", frames })] });
      scrub.back = () => node.onExecuted({ scrub: [sent] });
      scrub.gone();
    }""")
    page.wait_for("scrub.status().startsWith('The server no longer has these pictures')", 20)
    assert page.evaluate("scrub.pixels().split(',').every((one) => one === '0')")
    assert page.evaluate("[scrub.said(), ...scrub.old()]") == ["", *FRESH]
    page.evaluate("scrub.move(0)")
    assert page.evaluate("scrub.strength()") == 1  # there is no picture that could say which strength
    page.evaluate("performance.clearResourceTimings(); scrub.gone()")  # the page asks for them once more
    page.wait_for("performance.getEntriesByType('resource').some(({ name }) => name.includes('gone.png'))", 20)
    page.evaluate("scrub.back()")
    page.wait_for("scrub.said() === '+1'", 20)
    page.evaluate("scrub.move(2)")
    assert page.evaluate("scrub.strength()") == 0


def test_what_a_strip_shows_is_not_saved_and_comes_back_with_a_run(strip):
    page = strip
    page.evaluate("scrub.move(2)")
    graph = page.evaluate("app.graph.serialize()")
    (saved,) = (node for node in graph["nodes"] if node["type"] == f"{PREFIX}SliderStrip")
    assert len(saved["widgets_values"]) == 6
    shown(page, graph, "reloaded")
    assert page.evaluate("scrub.canvas() ?? null") is None
    run(page)
    page.wait_for("scrub.canvas() && scrub.said()", 20)
    strength = page.evaluate("scrub.strength()")
    assert page.evaluate(f"scrub.said().startsWith({as_json(f'{strength:g}')})")


SUBGRAPHS = """
  scrub.box = (name) => app.graph.nodes.find((node) => node.subgraph?.nodes.some((inner) => inner.type.endsWith(name)));
  scrub.inside = (name) => scrub.box(name).subgraph.nodes.find((node) => node.type.endsWith(name));
  scrub.slider = () => scrub.inside("DirectionSlider").widgets.find((one) => one.name === "strength").value;
  scrub.wrap = (name) => app.graph.convertToSubgraph(new Set([test.find(name)]));
"""


def test_a_slider_inside_a_subgraph_is_set(strip):
    page = strip
    page.evaluate(f"{SUBGRAPHS} scrub.wrap('DirectionSlider'); true")
    for frame in (4, 1):
        page.evaluate(f"scrub.move({frame})")
        assert page.evaluate("scrub.slider()") == -1 + frame / 2
    page.evaluate("scrub.range().dispatchEvent(new Event('change'))")
    assert page.evaluate("scrub.status()").startswith("Strength -0.5 is set for Direction Slider #")
    assert page.evaluate("scrub.said()") == "-0.5"
    # its strength is shown on the subgraph's box, where it is set from then on
    page.evaluate("""{
      const node = scrub.inside("DirectionSlider"), input = node.inputs.find((one) => one.widget?.name === "strength");
      scrub.box("DirectionSlider").subgraph.addInput("strength", "FLOAT").connect(input, node);
      scrub.slider = () => scrub.box("DirectionSlider").widgets.find((one) => one.name === "strength").value;
      scrub.move(3);
    }""")
    assert page.evaluate("scrub.slider()") == 0.5
    page.evaluate("""
      app.canvas.emitBeforeChange();
      scrub.box("DirectionSlider").widgets.find((one) => one.name === "strength").value = -0.5;
      app.canvas.emitAfterChange();
    """)
    assert page.evaluate("scrub.said()") == "-0.5"
    prompt = page.evaluate("app.graphToPrompt().then(made => made.output)")
    (slider,) = (node for node in prompt.values() if node["class_type"] == f"{PREFIX}DirectionSlider")
    assert slider["inputs"]["strength"] == -0.5


def test_a_strip_inside_a_subgraph_sets_a_slider_outside_of_it(strip):
    page = strip
    page.evaluate("""
      scrub.wrap("SliderStrip");
      scrub.root = () => scrub.inside("SliderStrip").widgets.find((one) => one.name === "scrub")?.element.shadowRoot;
      true
    """)
    run(page)
    page.evaluate("app.canvas.openSubgraph(scrub.box('SliderStrip').subgraph, scrub.box('SliderStrip'))")
    page.wait_for("scrub.canvas() && scrub.said() === '-0.5'", 20)
    screenshot(page, "scrub_subgraph")
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("scrub.move(3)")
    assert page.evaluate("scrub.slider()") == 0.5
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("scrub.change('DemoPortrait', 'size', 128)")
    page.wait_for("scrub.old()[0]", 20)
    assert old(page, "Demo Portrait")
    page.evaluate("scrub.change('DemoPortrait', 'size', 64)")
    assert page.evaluate("scrub.old()") == FRESH


def test_where_a_subgraph_is_there_twice_nothing_is_set_and_the_panel_says_why(strip):
    """The links of a strip inside it lead to two places."""
    page = strip
    page.evaluate("app.graph.add(LiteGraph.createNode(scrub.box('SliderStrip').type)); scrub.move(0)")
    assert page.evaluate("scrub.slider()") == 0.5
    page.evaluate("scrub.range().dispatchEvent(new Event('change'))")
    assert "has this subgraph several times" in page.evaluate("scrub.status()")
    page.evaluate("app.canvas.setGraph(app.graph)")
