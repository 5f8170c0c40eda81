"""The converter on small graphs, each rule by itself; test_browser.py compares it with the page on whole templates."""

import pytest

from scripts import workflow

FORK = {"options": [{"key": "left", "inputs": {"required": {"length": ["INT", {}]}}}]}
INFO = {
    "Source": {"input": {"required": {}}, "display_name": "Source", "output_name": ["THING", "other"]},
    "Numbers": {
        "input": {
            "required": {"seed": ["INT", {}], "steps": ["INT", {"default": 20}], "thing": ["THING", {}]},
            "optional": {"kind": [["a", "b"], {}], "text": ["STRING", {"forceInput": True}]},
        },
        "input_order": {"required": ["seed", "steps", "thing"], "optional": ["kind", "text"]},
        "display_name": "Numbers",
        "output_name": ["THING"],
    },
    "Wild": {
        "input": {"required": {"text": ["STRING", {"dynamicPrompts": True}]}},
        "display_name": "Wild",
        "output_name": [],
    },
    "Forked": {
        "input": {"required": {"way": [workflow.DYNAMIC_WIDGET, FORK]}},
        "display_name": "Forked",
        "output_name": [],
    },
}


def slot(name: str, link: int | None, kind: str = "THING") -> dict:
    return {"name": name, "type": kind, "link": link}


def graph(*middle: dict, links: list) -> dict:
    """Source (1) -> what is between -> Numbers (9), whose input `thing` has link 90."""
    end = {"id": 9, "type": "Numbers", "widgets_values": [5, "fixed", 8, "b"], "inputs": [slot("thing", 90)]}
    return {"nodes": [{"id": 1, "type": "Source"}, *middle, end], "links": links}


def inputs_of(prompt: dict) -> dict:
    return prompt["9"]["inputs"]


def test_widget_values_skip_what_the_page_adds_after_a_seed():
    made = workflow.to_prompt(graph(links=[[90, 1, 0, 9, 0, "THING"]]), INFO)
    assert inputs_of(made) == {"seed": 5, "steps": 8, "kind": "b", "thing": ["1", 0]}
    assert made["9"]["_meta"] == {"title": "Numbers"}


def test_missing_widget_values_take_their_defaults():
    short = graph(links=[[90, 1, 0, 9, 0, "THING"]])
    short["nodes"][-1]["widgets_values"] = [5]
    assert inputs_of(workflow.to_prompt(short, INFO)) == {"seed": 5, "steps": 20, "kind": "a", "thing": ["1", 0]}


def test_reroutes_and_bypassed_nodes_are_seen_through():
    reroute = {"id": 2, "type": "Reroute", "inputs": [slot("", 20, "*")]}
    bypassed = {"id": 3, "type": "Numbers", "mode": workflow.BYPASSED, "inputs": [slot("x", None), slot("thing", 30)]}
    links = [[20, 1, 0, 2, 0, "THING"], [30, 2, 0, 3, 1, "THING"], [90, 3, 0, 9, 0, "THING"]]
    bypassed["inputs"][0]["type"] = "INT"
    made = workflow.to_prompt(graph(reroute, bypassed, links=links), INFO)
    assert set(made) == {"1", "9"}
    assert inputs_of(made)["thing"] == ["1", 0]


def test_muted_nodes_leave_the_input_open():
    muted = {"id": 2, "type": "Source", "mode": workflow.MUTED}
    assert "thing" not in inputs_of(workflow.to_prompt(graph(muted, links=[[90, 2, 0, 9, 0, "THING"]]), INFO))


def test_primitive_nodes_leave_the_widget_value():
    primitive = {"id": 2, "type": "PrimitiveNode", "widgets_values": [7, "fixed"]}
    with_link = graph(primitive, links=[[90, 1, 0, 9, 0, "THING"], [91, 2, 0, 9, 1, "INT"]])
    with_link["nodes"][-1]["inputs"].append({**slot("steps", 91, "INT"), "widget": {"name": "steps"}})
    assert inputs_of(workflow.to_prompt(with_link, INFO))["steps"] == 8


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ({"id": 2, "type": "Gone"}, "'Gone' is unknown"),
        ({"id": 2, "type": "Wild", "widgets_values": ["a {red|blue} hat"]}, "only the page resolves"),
        ({"id": 2, "type": "Forked", "widgets_values": ["left"]}, "only the page resolves"),
    ],
)
def test_what_only_the_page_can_do_is_refused(node, sentence):
    with pytest.raises(workflow.WorkflowError, match=sentence):
        workflow.to_prompt(graph(node, links=[[90, 1, 0, 9, 0, "THING"]]), INFO)


def test_subgraphs_are_refused():
    with pytest.raises(workflow.WorkflowError, match="subgraphs"):
        workflow.to_prompt({"nodes": [], "links": [], "definitions": {"subgraphs": [{}]}}, INFO)


def test_changing_a_prompt():
    prompt = workflow.to_prompt(graph(links=[[90, 1, 0, 9, 0, "THING"]]), INFO)
    changed = workflow.with_inputs(prompt, {"9": {"steps": 3, "kind": None}})
    assert inputs_of(changed) == {"seed": 5, "steps": 3, "thing": ["1", 0]}
    assert inputs_of(prompt)["steps"] == 8
    assert inputs_of(workflow.rewired(prompt, ["1", 0], ["4", 2]))["thing"] == ["4", 2]
    assert set(workflow.upstream(prompt, "1")) == {"1"}
    assert set(workflow.upstream(prompt, "9")) == {"1", "9"}
    assert workflow.output(INFO, "Source", "other") == 1
    with pytest.raises(workflow.WorkflowError, match="no output"):
        workflow.output(INFO, "Source", "mask")
    with pytest.raises(workflow.WorkflowError, match="0 nodes Gone"):
        workflow.find(prompt, "Gone")
