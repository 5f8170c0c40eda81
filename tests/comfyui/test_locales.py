"""Translations of the nodes and of the page's words: whole, as the code is now, and shown by the page."""

import json
import re

import pytest
from browser import Browser, as_json, find_chromium

from scripts import locales


@pytest.fixture(scope="module")
def made():
    """All files; fails where a text of a schema has no translation, or a translation no text."""
    return locales.files()


def test_the_committed_files_are_those_that_the_schemas_give(made):
    assert {path.relative_to(locales.FOLDER).as_posix() for path in made} == {
        "en/nodeDefs.json", "zh/main.json", "zh/nodeDefs.json", "ja/main.json", "ja/nodeDefs.json"
    }  # fmt: skip
    for path, content in made.items():
        assert json.loads(path.read_text(encoding="utf-8")) == content, path


def test_a_missing_translation_is_named(monkeypatch):
    words = locales.words_of("ja")
    del words["nodes"]["Direction Slider"]
    monkeypatch.setattr(locales, "words_of", lambda language: words)
    with pytest.raises(locales.TranslationsError, match="nodes: not translated: Direction Slider"):
        locales.files()


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_names_and_descriptions_hold_nothing_that_the_page_would_compile(made, language):
    """The page's library of translations reads braces, @ and | in them as its own language."""
    for node in made[locales.FOLDER / language / "nodeDefs.json"].values():
        names = [slot["name"] for part in ("inputs", "outputs") for slot in node[part].values() if "name" in slot]
        for text in (node["display_name"], node["description"], *names):
            assert not set(text) & set("{}@|"), text


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_a_translated_sentence_has_the_places_of_the_english_one(made, language):
    sentences = made[locales.FOLDER / language / "main.json"][locales.PAGE_KEY]
    assert "Show advanced" in sentences
    for english, text in sentences.items():
        assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", english)), text


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_the_page_shows_a_node_in_the_language_that_is_set(comfy, made, language):
    slider = made[locales.FOLDER / language / "nodeDefs.json"]["LatentDirections_DirectionSlider"]
    comfy.client.request("/settings/Comfy.TutorialCompleted", b"true")
    comfy.client.request("/settings/Comfy.Locale", as_json(language).encode())
    try:
        with Browser(find_chromium()) as browser:
            browser.open(comfy.client.url)
            browser.wait_for("Boolean(window.app && app.vueAppReady && app.graph)")
            browser.evaluate("""
              window.slider = LiteGraph.createNode("LatentDirections_DirectionSlider"); app.graph.add(slider); true
            """)
            assert browser.wait_for("slider.title", 20) == slider["display_name"]
            label = "(w => w.label)(slider.widgets.find((w) => w.name === 'strength'))"
            assert browser.wait_for(label, 20) == slider["inputs"]["strength"]["name"]
            assert browser.evaluate("slider.outputs.map((o) => o.name)[0]") == "model"  # the API's names stay
            # a tile of the gallery, as if a run had sent a direction
            browser.evaluate("""
              window.preview = LiteGraph.createNode("LatentDirections_PreviewDirections"); app.graph.add(preview);
              window.found = { name: "smile", key: "", change: 0.04, pictures: [] };
              preview.onExecuted({ gallery: [JSON.stringify([found])] }); true
            """)
            words = made[locales.FOLDER / language / "main.json"][locales.PAGE_KEY]
            gallery = "preview.widgets.find((w) => w.name === 'gallery').element.shadowRoot"
            browser.evaluate(f"{gallery}.querySelector('.tiles button').click()")
            no_slider = "No slider is given these directions. Connect them to a Direction Slider."
            assert browser.evaluate(f"{gallery}.querySelector('[role=status]').textContent") == words[no_slider]
            assert not [said for said in browser.problems if "LatentDirections" in said]
    finally:
        comfy.client.request("/settings/Comfy.Locale", b'"en"')
