"""Slider Board: up to eight sliders by words on one node, each found once a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import comfy.model_management
from comfy_api.latest import io, ui

from ..core.direction import Direction
from ..core.errors import LatentDirectionsError
from .errors import InputError, with_advice
from .identify import find
from .identify_inputs import inputs as inputs_of_find_directions
from .identify_prompts import EVERYWHERE, FOUND
from .inputs import check_inputs
from .manipulate import FOR_THE_SAMPLER, outputs, with_slider
from .prediction_keys import Identity, settings_of_search
from .progress import show_line, sum_of_costs
from .slider_rows import EMPTY, MOST_SLIDERS, NO_SOURCE, SliderRow, rows_of, wrong_board
from .sockets import DirectionsSocket, InversionSocket
from .wiring import refuse_wiring
from .words import LISTS, WHAT_ELSE_NOTE

MOST_REMEMBERED = 64  # searches a picture


class SliderBoard(io.ComfyNode):
    """Identify and manipulate: several sliders by words on one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_SliderBoard",
            display_name="Slider Board",
            category="latent directions",
            description=(
                f"Up to {MOST_SLIDERS} sliders on one node: type what each should change, and set how far. Each is"
                " found once for a picture, as by Find Directions with the method 'words'; moving sliders or turning"
                " them off and on does not search again. Connect model, conditioning (as the positive prompt) and noise"
                " to your sampler."
            ),
            search_aliases=[
                "attribute",
                "attribute sliders",
                "concept slider",
                "smile",
                "age",
                "expression",
                "emotion",
                "face edit",
                "live portrait",
                "expression editor",
                "several sliders",
                "multiple attributes",
                "image editing",
                "mixer",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The same model that Encode Picture used."),
                InversionSocket.Input(
                    "inversion", tooltip="The encoded picture, from Encode Picture, a slider or another board."
                ),
                io.Clip.Input("clip", tooltip="Text encoder of the model."),
                io.String.Input(
                    "source",
                    default="",
                    tooltip="What the picture shows now, such as 'a photo of a woman'. Each slider's words are added.",
                ),
                io.String.Input(
                    "board",
                    default=EMPTY,
                    tooltip=(
                        "The sliders as JSON. ComfyUI's page shows rows in its place: words, strength, what is kept,"
                        " on or off."
                    ),
                ),
                io.Combo.Input(
                    "find_keeps",
                    options=list(LISTS),
                    default="people",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Checks a list of things for what the words of each slider would change too, and holds those"
                        " still that change much. It asks the model six times for each thing, once a picture."
                        " 'nothing': only what is typed to be kept is held."
                    ),
                ),
                io.Combo.Input(
                    "where",
                    options=[EVERYWHERE, FOUND],
                    default=FOUND,
                    optional=True,
                    advanced=True,
                    tooltip="Where each slider acts. 'found': where its words change the picture most.",
                ),
            ],
            outputs=[
                *FOR_THE_SAMPLER,
                InversionSocket.Output(
                    display_name="inversion",
                    tooltip="The encoded picture with these sliders, for another slider or board, or Apply Sliders.",
                ),
                DirectionsSocket.Output(
                    display_name="directions",
                    tooltip="What each slider that is on moves, in order, for Preview Directions or Save Direction.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What each slider does, what else its words would change, and what it took, as JSON.",
                ),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, source=None, board=None) -> bool | str:
        """Check what is typed before anything runs; what is linked arrives as None, and `execute` checks it."""
        wrong = NO_SOURCE if isinstance(source, str) and not source.strip() else wrong_board(board)
        return True if wrong is None else wrong

    @classmethod
    @with_advice()
    def execute(cls, model, inversion, clip, source="", board=EMPTY, find_keeps="people", where=FOUND) -> io.NodeOutput:
        """Find what is not known yet, and add a slider for each row that is on, in their order."""
        given = locals()
        check_inputs(cls, given)
        if not source.strip():
            raise InputError(NO_SOURCE)
        rows = rows_of(board)
        refuse_wiring(cls.hidden and cls.hidden.prompt)
        moved, directions, costs, lines = inversion, [], [], []
        for number, row in enumerate(rows, 1):
            line = {"words": row.words, "strength": row.strength, "on": row.on}
            if row.on:
                direction, notes, cost = _found(number, row, given)
                direction = replace(direction)  # its own, where another row has the same words
                directions.append(direction)
                moved = with_slider(moved, direction, row.strength)
                line |= notes | {"model_evaluations": cost.get("model_evaluations", 0)}
                costs.append(cost)
            lines.append(line)
        total = sum_of_costs(*costs)
        searches = sum(bool(cost) for cost in costs)
        summary = _summary(len(directions), searches, total["seconds"])
        report = {"stage": "board", "summary": summary, "searches": searches, **total, "sliders": lines}
        show_line(summary)
        report = json.dumps(report, indent=1)
        return io.NodeOutput(*outputs(moved), moved, directions, report, ui=ui.PreviewText(summary))


def _found(number: int, row: SliderRow, given: Mapping) -> tuple[Direction, dict, dict]:
    """The direction of a row, what a report says of it, and what the search took; nothing where it is known already."""
    inversion, key = given["inversion"], _key(row, given)
    if key in inversion.found:
        inversion.found[key] = known = inversion.found.pop(key)  # the last to be dropped
        return *known, {}
    comfy.model_management.throw_exception_if_processing_interrupted()
    source, target = row.prompts(given["source"].strip())
    inputs = {declared.id: getattr(declared, "default", None) for declared in inputs_of_find_directions()}
    inputs |= {name: given[name] for name in ("model", "inversion", "clip", "find_keeps", "where")}
    inputs["negative"] = inversion.negative or None
    inputs |= {"source": source, "target": target, "keep": row.keep_prompts(given["source"].strip())}
    try:
        findings = find(inputs)
    except LatentDirectionsError as error:
        msg = f"Slider {number} of 'board' ({row.name}): {error}"
        raise type(error)(msg) from error  # its kind decides about the advice
    cost = dict(findings.notes)
    notes = {name: cost.pop(name) for name in (WHAT_ELSE_NOTE,) if name in cost}
    (direction,) = findings.directions
    known = replace(direction, name=row.name), notes
    while len(inversion.found) >= MOST_REMEMBERED:
        inversion.found.pop(next(iter(inversion.found)), None)
    inversion.found[key] = known
    return *known, cost


def _key(row: SliderRow, given: Mapping) -> tuple:
    """All that the search of a row depends on, besides the picture."""
    texts = given["source"].strip(), row.words, row.keep, given["find_keeps"], given["where"]
    return (*texts, Identity(given["clip"]), settings_of_search(given["model"], {}))


def _summary(sliders: int, searches: int, seconds: float) -> str:
    """A line on what the board has done."""
    if not sliders:
        return "No slider is on, so the sampler gives the picture back."
    acting = f"{sliders} slider{'s' if sliders > 1 else ''} on"
    if not searches:
        return f"{acting}, all found before"
    return f"{acting}, {searches} found in {seconds:.0f} s"


NODES = [SliderBoard]
