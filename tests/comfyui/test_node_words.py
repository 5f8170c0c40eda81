"""The words by which artists find a node, and the tooltips, as a running ComfyUI hands them to the page."""

import pytest

SEARCHED = [
    "age",
    "animation",
    "attribute",
    "beard",
    "clip score",
    "compare",
    "concept slider",
    "contact sheet",
    "disentangle",
    "emotion",
    "expression",
    "face edit",
    "flowedit",
    "glasses",
    "grid",
    "h-space",
    "hair",
    "image editing",
    "interpolate",
    "inversion",
    "ledits",
    "live portrait",
    "makeup",
    "morph",
    "prompt swap",
    "smile",
    "strength",
    "unsample",
    "video",
    "xy plot",
]


@pytest.fixture(scope="module")
def nodes(comfy) -> dict:
    everything = comfy.client.object_info()
    return {name: node for name, node in everything.items() if name.startswith("LatentDirections_")}


@pytest.mark.parametrize("word", SEARCHED)
def test_search_finds_a_node(nodes, word):
    found = [name for name, node in nodes.items() for text in names_of(node) if word in text.lower()]
    assert found


def test_every_node_has_aliases(nodes):
    assert {name for name, node in nodes.items() if len(set(node["search_aliases"])) < 3} == set()


def test_every_input_and_output_has_a_tooltip(nodes):
    without = []
    for name, node in nodes.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        without += [(name, key) for key, spec in inputs.items() if not (len(spec) > 1 and spec[1].get("tooltip"))]
        without += [
            (name, output)
            for output, tooltip in zip(node["output_name"], node["output_tooltips"], strict=True)
            if not tooltip
        ]
    assert without == []


def test_an_empty_text_box_says_its_name_and_its_form(nodes):
    """On the classic canvas a text box has no other label."""
    boxes = 0
    for node in nodes.values():
        for key, spec in {**node["input"].get("required", {}), **node["input"].get("optional", {})}.items():
            if spec[0] == "STRING" and spec[1].get("multiline"):
                boxes += 1
                assert spec[1]["placeholder"].startswith(f"{key}: ")
    assert boxes == 3


def names_of(node: dict) -> list[str]:
    """What the page's search compares with."""
    return [node["display_name"], *node["search_aliases"]]
