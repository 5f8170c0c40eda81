"""Which inputs the nodes show in the page, and that what they hide is saved and queued all the same."""

import pytest
from browser import as_json
from canvas import PREFIX, opened, screenshot, setting, shown

from latent_directions.core.methods import METHODS
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.identify_shown_inputs import inputs_of

# The names of the inputs that a node shows as widgets, without its buttons and its line of text.
SHOWN = """((type) => {
  const node = test.find(type);
  const vue = document.querySelector(`[data-node-id="${node.id}"]`);
  const named = node.widgets.filter((w) => w.type !== "button" && !w.name.startsWith("$$"));
  if (!vue) return named.filter((w) => node.isWidgetVisible(w)).map((w) => w.name);
  const words = [...vue.querySelectorAll("[data-testid=node-widget]")].map((e) => e.innerText.split("\\n")[0].trim());
  return named.filter((w) => words.includes(w.label ?? w.name)).map((w) => w.name);
})(%s)"""
# Press "Show advanced" or "Hide advanced", wherever the renderer has it.
PRESS = """((type) => {
  const node = test.find(type), vue = document.querySelector(`[data-node-id="${node.id}"]`);
  if (vue) return vue.querySelector("[data-testid=advanced-inputs-button]").click(), true;
  const button = node.widgets.find((w) => w.type === "button" && w.name === "show_advanced");
  button.callback(button.value, app.canvas, node);
  return true;
})(%s)"""
CHOOSE = """((method) => {
  const node = test.find("FindDirections"), widget = test.widget("FindDirections", "method");
  widget.value = method;
  widget.callback(method, app.canvas, node);
  return true;
})(%s)"""
FIND = f"{PREFIX}FindDirections"
# One node with plain advanced inputs, and one whose text box takes the room that is left.
ADVANCED = {"InvertImage": "guidance", "FindDirections": "candidates"}
WIDGETS = {given.id for given in FindDirections.define_schema().inputs if hasattr(given, "default")}


@pytest.fixture
def template(renderer):
    return opened(renderer)


def shows(page, node: str) -> list[str]:
    page.evaluate("new Promise(done => setTimeout(() => done(true), 300))")  # until Nodes 2.0 has drawn the change
    return page.evaluate(SHOWN % as_json(node))


@pytest.mark.parametrize("node", ADVANCED)
def test_advanced_inputs_are_shown_on_request_and_stay_so_after_a_reload(template, node):
    page = template
    declared = page.evaluate(f"test.find('{node}').widgets.filter(w => w.options.advanced).map(w => w.name)")
    assert ADVANCED[node] in declared
    few = shows(page, node)
    assert not set(few) & set(declared)
    assert few
    page.evaluate(PRESS % as_json(node))
    more = shows(page, node)
    assert set(more) > set(few)
    assert ADVANCED[node] in more
    screenshot(page, f"advanced_{node}")

    graph = page.evaluate("app.graph.serialize()")
    shown(page, graph, "reloaded")
    assert shows(page, node) == more
    page.evaluate(PRESS % as_json(node))
    assert shows(page, node) == few
    heights = []
    for _ in range(4):
        heights.append(page.evaluate(f"test.find('{node}').size[1]"))
        page.evaluate(PRESS % as_json(node))
        shows(page, node)
    if not page.evaluate("Boolean(LiteGraph.vueNodesMode)"):
        assert heights[0] == heights[2] < heights[1] == heights[3]
    assert page.problems == []


def test_hidden_inputs_are_saved_and_queued_unchanged(template):
    """The prompt and the saved values, whatever is shown, also of hidden inputs that are not at their default."""
    page = template
    page.evaluate("test.set('FindDirections', 'hold_outside', 7); test.set('InvertImage', 'guidance', 2)")
    seen = []
    for method in ("text", "explore", "text"):
        page.evaluate(CHOOSE % as_json(method))
        for _ in range(2):
            page.evaluate(PRESS % as_json("InvertImage"))
            page.evaluate(PRESS % as_json("FindDirections"))
            prompt = page.evaluate("app.graphToPrompt().then(made => made.output)")
            values = dict(page.evaluate("app.graph.serialize().nodes.map(n => [n.type, n.widgets_values ?? []])"))
            (found,) = (node["inputs"] for node in prompt.values() if node["class_type"] == FIND)
            assert (found.pop("method"), values[FIND].pop(0)) == (method, method)
            seen.append((prompt, values))
    assert all(one == seen[0] for one in seen)
    assert {"method", *found} - {"model", "inversion", "clip"} == WIDGETS
    assert found["hold_outside"] == 7
    assert len(values[FIND]) == len(WIDGETS) - 1


def test_find_directions_shows_what_the_method_uses(template):
    page = template
    page.evaluate(PRESS % as_json("FindDirections"))
    expected = {name: {"method", *inputs_of(method)} & WIDGETS for name, method in METHODS.items()}
    for method in (*METHODS, "explore"):
        page.evaluate(CHOOSE % as_json(method))
        assert set(shows(page, "FindDirections")) == expected[method], method
    screenshot(page, "explore")
    shown(page, page.evaluate("app.graph.serialize()"), "reloaded")
    assert set(shows(page, "FindDirections")) == expected["explore"]
    assert page.problems == []


def test_a_linked_input_is_shown_and_a_linked_method_shows_all(template):
    page = template
    page.evaluate("""
      test.add("PrimitiveInt", 300, 900); test.link("PrimitiveInt", "INT", "FindDirections", "hold_outside");
    """)
    assert "hold_outside" in shows(page, "FindDirections")
    page.evaluate("{const n = test.find('FindDirections'); n.disconnectInput(n.findInputSlot('hold_outside'))}")
    assert "hold_outside" not in shows(page, "FindDirections")
    page.evaluate(PRESS % as_json("FindDirections"))
    page.evaluate("""{
      const node = LiteGraph.createNode("PrimitiveNode"), to = test.find("FindDirections");
      node.pos = [300, 1000]; app.graph.add(node); node.connect(0, to, to.findInputSlot("method"));
    }""")
    assert set(shows(page, "FindDirections")) == WIDGETS


def test_the_setting_that_always_shows_advanced_inputs_is_followed(template):
    page = template
    setting(page, "Comfy.Node.AlwaysShowAdvancedWidgets", True)
    try:
        assert ADVANCED["InvertImage"] in shows(page, "InvertImage")
    finally:
        setting(page, "Comfy.Node.AlwaysShowAdvancedWidgets", False)
    assert ADVANCED["InvertImage"] not in shows(page, "InvertImage")


@pytest.mark.parametrize("renderer", ["classic"], indirect=True, scope="module")  # Nodes 2.0 has its own button
def test_a_click_on_the_canvas_presses_the_button_and_other_slots_stay_in_reach(template):
    """The button lies where it is drawn, and no hidden input lies over one that is shown."""
    page = template
    setting(page, "Comfy.Canvas.NavigationMode", "standard")
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.evaluate("new Promise(done => setTimeout(() => done(true), 1000))")
    reach = """((node) => node.inputs.filter((slot, i) => {
      const widget = node.widgets.find((w) => w.name === slot.widget?.name);
      return !widget || node.isWidgetVisible(widget);
    }).map((slot) => {
      const pos = node.getInputPos(node.inputs.indexOf(slot));
      return [slot.name, node.getInputOnPos(pos)?.name];
    }))(test.find("FindDirections"))"""
    page.evaluate(CHOOSE % as_json("explore"))
    for _ in range(2):
        page.evaluate("new Promise(done => setTimeout(() => done(true), 300))")
        for name, found in page.evaluate(reach):
            assert name == found
        x, y = page.evaluate("""((node) => {
          const button = node.widgets.find((w) => w.name === "show_advanced");
          const at = app.canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + button.y + 10]);
          const box = app.canvas.canvas.getBoundingClientRect();
          return [at[0] + box.left, at[1] + box.top];
        })(test.find("FindDirections"))""")
        before = page.evaluate("Boolean(test.find('FindDirections').showAdvanced)")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        page.wait_for(f"Boolean(test.find('FindDirections').showAdvanced) !== {as_json(before)}", 10)


def test_methods_are_shown_in_words_and_queued_by_their_names(template):
    page = template
    page.evaluate(CHOOSE % as_json("T-LOCO"))
    widget = "test.widget('FindDirections', 'method')"
    labels = page.evaluate(f"{widget}.options.values.map(name => {widget}.options.getOptionLabel(name))")
    assert labels == [method.label for method in METHODS.values()]
    assert len(set(labels)) == len(METHODS)
    if page.evaluate("Boolean(LiteGraph.vueNodesMode)"):
        find = "document.querySelector(`[data-node-id=\"${test.find('FindDirections').id}\"]`).innerText"
        page.wait_for(f"{find}.includes({as_json(METHODS['T-LOCO'].label)})", 20)
    else:
        assert page.evaluate(f"{widget}._displayValue") == METHODS["T-LOCO"].label
    made = page.evaluate("app.graphToPrompt().then(made => made.output)")
    (find,) = (node for node in made.values() if node["class_type"] == FIND)
    assert find["inputs"]["method"] == "T-LOCO"
