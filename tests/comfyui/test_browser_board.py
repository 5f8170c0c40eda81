"""The rows of Slider Board: they write its JSON, come back with the workflow, and move the picture without a search."""

import json
import statistics

import pytest
from browser import as_json
from canvas import PREFIX, SEEDS, opened, queued, refused, run, screenshot, see_all, shown
from hand import CONTROL, Hand
from test_browser_inputs import SHOWN
from test_browser_scrub import FRESH, LONGEST, SCRUB

BOARD = """window.board = {
  root: () => test.find("SliderBoard").widgets.find((w) => w.name === "sliders").element.shadowRoot,
  all: (selector) => [...board.root().querySelectorAll(selector)],
  sliders: () => JSON.parse(test.widget("SliderBoard", "board").value).sliders,
  status: () => board.root().querySelector("[role=status]").textContent,
  add: (words) => {
    const field = board.root().querySelector(".add input");
    field.value = words;
    field.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  },
  // what a hand does to an element: its value, then the event that the browser sends
  put: (selector, row, value) => {
    const element = board.all(selector)[row];
    if (element.type === "checkbox") element.checked = value;
    else element.value = value;
    for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, {bubbles: true}));
  },
  press: (name, row) => board.all(".row")[row].querySelector(`button[title^="${name}"]`).click(),
};"""
WHOLE = {"keep": "", "on": True}


@pytest.fixture(scope="module")
def page(renderer):
    """The first template with a Slider Board in place of Find Directions and Direction Slider."""
    page = opened(renderer)
    page.evaluate(BOARD)
    page.evaluate(f"""{{
      test.add("{PREFIX}SliderBoard", 800, 0);
      for (const type of ["FindDirections", "DirectionSlider", "ApplySliders"]) app.graph.remove(test.find(type));
      test.link("LoadDemoModel", "MODEL", "SliderBoard", "model");
      test.link("LoadDemoModel", "CLIP", "SliderBoard", "clip");
      test.link("InvertImage", "inversion", "SliderBoard", "inversion");
      test.link("SliderBoard", "model", "BasicGuider", "model");
      test.link("SliderBoard", "conditioning", "BasicGuider", "conditioning");
      test.link("SliderBoard", "noise", "SamplerCustomAdvanced", "noise");
      test.set("SliderBoard", "source", "a portrait of a person");
      test.set("SliderBoard", "find_keeps", "demo portraits"); test.set("InvertImage", "seed", {next(SEEDS)});
    }}""")
    yield page
    assert page.problems == []


def sliders(page) -> list[dict]:
    return page.evaluate("board.sliders()")


def picture(page) -> str:
    see_all(page)  # the classic canvas loads the pictures that it draws
    return page.wait_for("test.pictures('SaveImage')[0]?.[0]", 20)


def test_rows_are_typed_moved_kept_and_removed(page):
    assert sliders(page) == []
    for words in ("smiling", "with hat", "brown hair | grey hair"):
        page.evaluate(f"board.add({as_json(words)})")
    page.evaluate("board.add('  ')")
    assert page.evaluate("board.status()").startswith("Type first what to change")
    assert [row["words"] for row in sliders(page)] == ["smiling", "with hat", "brown hair | grey hair"]
    assert all(row["strength"] == 1 and row["on"] and row["keep"] == "" for row in sliders(page))
    page.evaluate("board.put('input[type=range]', 0, 1.5)")
    page.evaluate("board.put('input[type=number]', 1, 7)")
    page.evaluate("board.put('input[type=checkbox]', 2, false)")
    page.evaluate("board.put('.words', 2, '')")  # an empty text is not taken
    page.evaluate("board.press('What must stay', 0)")
    assert page.evaluate("document.activeElement.shadowRoot?.activeElement?.tagName") == "TEXTAREA"
    page.evaluate("board.put('textarea', 0, 'with glasses | without glasses')")
    first, second, third = sliders(page)
    assert first == {"words": "smiling", "strength": 1.5, "keep": "with glasses | without glasses", "on": True}
    assert second == {"words": "with hat", "strength": 3, **WHOLE}
    assert third == {"words": "brown hair | grey hair", "strength": 1, "keep": "", "on": False}
    assert page.evaluate("board.all('input[type=number]').map((field) => field.value)") == ["1.5", "3", "1"]
    page.evaluate("board.press('Remove', 1)")
    assert sliders(page) == [first, third]
    screenshot(page, "board")
    for number in range(7):
        page.evaluate(f"board.add('thing {number}')")
    assert len(sliders(page)) == 8
    assert "at most 8 sliders" in page.evaluate("board.status()")
    for _ in range(6):
        page.evaluate("board.press('Remove', 2)")
    assert sliders(page) == [first, third]


def test_it_runs_and_moving_or_turning_off_searches_nothing_again(page):
    page.evaluate("board.put('input[type=checkbox]', 1, true)")
    run(page)
    assert page.evaluate("test.line('SliderBoard')").startswith("2 sliders on, 2 found in ")
    both = picture(page)
    page.evaluate("board.put('input[type=range]', 0, -1)")
    run(page)
    assert page.evaluate("test.line('SliderBoard')") == "2 sliders on, all found before"
    page.wait_for(f"test.pictures('SaveImage')[0][0] !== {as_json(both)}", 20)
    widgets = page.evaluate(SHOWN % as_json("SliderBoard"))
    assert "source" in widgets
    assert "board" not in widgets  # the rows are in its place
    screenshot(page, "board_run")
    page.evaluate("board.put('input[type=checkbox]', 0, false)")
    run(page)
    assert page.evaluate("test.line('SliderBoard')") == "1 slider on, all found before"


ROWS = [("smiling", 0.5, True), ("with hat", 1, False), ("brown hair | grey hair", 1, True)]
PUT = """{ const json = test.widget("SliderBoard", "board"); json.value = %s; json.callback(json.value); }"""


def test_a_strip_moves_the_row_that_it_shows(page):
    """The second of the rows that are on: it, and nothing else of the board."""
    board = {"version": 1, "sliders": [{"words": words, "strength": s, "on": on} for words, s, on in ROWS]}
    page.evaluate(PUT % as_json(json.dumps(board)))
    page.evaluate(SCRUB)
    page.evaluate(f"""
      test.add("{PREFIX}SliderStrip", 800, 700);
      for (const name of ["inversion", "directions"]) test.link("SliderBoard", name, "SliderStrip", name);
      test.link("LoadDemoModel", "VAE", "SliderStrip", "vae");
    """)
    for name, value in {"index": 1, "frames": 3, "keyframes": 3, "steps": 2}.items():
        page.evaluate(f"test.set('SliderStrip', '{name}', {value})")
    run(page)
    page.wait_for("scrub.canvas() && scrub.said() === '+1'", 20)
    rows = "board.all('input[type=range]').map((field) => Number(field.value))"
    page.evaluate("scrub.first = board.all('.words')[0]")
    pictures = {}
    for frame, strength in enumerate((-1, 0, 1)):
        page.evaluate(f"scrub.move({frame})")
        assert [row["strength"] for row in sliders(page)] == page.evaluate(rows) == [0.5, 1, strength]
        pictures[strength] = page.evaluate("scrub.pixels()")
    assert len(set(pictures.values())) == 3
    assert page.evaluate("scrub.first.isConnected")  # the rows are not drawn anew, so that the focus stays
    page.evaluate("scrub.range().dispatchEvent(new Event('change'))")
    assert page.evaluate("scrub.status()").startswith("Strength +1 is set for grey hair on Slider Board #")
    screenshot(page, "board_strip")

    times = []
    for strength in (-1, 0, 1, 0):
        took, pixels, said = page.evaluate(f"""(() => {{
          const began = performance.now();
          const range = board.all("input[type=range]")[2];
          range.value = {strength}; range.dispatchEvent(new Event("input"));
          const pixels = scrub.pixels();
          return [performance.now() - began, pixels, scrub.said()];
        }})()""")
        assert (pixels, float(said)) == (pictures[strength], strength)
        times.append(took)
    assert statistics.median(times) < LONGEST


def test_the_pictures_are_from_before_a_change_of_any_other_row(page):
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("board.put('input[type=range]', 0, 1)")
    sentence, opacity = page.evaluate("scrub.old()")
    assert sentence.startswith("These pictures are from before a change in Slider Board #")
    assert opacity < 0.5
    page.evaluate("board.put('input[type=range]', 0, 0.5)")
    assert page.evaluate("scrub.old()") == FRESH
    # now the strip's index counts another row, of which there are no pictures
    page.evaluate("board.put('input[type=checkbox]', 1, true); scrub.move(0)")
    assert page.evaluate("scrub.old()[0]")
    assert [row["strength"] for row in sliders(page)] == [0.5, 1, 0]
    page.evaluate("board.put('input[type=checkbox]', 1, false)")
    assert page.evaluate("scrub.old()") == FRESH


def test_a_strip_of_the_unmoved_picture_does_not_depend_on_the_strengths_of_a_board(page):
    page.evaluate("test.link('InvertImage', 'inversion', 'SliderStrip', 'inversion')")
    assert page.evaluate("scrub.old()[0]").startswith("These pictures are from before a change in Slider Strip #")
    run(page)
    page.wait_for("scrub.old()[0] === ''", 20)
    page.evaluate("board.put('input[type=range]', 0, 1); scrub.move(0)")
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("board.put('.words', 0, 'angry')")
    assert page.evaluate("scrub.old()[0]").startswith("These pictures are from before a change in Slider Board #")
    page.evaluate("board.put('.words', 0, 'smiling'); board.put('input[type=range]', 0, 0.5)")
    assert page.evaluate("scrub.old()") == FRESH


def test_a_movement_of_the_strip_is_one_step_that_can_be_undone(page):
    page.evaluate("board.put('input[type=range]', 2, 0)")
    for frame in (2, 1, 0):
        page.evaluate(f"scrub.move({frame})")
    page.evaluate("scrub.range().dispatchEvent(new Event('change'))")
    assert [row["strength"] for row in sliders(page)] == [0.5, 1, -1]
    page.evaluate("app.extensionManager.command.execute('Comfy.Undo').then(() => true)")
    page.wait_for("board.sliders()[2].strength === 0", 20)
    assert [row["strength"] for row in sliders(page)] == [0.5, 1, 0]
    page.wait_for("scrub.canvas() && scrub.said() === '0'", 20)  # the pictures have come back too
    page.wait_for("scrub.root().host.isConnected", 20)
    assert page.evaluate("scrub.old()") == FRESH
    page.evaluate("app.graph.remove(test.find('SliderStrip'))")


def test_it_comes_back_with_the_workflow(page):
    before = sliders(page)
    graph = page.evaluate("app.graph.serialize()")
    prompt = shown(page, graph, "board again")
    page.wait_for(f"board.all('.row').length === {len(before)}", 20)
    page.wait_for("board.root().host.isConnected", 20)
    assert sliders(page) == before
    (node,) = (node for node in prompt.values() if node["class_type"] == PREFIX + "SliderBoard")
    assert json.loads(node["inputs"]["board"])["sliders"] == before
    assert set(node["inputs"]) == {"model", "inversion", "clip", "source", "board", "find_keeps", "where"}
    # an undone step, or a program in the page
    page.evaluate("""test.widget("SliderBoard", "board").value = '{"version": 1, "sliders": [{"words": "angry"}]}';
      test.widget("SliderBoard", "board").callback()""")
    assert page.evaluate("board.all('.words').map((field) => field.value)") == ["angry"]


def test_what_is_wrong_is_said_before_anything_runs(page, comfy):
    page.evaluate("test.set('SliderBoard', 'source', '')")
    assert "Write what the picture shows now" in refused(comfy, page)
    page.evaluate("test.set('SliderBoard', 'source', 'a portrait'); board.put('textarea, .words', 0, 'a | b | c')")
    assert "one bar between them" in refused(comfy, page)
    page.evaluate("test.widget('SliderBoard', 'board').value = '{}'; test.widget('SliderBoard', 'board').callback()")
    assert "These sliders cannot be shown" in page.evaluate("board.status()")
    page.evaluate("board.all('button')[0].click()")
    assert sliders(page) == []
    page.problems.clear()  # the page writes to its console that the server has refused


def hand_on(page, *words: str) -> Hand:
    """A hand on a board with these words in its rows, all of which is in the window."""
    board = {"version": 1, "sliders": [{"words": one} for one in words]}
    page.evaluate(PUT % as_json(json.dumps(board)))
    see_all(page)
    return Hand(page)


def typed(hand: Hand, element: str, text: str) -> None:
    """Type in place of what a field of the board holds, and stay in it."""
    hand.click(element)
    hand.press("a", CONTROL)
    hand.page.call("Input.insertText", text=text)


def settled(page) -> None:
    page.evaluate("new Promise(done => setTimeout(() => done(true), 500))")


WORDS, NEW = "(board.all('.words')[0])", "(board.root().querySelector('.add input'))"
FOCUSED = "board.root().activeElement"


def test_undo_in_a_text_field_leaves_the_workflow_alone(page):
    hand = hand_on(page)
    page.evaluate("board.add('smiling')")  # a step that the page could undo
    typed(hand, NEW, "brown h")
    page.evaluate(f"board.field = {NEW}")
    for key in "zy":
        hand.press(key, CONTROL)
        settled(page)
    assert page.evaluate(f"board.field.isConnected && {FOCUSED} === board.field")
    assert [row["words"] for row in sliders(page)] == ["smiling"]
    page.evaluate(f"{NEW}.value = ''")
    hand.click("(board.all('input[type=checkbox]')[0])")
    assert sliders(page)[0]["on"] is False
    hand.press("z", CONTROL)  # no text is typed there
    page.wait_for("board.sliders()[0].on", 20)


def test_after_undo_the_page_shows_the_rows_of_the_new_node(page):
    """Undo loads the workflow anew, with a node of the same id."""
    hand = hand_on(page)
    page.evaluate("board.add('smiling')")
    hand.click("(board.all('input[type=checkbox]')[0])")
    hand.press("z", CONTROL)
    page.wait_for("board.sliders()[0]?.on", 20)
    hand.click("(board.all('input[type=checkbox]')[0])")
    assert sliders(page)[0]["on"] is False


def test_copy_and_paste_in_a_text_field_leave_the_nodes_alone(page):
    hand = hand_on(page, "smiling")
    count = "app.graph.nodes.length"
    before = page.evaluate(count)
    page.evaluate("app.canvas.select(test.find('SaveImage')); app.canvas.copyToClipboard()")
    typed(hand, WORDS, "angry")
    page.evaluate("app.canvas.select(test.find('SaveImage'))")
    for kind in ("copy", "cut", "paste"):
        # whether the page has taken the event for itself
        assert page.evaluate(f"""{{
          const clipboardData = new DataTransfer();
          clipboardData.setData("text/plain", "sad");
          {FOCUSED}.dispatchEvent(
            new ClipboardEvent("{kind}", {{bubbles: true, composed: true, cancelable: true, clipboardData}}));
        }}""")
    settled(page)
    assert page.evaluate(count) == before
    page.evaluate("app.canvas.deselectAll()")


def test_the_focus_goes_on_from_words_that_are_changed(page):
    hand = hand_on(page, "smiling", "with hat")
    typed(hand, WORDS, " angry ")
    hand.press("Tab")
    assert page.evaluate(f"{FOCUSED} === board.all('.range')[0]")
    assert sliders(page)[0]["words"] == page.evaluate(f"{WORDS}.value") == "angry"
    labels = page.evaluate(
        "[...board.all('.row')[0].children].map((one) => one.getAttribute('aria-label') ?? one.title)"
    )
    assert [label for label in labels if "angry" in label] == [
        "On: angry",
        "Strength: angry",
        "Strength as a number: angry",
        "Remove: angry",
    ]
    assert page.evaluate(f"{WORDS}.title") == "angry"
    typed(hand, WORDS, "sad")
    hand.click("(board.all('[data-keep]')[1])")
    assert page.evaluate(f"{FOCUSED}?.getAttribute('aria-label')") == "What must stay as it is with: with hat"
    typed(hand, "(board.all('.words')[1])", "with glasses")
    hand.press("Tab")
    label = page.evaluate("board.all('textarea')[0].getAttribute('aria-label')")
    assert label == "What must stay as it is with: with glasses"


def test_a_run_by_keys_takes_what_is_typed(page, comfy):
    """The words are typed wrongly, so that the server refuses them."""
    hand = hand_on(page, "smiling")
    before = queued(comfy)
    page.evaluate("test.set('SliderBoard', 'source', 'a portrait'); app.extensionManager.toast.removeAll()")
    page.wait_for("test.toasts().length === 0")
    typed(hand, WORDS, "a | b | c")
    hand.press("Enter", CONTROL)
    assert "one bar between them" in page.wait_for("test.toasts().at(-1)", 20)
    assert queued(comfy) == before
    page.problems.clear()  # the page writes to its console that the server has refused


def test_a_change_that_fails_does_not_stop_the_history(page):
    assert (
        page.evaluate("""import("/extensions/latent-directions/panel.js").then(({ asOneStep }) => {
      try { asOneStep(() => { throw new Error("failed"); }); } catch { /* as it must */ }
      return app.extensionManager.workflow.activeWorkflow.changeTracker.changeCount;
    })""")
        == 0
    )


def test_a_node_that_is_in_no_workflow_is_not_drawn(page):
    """The page makes such nodes when it copies some, and keeps those of subgraphs that are gone."""
    hand_on(page, "smiling")
    assert page.evaluate("""{
      const copy = test.find("SliderBoard").clone(), named = (name) => copy.widgets.find((one) => one.name === name);
      named("board").value = '{"version": 1, "sliders": [{"words": "angry"}]}';
      app.api.dispatchCustomEvent("graphChanged", app.graph.serialize());
      [...named("sliders").element.shadowRoot.querySelectorAll(".words")].map((one) => one.value);
    }""") != ["angry"]
