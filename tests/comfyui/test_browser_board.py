"""The rows of Slider Board: they write its JSON, come back with the workflow, and move the picture without a search."""

import json

import pytest
from browser import as_json
from canvas import PREFIX, SEEDS, opened, refused, run, screenshot, see_all, shown
from test_browser_inputs import SHOWN

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
    assert [row["words"] for row in sliders(page)] == ["smiling", "with hat", "brown hair | grey hair"]
    assert all(row["strength"] == 1 and row["on"] and row["keep"] == "" for row in sliders(page))
    page.evaluate("board.put('input[type=range]', 0, 1.5)")
    page.evaluate("board.put('input[type=number]', 1, 7)")
    page.evaluate("board.put('input[type=checkbox]', 2, false)")
    page.evaluate("board.put('.words', 2, '')")  # an empty text is not taken
    page.evaluate("board.press('What must not', 0)")
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


def test_it_comes_back_with_the_workflow(page):
    before = sliders(page)
    graph = page.evaluate("app.graph.serialize()")
    prompt = shown(page, graph, "board again")
    page.wait_for("board.all('.row').length === 2")
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
    assert "is not the JSON of a slider board" in page.evaluate("board.status()")
    page.evaluate("board.all('button')[0].click()")
    assert sliders(page) == []
    page.problems.clear()  # the page writes to its console that the server has refused
