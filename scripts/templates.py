"""The workflows under *Templates* in ComfyUI (`example_workflows/`), and its blueprints (`subgraphs/`).

`python scripts/templates.py` writes them from the descriptions in `demo_templates.py`, `model_templates.py` and
`blueprints.py`.

A template is a row of groups from left to right, each with a note above it and nodes from top to bottom. A node is
described by its class and those inputs that are connected or differ from their defaults: "@encode.inversion" is the
output `inversion` of the node named `encode`, every other value is that of a widget. Order, values and sockets of all
other inputs come from the running ComfyUI's `/object_info`; the heights that nodes need are in HEIGHTS. A choice for
which the node declares no default, such as one of the server's files, has to be in the description.

A blueprint is such a row in one box, a subgraph: "@inputs.picture" is the box's input `picture`.
"""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # started as a program
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import workflow
from scripts.environment import ROOT, ensure

TEMPLATES, BLUEPRINTS = ROOT / "example_workflows", ROOT / "subgraphs"
PREFIX = "LatentDirections_"
SLOT, TITLE, GAP, BORDER, BETWEEN_GROUPS = 20, 30, 34, 14, 34
# The ends of a subgraph: their names in descriptions, and the ids that ComfyUI gives them.
INPUTS, OUTPUTS = "inputs", "outputs"
ENDS = {INPUTS: -10, OUTPUTS: -20}
FIRST_NODE, GROUP_TOP, NOTE_TOP = 0, -74, -275
NOTE_HEIGHT = 150
# The height of a node's body: in the file, and at most, on Nodes 2.0 and with a line of progress. Nodes that are not
# here are as high as their sockets and widgets need on the classic canvas.
HEIGHTS: dict[str, tuple[int, int]] = {
    "BasicGuider": (46, 54),
    "CFGGuider": (98, 112),
    "CLIPLoader": (106, 116),
    "CLIPTextEncode": (100, 116),
    "CLIPVisionLoader": (58, 88),
    "CheckpointLoaderSimple": (98, 128),
    "CreateVideo": (102, 112),
    "DualCLIPLoader": (130, 144),
    "Flux2Scheduler": (106, 120),
    "FluxGuidance": (58, 64),
    "ImageBatch": (46, 80),
    "ImageCompare": (350, 350),
    "ImageScale": (130, 148),
    "ImageScaleToTotalPixels": (106, 116),
    "KSampler": (262, 264),
    "KSamplerSelect": (58, 64),
    "LatentDirections_ApplySliders": (66, 164),
    "LatentDirections_CombineDirections": (170, 268),
    "LatentDirections_DemoPortrait": (206, 316),
    "LatentDirections_DirectionSlider": (180, 270),
    "LatentDirections_EditReport": (60, 144),
    "LatentDirections_FindCommonDirections": (130, 224),
    "LatentDirections_FindDirections": (470, 580),
    "LatentDirections_InvertImage": (256, 304),
    "LatentDirections_LoadDemoModel": (66, 164),
    "LatentDirections_LoadDiffusersModel": (110, 212),
    "LatentDirections_LoadDirection": (90, 180),
    "LatentDirections_MeasureDemo": (60, 144),
    "LatentDirections_MeasureDisentanglement": (180, 280),
    "LatentDirections_MeasureWords": (200, 300),
    "LatentDirections_PlotDirections": (620, 660),
    "LatentDirections_PrepareQuickSlider": (130, 220),
    "LatentDirections_PreviewDirections": (520, 560),
    "LatentDirections_QuickSlider": (130, 226),
    "LatentDirections_SaveDirection": (110, 208),
    "LatentDirections_SliderBoard": (470, 640),
    "LatentDirections_SliderStrip": (780, 760),
    "LatentDirections_TransferDirection": (150, 244),
    "ModelSamplingAuraFlow": (58, 64),
    "PreviewAny": (220, 220),
    "PreviewImage": (300, 300),
    "SamplerCustomAdvanced": (106, 116),
    "SaveImage": (350, 350),
    "SaveVideo": (400, 420),
    "TextEncodeQwenImageEdit": (128, 144),
    "UNETLoader": (82, 88),
    "VAEDecode": (46, 54),
    "VAEEncode": (46, 54),
    "VAELoader": (58, 88),
}


@dataclass(frozen=True)
class Node:
    """A node of a description: its class without the pack's prefix, and its inputs."""

    kind: str
    inputs: dict
    title: str | None = None
    mode: int = 0
    models: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Group:
    """A group of nodes by name, from top to bottom, with a note above it."""

    title: str
    note: str
    nodes: dict[str, Node]
    width: int = 370


@dataclass(frozen=True)
class Template:
    """A workflow: its groups from left to right, and what it shows as an app."""

    name: str
    groups: tuple[Group, ...]
    app_inputs: tuple[tuple[str, str], ...] = ()
    app_outputs: tuple[str, ...] = ()
    opens_as_app: bool = False


@dataclass(frozen=True)
class Blueprint:
    """One box for the node library: its groups, its inputs with the values of their widgets, and its outputs.

    An input without a widget has the value None; an output is named with what it hands on, such as "@decoded.IMAGE".
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    groups: tuple[Group, ...]
    inputs: dict[str, str | float | None]
    outputs: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)


def node(kind: str, *, title: str | None = None, mode: int = 0, models: tuple = (), **inputs) -> Node:
    """Describe a node."""
    return Node(kind, inputs, title, mode, models)


def full_kind(kind: str, info: dict) -> str:
    """Return the id of a node class that may be named without the pack's prefix."""
    return kind if kind in info else PREFIX + kind


def linked(value) -> tuple[str, str] | None:
    """Return (node name, output name) of a value such as "@encode.inversion", or None."""
    return tuple(value[1:].split(".", 1)) if isinstance(value, str) and value.startswith("@") else None


def widget_values(described: Node, declared: list) -> list:
    """Return the values of all widgets of a node in their order.

    Raises WorkflowError where a choice without a default is missing: the first one differs between servers.
    """
    values = []
    for name, kind, options in declared:
        if workflow.is_widget(kind, options):
            value = described.inputs.get(name)
            if value is None and (isinstance(kind, list) or kind == "COMBO") and "default" not in options:
                message = f"{described.kind}: {name} has no default, so the description has to give its value."
                raise workflow.WorkflowError(message)
            if value is None or linked(value):
                value = workflow.default_value(kind, options)
            values.append(value)
            values += ["fixed"] * workflow.control_widgets(name, kind, options)
    return values


def body_height(kind: str, declared: list, outputs: int) -> tuple[int, int]:
    """Return the height of a node in the file, and the most that it needs in the page."""
    if kind in HEIGHTS:
        return HEIGHTS[kind]
    widgets = sum(workflow.is_widget(k, o) + workflow.control_widgets(n, k, o) for n, k, o in declared)
    slots = max(len(declared) - widgets, outputs, 1)
    height = SLOT * slots + 24 * widgets + 10
    return height, height + 12 + 10 * widgets


class Graph:
    """The nodes and links of a workflow while it is built."""

    def __init__(self, described: dict[str, Node], info: dict, first_id: int = 1, given: tuple[str, ...] = ()):
        """Number the nodes and find out what links them; `given` are the inputs of the box that holds them."""
        self.described, self.info, self.given = described, info, given
        self.ids = {name: first_id + i for i, name in enumerate(described)} | ENDS
        self.kinds = {name: full_kind(one.kind, info) for name, one in described.items()}
        self.declared = {name: workflow.declared_inputs(info[kind]) for name, kind in self.kinds.items()}
        for name, one in described.items():
            unknown = set(one.inputs) - {declared for declared, _, _ in self.declared[name]}
            if unknown:
                message = f"{one.kind} has no input {', '.join(sorted(unknown))}."
                raise workflow.WorkflowError(message)
        self.links: list[list] = []
        self.order: dict[str, int] = {}
        for name in described:
            self.number(name)

    def number(self, name: str) -> None:
        """Give a node its place in the order of execution: behind all nodes that feed it."""
        if name not in self.order:
            for value in self.described[name].inputs.values():
                if (source := linked(value)) and source[0] in self.described:
                    self.number(source[0])
            self.order[name] = len(self.order)

    def sockets(self, name: str) -> list[dict]:
        """Return the input sockets of a node, and add the links that end in them."""
        made = []
        for given, kind, options in self.declared[name]:
            source = linked(self.described[name].inputs.get(given))
            widget = workflow.is_widget(kind, options)
            if (widget and not source) or options.get("socketless"):
                continue
            slot = {"name": given}
            if given in self.info[self.kinds[name]]["input"].get("optional", {}) and not widget:
                slot["shape"] = 7
            slot |= {"type": kind if isinstance(kind, str) else "COMBO"}
            if widget:
                slot["widget"] = {"name": given}
            slot["link"] = self.connect(source, name, len(made), slot["type"]) if source else None
            made.append(slot)
        return made

    def connect(self, source: tuple[str, str], target: str, place: int, kind: str) -> int:
        """Add a link from an output to an input and return its number."""
        name, output = source
        at_start = name == INPUTS
        index = self.given.index(output) if at_start else workflow.output(self.info, self.kinds[name], output)
        self.links.append([len(self.links) + 1, self.ids[name], index, self.ids[target], place, kind])
        return len(self.links)

    def build(self, places: dict[str, tuple[list, int]]) -> list[dict]:
        """Return the nodes as the page stores them; `places` has position and width of each."""
        made = []
        for name, one in self.described.items():
            kind = self.kinds[name]
            (x, y), width = places[name]
            found = self.info[kind]
            height, _ = body_height(kind, self.declared[name], len(found["output"]))
            stored = {"id": self.ids[name], "type": kind, "pos": [x, y], "size": [width, height], "flags": {}}
            stored |= {"order": self.order[name], "mode": one.mode, "inputs": self.sockets(name)}
            stored["outputs"] = [
                {"name": output, "type": out, "links": None}
                for output, out in zip(found["output_name"], found["output"], strict=True)
            ]
            if one.title:
                stored["title"] = one.title
            stored["properties"] = {"Node name for S&R": kind}
            if one.models:
                stored["properties"]["models"] = [
                    {"name": file, "url": url, "directory": folder} for file, url, folder in one.models
                ]
            if values := widget_values(one, self.declared[name]):
                stored["widgets_values"] = values
            made.append(stored)
        by_id = {stored["id"]: stored for stored in made}
        for number, origin, index, *_ in self.links:
            if origin in by_id:
                slot = by_id[origin]["outputs"][index]
                slot["links"] = [*(slot["links"] or []), number]
        return made

    def needed(self, name: str) -> int:
        """Return the height that a node needs with its title and the gap below it."""
        kind = self.kinds[name]
        return body_height(kind, self.declared[name], len(self.info[kind]["output"]))[1] + TITLE + GAP


def laid_out(groups: tuple[Group, ...], info: dict, given: tuple[str, ...] = (), outputs: dict | None = None) -> tuple:
    """Return the graph of groups, its nodes with the notes above them, the groups as boxes, and their right edge."""
    described = {name: one for group in groups for name, one in group.nodes.items()}
    graph = Graph(described, info, len(groups) + 1, given)
    places, notes, boxes, x = {}, [], [], 0
    for index, group in enumerate(groups):
        y = FIRST_NODE
        for name in group.nodes:
            places[name] = ([x, y], group.width)
            y += graph.needed(name)
        left, width = x - BORDER, group.width + 2 * BORDER
        box = [left, GROUP_TOP, width, y - GROUP_TOP - GAP + BORDER - TITLE + 20]
        boxes.append({"id": index + 1, "title": group.title, "bounding": box, "color": COLORS[index % len(COLORS)]})
        boxes[-1]["flags"] = {}
        notes.append(note(index + 1, group.note, [left, NOTE_TOP], [width, NOTE_HEIGHT]))
        x += width + BETWEEN_GROUPS
    for place, value in enumerate((outputs or {}).values()):
        source = linked(value)
        kind = info[graph.kinds[source[0]]]
        graph.connect(source, OUTPUTS, place, kind["output"][kind["output_name"].index(source[1])])
    nodes = graph.build(places)
    for stored in nodes:
        stored["order"] += len(notes)
    return graph, notes + nodes, boxes, x


def workflow_of(template: Template, info: dict) -> dict:
    """Return a template as the page stores workflows."""
    graph, nodes, boxes, _ = laid_out(template.groups, info)
    made = {"last_node_id": nodes[-1]["id"], "last_link_id": len(graph.links), "nodes": nodes}
    made |= {"links": graph.links, "groups": boxes, "extra": {}, "version": 0.4}
    if template.app_outputs:
        inputs = [[str(graph.ids[name]), widget] for name, widget in template.app_inputs]
        outputs = [str(graph.ids[name]) for name in template.app_outputs]
        made["extra"] = {"linearMode": template.opens_as_app, "linearData": {"inputs": inputs, "outputs": outputs}}
    return made


def blueprint_of(blueprint: Blueprint, info: dict) -> dict:
    """Return a blueprint as the page stores them: a workflow of one box, and the subgraph inside it."""
    graph, nodes, boxes, right = laid_out(blueprint.groups, info, tuple(blueprint.inputs), blueprint.outputs)
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in graph.links
    ]
    inputs = [slot_of(blueprint, name, links, "origin", place) for place, name in enumerate(blueprint.inputs)]
    outputs = [slot_of(blueprint, name, links, "target", place) for place, name in enumerate(blueprint.outputs)]
    inside = {"id": made_id(blueprint.name), "version": 1, "revision": 0, "config": {}, "name": blueprint.name}
    inside["state"] = {"lastGroupId": len(boxes), "lastNodeId": nodes[-1]["id"], "lastLinkId": len(links)}
    inside["state"]["lastRerouteId"] = 0
    inside["inputNode"] = {"id": ENDS[INPUTS], "bounding": [-250, 0, 130, 40 + SLOT * len(inputs)]}
    inside["outputNode"] = {"id": ENDS[OUTPUTS], "bounding": [right + 40, 0, 130, 40 + SLOT * len(outputs)]}
    inside |= {"inputs": inputs, "outputs": outputs, "widgets": [], "nodes": nodes, "groups": boxes, "links": links}
    inside |= {"extra": {}, "category": "latent directions", "description": blueprint.description}

    widgets = {name: value for name, value in blueprint.inputs.items() if value is not None}
    sockets = [
        {key: slot[key] for key in ("label", "name", "type") if key in slot}
        | ({"widget": {"name": slot["name"]}} if slot["name"] in widgets else {})
        | {"link": None}
        for slot in inputs
    ]
    box = {"id": 1, "type": inside["id"], "pos": [0, 0], "size": [320, 60 + 24 * len(inputs)], "flags": {}, "order": 0}
    box |= {"mode": 0, "inputs": sockets, "title": blueprint.name}
    box["outputs"] = [{"name": slot["name"], "type": slot["type"], "links": None} for slot in outputs]
    box["properties"] = {"proxyWidgets": [[str(-1), name] for name in widgets]}
    box["widgets_values"] = list(widgets.values())
    made = {"last_node_id": 1, "last_link_id": 0, "nodes": [box], "links": [], "groups": [], "version": 0.4}
    return made | {
        "extra": {"BlueprintSearchAliases": list(blueprint.aliases)},
        "definitions": {"subgraphs": [inside]},
    }


def slot_of(blueprint: Blueprint, name: str, links: list[dict], end: str, place: int) -> dict:
    """Return an input (`end` "origin") or output ("target") of a subgraph with the links that it has inside."""
    own = ENDS[INPUTS if end == "origin" else OUTPUTS]
    found = [link for link in links if link[f"{end}_id"] == own and link[f"{end}_slot"] == place]
    slot = {"id": made_id(f"{blueprint.name}/{end}/{name}"), "name": name, "type": found[0]["type"]}
    slot["linkIds"] = [link["id"] for link in found]
    return slot | ({"label": blueprint.labels[name]} if name in blueprint.labels else {})


def made_id(name: str) -> str:
    """Return an id that is always the same for a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"latent-directions/{name}"))


COLORS = ("#777", "#3f789e", "#b58b2a", "#8A8", "#88A", "#A88")


def note(number: int, text: str, place: list, size: list) -> dict:
    """Return a note as the page stores it."""
    stored = {"id": number, "type": "MarkdownNote", "pos": place, "size": size, "flags": {}, "order": number - 1}
    stored |= {"mode": 0, "inputs": [], "outputs": [], "title": " ", "properties": {}, "widgets_values": [text]}
    return stored | {"color": "#432", "bgcolor": "#653"}


def as_text(made: dict, indent: str = "") -> str:
    """Return a workflow or a subgraph as JSON with a node, link or group a line."""
    parts = []
    for key, value in made.items():
        if key == "definitions":
            inside = ",\n".join(f"{indent}  {as_text(one, indent + '  ')}" for one in value["subgraphs"])
            parts.append(f'{indent} "{key}": {{"subgraphs": [\n{inside}\n{indent} ]}}')
        elif isinstance(value, list):
            lines = ",\n".join(f"{indent}  {json.dumps(one, ensure_ascii=False)}" for one in value)
            parts.append(f'{indent} "{key}": [\n{lines}\n{indent} ]' if value else f'{indent} "{key}": []')
        else:
            parts.append(f'{indent} "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}" + ("" if indent else "\n")


def files(info: dict) -> dict[Path, str]:
    """Return the content of every template and blueprint by its path."""
    from scripts.blueprints import BOXES
    from scripts.demo_templates import DEMO
    from scripts.model_templates import REAL

    made = {TEMPLATES / f"{one.name}.json": as_text(workflow_of(one, info)) for one in DEMO + REAL}
    return made | {BLUEPRINTS / f"{one.name}.json": as_text(blueprint_of(one, info)) for one in BOXES}


def main() -> None:
    """Write the files."""
    from scripts.comfy_server import Server

    with Server(ensure()) as server:
        info = server.wait().client.object_info()
        made = files(info)
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
