"""Web-page graphs as API prompts: what the page's own `app.graphToPrompt()` does, without a browser.

A graph stores each node's widget values as a bare list in the order of its widgets; the order and the names come from
the server's `/object_info`. Subgraphs are not covered, since no workflow of this project uses them.
"""

from __future__ import annotations

import copy
import re

MUTED, BYPASSED = 2, 4
VIRTUAL = {"Note", "MarkdownNote", "PrimitiveNode", "Reroute"}
DYNAMIC_WIDGET = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_WIDGET}
# Widgets of Compare Images, which graphs do not store, with what the page sends for them before a run.
UNSTORED = {"IMAGECOMPARE": {"__value__": {"0": "", "1": ""}}}
# The page replaces {a|b} by a random choice and drops comments in prompts.
DYNAMIC = re.compile(r"[{}]|//|/\*")


class WorkflowError(Exception):
    """A graph or a prompt does not hold what was asked of it."""


def to_prompt(graph: dict, object_info: dict) -> dict:
    """Convert a web-page graph to an API prompt {node id: {class_type, inputs, _meta}}; raises WorkflowError."""
    if graph.get("definitions", {}).get("subgraphs"):
        message = "This workflow holds subgraphs, which cannot be converted here. Queue it from ComfyUI's page."
        raise WorkflowError(message)
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    prompt = {}
    for node in sorted(graph["nodes"], key=lambda node: node.get("order", 0)):
        if node["type"] in VIRTUAL or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            message = f"The node {node['type']!r} is unknown to this ComfyUI. Is its node pack installed?"
            raise WorkflowError(message)
        info = object_info[node["type"]]
        inputs = widget_values(node, info)
        for slot in node.get("inputs", []):
            source = resolve_input(nodes, links, slot, slot["type"])
            if source is not None:
                inputs[slot["name"]] = source
        title = node.get("title") or info["display_name"] or node["type"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


def widget_values(node: dict, info: dict) -> dict:
    """Return the widget inputs of a node by name, taken from its list of widget values."""
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return dict(stored)
    values, position = {}, 0
    for name, kind, options in declared_inputs(info):
        if isinstance(kind, str) and kind in UNSTORED:
            values[name] = copy.deepcopy(UNSTORED[kind])
        if not is_widget(kind, options):
            continue
        value = stored[position] if position < len(stored) else default_value(kind, options)
        if kind == DYNAMIC_WIDGET and has_widgets_below(options, value):
            message = f"{node['type']}: the widgets below {name} depend on its choice, which only the page resolves."
            raise WorkflowError(message)
        if options.get("dynamicPrompts") and DYNAMIC.search(str(value)):
            message = f"{node['type']}: {name} holds a random choice or a comment, which only the page resolves."
            raise WorkflowError(message)
        values[name] = {"__value__": value} if isinstance(value, list) else value
        position += 1 + control_widgets(name, kind, options)
    return values


def declared_inputs(info: dict) -> list[tuple[str, str | list, dict]]:
    """Return (name, type, options) of a node class's inputs in the order of its widgets."""
    found = []
    for group in ("required", "optional"):
        specs = info["input"].get(group, {})
        for name in info.get("input_order", {}).get(group, specs):
            kind, *rest = specs[name]
            found.append((name, kind, rest[0] if rest else {}))
    return found


def is_widget(kind: str | list, options: dict) -> bool:
    """Say whether the page draws this input as a widget; a list of choices is the older spelling of COMBO."""
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def has_widgets_below(options: dict, choice: str) -> bool:
    """Say whether a choice brings inputs of its own."""
    below = next((one["inputs"] for one in options["options"] if one["key"] == choice), {"unknown": choice})
    return any(below.values())


def control_widgets(name: str, kind: str | list, options: dict) -> int:
    """Count the page's own widgets behind this one: what becomes of a seed after each run, a filter for choices."""
    if kind == "INT":
        return int(bool(options.get("control_after_generate", name in ("seed", "noise_seed"))))
    if isinstance(kind, list) or kind == "COMBO":
        return 2 * bool(options.get("control_after_generate"))
    return 0


def default_value(kind: str | list, options: dict):
    """Return the value the page gives a widget that the graph stores none for."""
    choices = kind if isinstance(kind, list) else options.get("options", [])
    if kind == DYNAMIC_WIDGET:
        return choices[0]["key"]
    fallback = {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False}
    return options.get("default", choices[0] if choices else fallback.get(kind))


def resolve_input(nodes: dict, links: dict, slot: dict, wanted: str) -> list | None:
    """Return [node id, output index] that feeds an input, through reroutes and bypassed nodes, or None."""
    if slot.get("link") is None:
        return None
    _, origin, index, *_ = links[slot["link"]]
    node = nodes[origin]
    if node.get("mode") == MUTED or node["type"] == "PrimitiveNode":  # a primitive's value sits in the widget too
        return None
    inputs = node.get("inputs", [])
    if node["type"] == "Reroute":
        return resolve_input(nodes, links, inputs[0], wanted)
    if node.get("mode") == BYPASSED:
        same_place = [inputs[index]] if index < len(inputs) else []
        through = next((i for i in same_place + inputs if i["type"] == wanted), None)
        return resolve_input(nodes, links, through, wanted) if through else None
    return [str(origin), index]


def find(prompt: dict, class_type: str, title: str | None = None) -> str:
    """Return the id of the only node of a class (and title); raises WorkflowError where there is none or several."""
    found = [
        key
        for key, node in prompt.items()
        if node["class_type"] == class_type and title in (None, node.get("_meta", {}).get("title"))
    ]
    if len(found) != 1:
        named = f" titled {title!r}" if title else ""
        message = f"The workflow holds {len(found)} nodes {class_type}{named}; exactly one was expected."
        raise WorkflowError(message)
    return found[0]


def with_inputs(prompt: dict, changes: dict[str, dict]) -> dict:
    """Return a copy of a prompt with inputs replaced: {node id: {input name: value or [node id, output]}}.

    None removes an optional input.
    """
    changed = copy.deepcopy(prompt)
    for key, inputs in changes.items():
        for name, value in inputs.items():
            if value is None:
                changed[key]["inputs"].pop(name, None)
            else:
                changed[key]["inputs"][name] = value
    return changed


def rewired(prompt: dict, source: list, replacement) -> dict:
    """Return a copy of a prompt in which every input fed by `source` [node id, output] has `replacement` instead."""
    changes = {
        key: {name: replacement for name, value in node["inputs"].items() if value == source}
        for key, node in prompt.items()
    }
    return with_inputs(prompt, changes)


def upstream(prompt: dict, key: str) -> dict:
    """Return the part of a prompt that a node needs, itself included."""
    found = {key: prompt[key]}
    for value in prompt[key]["inputs"].values():
        if isinstance(value, list) and value[0] in prompt:
            found |= upstream(prompt, value[0])
    return found


def output(object_info: dict, class_type: str, name: str) -> int:
    """Return the index of a node class's output by its name; raises WorkflowError where there is none."""
    names = object_info[class_type]["output_name"]
    if name not in names:
        message = f"{class_type} has no output {name!r}, only {', '.join(names)}."
        raise WorkflowError(message)
    return names.index(name)
