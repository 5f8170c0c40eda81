"""The gallery of Preview Directions: its tiles, what they are called, their order, and which sliders they set."""

import re

import pytest
from browser import as_json
from canvas import PREFIX, SEEDS, opened, run, screenshot, see_all, shown
from hand import Hand, press

# The gallery's own elements, which lie in a shadow root, of the one Preview Directions of the graph.
GALLERY = """window.gallery = {
  root: () => test.find("PreviewDirections").widgets.find((w) => w.name === "gallery")?.element.shadowRoot,
  tiles: () => [...(gallery.root()?.querySelectorAll("button.choose") ?? [])],
  names: () => gallery.tiles().map((tile) => tile.querySelector(".name").textContent),
  // the number of each tile's direction among those found
  order: () => gallery.tiles().map((tile) => Number(tile.dataset.index)),
  sort: (order) => {
    const list = gallery.root().querySelector("#order");
    list.value = order;
    list.dispatchEvent(new Event("change"));
  },
  field: () => gallery.root().querySelector(".tile input"),
  pressed: () => gallery.tiles().map((tile) => tile.getAttribute("aria-pressed") === "true"),
  list: () => gallery.root().querySelector("select"),
  status: () => gallery.root().querySelector("[role=status]").textContent,
  index: (id) => app.graph.getNodeById(id).widgets.find((w) => w.name === "index").value,
};"""
TILES = "((t) => t.length && t.every((b) => [...b.querySelectorAll('img')].every((i) => i.naturalWidth)) && t.length)"


@pytest.fixture(scope="module")
def previewed(renderer):
    """A run of Preview Directions on three directions, with a slider and a Quick Slider that are given the same."""
    page = opened(renderer)
    page.evaluate(GALLERY)
    page.evaluate(f"""
      test.add("{PREFIX}PreviewDirections", -400, 0); test.add("{PREFIX}PrepareQuickSlider", -400, 900);
      test.add("{PREFIX}QuickSlider", 0, 900);
      test.link("LoadDemoModel", "VAE", "PreviewDirections", "vae");
      for (const type of ["PreviewDirections", "PrepareQuickSlider", "QuickSlider"])
        test.link("InvertImage", "inversion", type, "inversion");
      for (const type of ["PreviewDirections", "PrepareQuickSlider"])
        test.link("FindDirections", "directions", type, "directions");
      test.link("PrepareQuickSlider", "directions", "QuickSlider", "directions");
      test.set("PreviewDirections", "steps", 1); test.set("PreviewDirections", "columns", 3);
      test.set("FindDirections", "method", "LOCO"); test.set("FindDirections", "count", 3);
      test.set("FindDirections", "seed", {next(SEEDS)});
    """)
    run(page)
    assert page.wait_for(f"{TILES}(gallery.tiles())", 20) == 3
    yield page
    assert page.problems == []


def id_of(page, node: str) -> int:
    return page.evaluate(f"test.find('{node}').id")


def indices(page) -> list[int]:
    """`index` of Direction Slider, Prepare Quick Slider and Quick Slider."""
    nodes = ("DirectionSlider", "PrepareQuickSlider", "QuickSlider")
    return [page.evaluate(f"test.widget('{node}', 'index').value") for node in nodes]


def set_by_click(page, which: str, tile: int) -> None:
    page.evaluate(f"""{{
      const list = gallery.list(), option = [...list.options].find((o) => o.text.startsWith({as_json(which)}));
      list.value = option.value; list.dispatchEvent(new Event("change")); gallery.tiles()[{tile}].click();
    }}""")


def test_a_tile_names_its_direction_and_shows_it_at_three_strengths(previewed):
    screenshot(previewed, "gallery")
    names = previewed.evaluate("gallery.names()")
    for number, name in enumerate(names):
        assert re.fullmatch(rf"direction {number + 1}, \d+(\.\d)? %", name)
    tiles = "gallery.tiles().map((t) => [...t.querySelectorAll('img')]"
    assert previewed.evaluate(f"{tiles}.map((i) => i.alt))") == [["-2", "0", "+2"]] * 3
    addresses = previewed.evaluate(f"{tiles}.map((i) => i.src))")
    assert len({address for row in addresses for address in row}) == 2 * 3 + 1  # the picture at 0 is one for all
    labels = previewed.evaluate("gallery.tiles().map((t) => t.getAttribute('aria-label'))")
    name, change = names[1].split(", ")
    assert labels[1] == f"Index 1: {name}. Changes the picture by {change}. Pictures at strengths -2, 0, +2."


def test_a_click_sets_the_slider_that_the_list_names(previewed):
    page = previewed
    quick, slider = id_of(page, "QuickSlider"), id_of(page, "DirectionSlider")
    names = page.evaluate("[...gallery.list().options].map((o) => o.text)")
    assert sorted(names) == sorted([f"Direction Slider #{slider}", f"Quick Slider #{quick}", "all of them"])
    set_by_click(page, "all", 0)
    assert indices(page) == [0, 0, 0]
    set_by_click(page, "Direction Slider", 1)
    assert indices(page) == [1, 0, 0]
    assert page.evaluate("gallery.pressed()") == [False, True, False]
    assert (
        page.evaluate("gallery.status()") == f"Index 1 is chosen for Direction Slider #{slider}. Press Run to see it."
    )
    set_by_click(page, "Quick Slider", 2)
    assert indices(page) == [1, 2, 2]
    assert page.evaluate("gallery.pressed()") == [False, False, True]
    set_by_click(page, "all", 0)
    assert indices(page) == [0, 0, 0]


def called(page) -> list[str]:
    """The tiles' names without the change."""
    return [re.sub(r", [^,]* %$", "", name) for name in page.evaluate("gallery.names()")]


def test_an_artist_names_a_direction_by_double_click_or_key(previewed):
    page = previewed
    page.evaluate("gallery.tiles()[1].focus()")
    press(page, "F2")
    assert page.evaluate("gallery.field().value") == "direction 2"
    page.call("Input.insertText", text="  longer hair ")
    press(page, "Enter")
    assert called(page) == ["direction 1", "longer hair", "direction 3"]
    assert page.evaluate("gallery.root().activeElement === gallery.tiles()[1]")
    set_by_click(page, "all", 0)
    see_all(page)
    hand = Hand(page)
    hand.click("(gallery.tiles()[2].querySelector('.name'))", times=2)
    assert page.evaluate("gallery.field().value") == "direction 3"
    page.evaluate("new Promise(done => setTimeout(() => done(true), 500))")
    assert indices(page) == [0, 0, 0]  # nothing is chosen
    page.call("Input.insertText", text="hat")
    press(page, "Escape")
    assert called(page)[2] == "direction 3"
    hand.click("(gallery.tiles()[2].querySelector('.name'))")
    page.wait_for("gallery.pressed()[2]", 10)
    page.evaluate("gallery.root().querySelectorAll('.rename')[2].click()")
    page.call("Input.insertText", text="hat")
    page.evaluate("gallery.field().blur()")
    assert called(page) == ["direction 1", "longer hair", "hat"]
    screenshot(page, "gallery_named")
    labels = page.evaluate("gallery.tiles().map((t) => t.getAttribute('aria-label'))")
    assert labels[2].startswith("Index 2: hat. Changes the picture by ")
    # an empty name gives the found one back
    page.evaluate(
        "gallery.root().querySelectorAll('.rename')[2].click(); gallery.field().value = ' '; gallery.field().blur()"
    )
    assert called(page) == ["direction 1", "longer hair", "direction 3"]
    assert list(page.evaluate("test.find('PreviewDirections').properties.names").values()) == ["longer hair"]


def test_a_name_that_is_being_typed_is_kept_when_a_run_ends(previewed):
    page = previewed
    page.evaluate("gallery.root().querySelectorAll('.rename')[0].click()")
    page.call("Input.insertText", text="angrier")
    # what a run hands on that finds the same directions, of another strength
    page.evaluate("""{
      const node = test.find("PreviewDirections"), found = JSON.parse(app.nodeOutputs[node.id].gallery[0]);
      node.onExecuted({ gallery: [JSON.stringify(found.map((one) => ({ ...one, change: 2 * one.change })))] });
      gallery.end = () => node.onExecuted({ gallery: [JSON.stringify(found)] });
    }""")
    assert page.evaluate("gallery.field().value") == "angrier"
    page.evaluate("gallery.field().blur()")
    assert called(page)[0] == "angrier"
    page.evaluate("gallery.end(); gallery.root().querySelectorAll('.rename')[0].click(); gallery.field().value = ''")
    page.evaluate("gallery.field().blur()")
    assert called(page)[0] == "direction 1"


def test_tiles_are_ordered_by_change_and_still_choose_their_own_direction(previewed):
    page = previewed
    set_by_click(page, "Direction Slider", 0)
    # on the tiles they are rounded, so that two can be equal
    sent = "app.nodeOutputs[test.find('PreviewDirections').id].gallery[0]"
    changes = page.evaluate(f"JSON.parse({sent}).map((one) => one.change)")
    page.evaluate("gallery.sort('change')")
    order = page.evaluate("gallery.order()")
    assert order == sorted(range(3), key=lambda index: -changes[index])
    for place, index in enumerate(order):
        page.evaluate(f"gallery.tiles()[{place}].click()")
        assert indices(page)[0] == index
        assert page.evaluate("gallery.pressed()") == [k == place for k in range(3)]
    assert page.evaluate("test.find('PreviewDirections').properties.order") == "change"
    page.evaluate("gallery.sort('')")
    assert page.evaluate("gallery.order()") == [0, 1, 2]


def test_keys_reach_the_tiles_and_what_the_slider_says_is_marked(previewed):
    page = previewed
    set_by_click(page, "Direction Slider", 0)
    page.evaluate("gallery.tiles()[0].focus()")
    press(page, "Tab")
    press(page, "Enter")
    assert indices(page)[0] == 1
    assert page.evaluate("gallery.pressed()") == [False, True, False]
    page.evaluate("""{
      const node = test.find("DirectionSlider"), widget = test.widget("DirectionSlider", "index");
      widget.value = 2; widget.callback(2, app.canvas, node);
    }""")
    assert page.evaluate("gallery.pressed()") == [False, False, True]


def test_what_cannot_be_set_is_said(previewed):
    page = previewed
    set_by_click(page, "Direction Slider", 0)
    page.evaluate("""
      test.add("PrimitiveInt", 800, 900); test.link("PrimitiveInt", "INT", "DirectionSlider", "index");
      gallery.tiles()[1].click();
    """)
    assert "comes from a link. Change it there." in page.evaluate("gallery.status()")
    assert indices(page)[0] == 0
    page.evaluate("{const n = test.find('DirectionSlider'); n.disconnectInput(n.findInputSlot('index'))}")
    page.evaluate("gallery.tiles()[1].click()")
    assert indices(page)[0] == 1


def test_the_choice_is_saved_and_a_run_gives_the_tiles_back(previewed):
    """Saved are the indices, which slider a click sets, and an artist's names.

    The tiles are those of the last run, as all pictures are. Another search finds others, which have no names yet.
    """
    page = previewed
    set_by_click(page, "Quick Slider", 2)
    assert called(page) == ["direction 1", "longer hair", "direction 3"]
    graph, before = page.evaluate("app.graph.serialize()"), indices(page)
    (saved,) = (node for node in graph["nodes"] if node["type"] == f"{PREFIX}PreviewDirections")
    assert len(saved["widgets_values"]) == 3
    shown(page, graph, "reloaded")
    assert indices(page) == before
    prompt = page.evaluate("app.graphToPrompt().then(made => made.output)")
    (node,) = (node for node in prompt.values() if node["class_type"] == f"{PREFIX}PreviewDirections")
    assert set(node["inputs"]) == {"inversion", "directions", "vae", "strength", "columns", "steps"}
    run(page)
    assert page.wait_for(f"{TILES}(gallery.tiles())", 20) == 3
    assert page.evaluate("gallery.pressed()") == [False, False, True]
    assert page.evaluate("gallery.list().selectedOptions[0].text").startswith("Quick Slider")
    assert called(page) == ["direction 1", "longer hair", "direction 3"]
    page.evaluate(f"test.set('FindDirections', 'seed', {next(SEEDS)}); test.set('InvertImage', 'seed', {next(SEEDS)})")
    page.evaluate("test.set('DemoPortrait', 'seed', test.widget('DemoPortrait', 'seed').value + 1)")
    run(page)
    assert page.wait_for(f"{TILES}(gallery.tiles())", 20) == 3
    assert called(page) == ["direction 1", "direction 2", "direction 3"]


def test_the_tiles_come_back_with_the_tab_of_the_workflow(previewed):
    page = previewed
    tiles = page.evaluate("gallery.tiles().map((t) => t.getAttribute('aria-label'))")
    assert tiles
    path = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow').then(() => true)")
    page.wait_for("!test.find('PreviewDirections')", 20)
    page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow').then(() => true)")
    page.wait_for(f"app.extensionManager.workflow.activeWorkflow.path === {as_json(path)}", 20)
    assert page.wait_for("gallery.tiles().length && gallery.tiles().map((t) => t.getAttribute('aria-label'))") == tiles
    page.wait_for("gallery.root().host.isConnected", 20)
