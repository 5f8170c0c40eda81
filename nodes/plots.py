"""Plot Directions: how strong, how separate, how far and how local directions are, as charts."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..core.charts import LARGEST, bar_chart, line_chart, require_matplotlib, table_chart
from ..core.direction import Direction
from ..core.distilled import evenly_spaced
from ..core.exploration import ranking
from ..core.metrics import distance, share_of_most_changed
from .errors import with_advice
from .inputs import DIRECTIONS, check_inputs
from .manipulate import sampled, schedule_of, usable, with_slider
from .measure_reports import rounded, rounded_all
from .pictures import image_of
from .predicted_changes import predicted_changes
from .progress import RunsCost, SearchProgress, result_line, show_line, sum_of_costs
from .sampling import level_at_sigma
from .sockets import Inversion, InversionSocket
from .words import LIKENESS, MOST_CANDIDATES, THRESHOLD, TITLE, WHAT_ELSE_NOTE, chart_of_candidates

SPECTRUM, WHAT_ELSE, STRENGTH, LEVEL = "spectrum", "what else moves", "strength and change", "level and locality"
MOST_SHOWN = 20  # candidates in a chart of several directions; the report has all
MOST_DIRECTIONS = 64  # in a chart; the report has all
# What searches rank directions by: the note that tells it, what it is, and the note that it is joined with by
# `ranking`, where there is one.
RANKED_BY = (
    ("singular_value", "singular value: how much the model answers to a move of length 1", None),
    ("effect", "size of the effect, the larger the more of it is in one place", "share_inside"),
    ("standard_deviation", "standard deviation of the pictures' features along the direction", None),
    ("agreement", "agreement of the pictures on the direction, from 0 to 1", None),
)
NOT_RANKED = (
    "These directions have no values by which they could be ranked. The methods LOCO, explore and pullback of Find"
    " Directions give such values."
)
OTHER_VALUES = "Values of another kind were left out, because they cannot be compared with these: {}."
ALONE = "There is only one direction, so there is nothing to compare it with. Connect several, of one search, say."
WITHOUT_WORDS = "Left out, because a search for what else their words move was not made: {}."
NO_CHANGE = "At this strength none of the directions changes what the model predicts."


class Plot(NamedTuple):
    """A chart, and what a report says of it."""

    chart: Image.Image
    report: dict


class PlotDirections(io.ComfyNode):
    """A chart of what directions do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_PlotDirections",
            display_name="Plot Directions",
            category="latent directions",
            description=(
                "Draws a chart of directions: how strong they are, what else they move, how far the picture changes"
                " with the strength, or at which noise level they change one place of the picture."
            ),
            search_aliases=[
                "chart",
                "graph of directions",
                "diagram",
                "singular values",
                "spectrum",
                "linearity",
                "locality",
                "entanglement",
                "compare directions",
                "matplotlib",
            ],
            inputs=[
                InversionSocket.Input("inversion", tooltip="The encoded picture, from Encode Picture."),
                DIRECTIONS,
                io.Combo.Input(
                    "plot",
                    options=[SPECTRUM, WHAT_ELSE, STRENGTH, LEVEL],
                    default=STRENGTH,
                    tooltip=(
                        "'spectrum': the values by which the search ranked the directions. 'what else moves': what"
                        " else their words change; for directions without words, how alike their changes are. 'strength"
                        " and change': how far the picture changes at a few strengths, each of which is sampled. 'level"
                        " and locality': how local the change is at a few noise levels."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=2.0,
                    min=0.05,
                    max=3.0,
                    step=0.05,
                    tooltip=(
                        "'strength and change': the largest strength, to both sides. 'level and locality', and 'what"
                        " else moves' without words: the strength that is looked at. Not used by 'spectrum'."
                    ),
                ),
                io.Int.Input(
                    "points",
                    default=5,
                    min=2,
                    max=33,
                    tooltip=(
                        "How many strengths or noise levels are looked at. Not used by 'spectrum' and 'what else"
                        " moves'."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=1,
                    max=200,
                    tooltip="Sampling steps for each strength. Used by 'strength and change' only.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "With it 'strength and change' and 'level and locality' measure the decoded pictures, without"
                        " it the latents. Not used by the other plots."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The chart."),
                io.String.Output(
                    display_name="report", tooltip="The numbers of the chart and what they took, as JSON."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion, directions, plot=STRENGTH, strength=2.0, points=5, steps=8, vae=None) -> io.NodeOutput:
        """Measure what the chart shows, and draw it."""
        check_inputs(cls, locals())
        require_matplotlib()
        started = time.perf_counter()
        still = replace(inversion.counted_apart(), sliders=())
        strength = float(strength)
        if plot == SPECTRUM:
            made = _spectrum(directions)
        elif plot == WHAT_ELSE:
            made = _what_else(still, directions, strength)
        elif plot == STRENGTH:
            strengths = sorted({*evenly_spaced(-strength, strength, points), 0.0})  # at 0 the model is not asked
            made = _strength_and_change(still, directions, strengths, steps, vae)
        else:
            made = _level_and_locality(still, directions, strength, points, vae)
        seconds = time.perf_counter() - started
        report = {"stage": "plot", "plot": plot, "model_evaluations": 0, **made.report, "seconds": round(seconds, 3)}
        image = image_of(made.chart)
        show_line(result_line(len(directions), "direction", seconds))
        return io.NodeOutput(image, json.dumps(report, indent=1), ui=ui.PreviewImage(image, cls=cls))


def _spectrum(directions: Sequence[Direction]) -> Plot:
    """The values by which a search ranked the directions; those of the first kind that there is."""
    ranks = [_rank_of(direction) for direction in directions]
    kind = next((kind for kind, _ in filter(None, ranks)), None)
    values = [rank[1] if rank is not None and rank[0] == kind else None for rank in ranks]
    rows = list(zip((direction.name for direction in directions), values, strict=True))
    chart = bar_chart(
        rows[:MOST_DIRECTIONS] if kind else [],
        title=_title("How strong the directions are", len(rows)),
        axis=kind or "",
        note="" if kind else NOT_RANKED,
        form="{:.3g}",
    )
    found = [{"name": name, "value": None if value is None else rounded(value)} for name, value in rows]
    others = list(dict.fromkeys(rank[0] for rank in ranks if rank is not None and rank[0] != kind))
    remarks = [OTHER_VALUES.format("; ".join(others))] if others else []
    return Plot(chart, {"values": kind, "directions": found} | ({"remarks": remarks} if remarks else {}))


def _title(title: str, count: int) -> str:
    """The title of a chart of so many directions, which says so where it has only the first of them."""
    return title if count <= MOST_DIRECTIONS else f"{title}: the first {MOST_DIRECTIONS} of {count}"


def _rank_of(direction: Direction) -> tuple[str, float] | None:
    """What the value is by which a direction was ranked, and the value itself; None where there is none."""
    for note, kind, joined in RANKED_BY:
        value = _number(direction.notes.get(note))
        share = None if joined is None else _number(direction.notes.get(joined), most=1.0)
        if value is not None and (joined is None or share is not None):
            return kind, value if joined is None else ranking(value, share)
    return None


def _number(note, most: float = LARGEST) -> float | None:
    """A note of a direction as a number from 0 to `most`; None for anything else that a file may hold there."""
    return float(note) if type(note) in (int, float) and 0 <= note <= most else None


def _what_else(inversion: Inversion, directions: Sequence[Direction], strength: float) -> Plot:
    """What the search has found that the words move beside, or how alike the changes of the directions are."""
    each = [(direction.name, _candidates_of(direction)) for direction in directions]
    found = [(name, rows) for name, rows in each if rows]
    if not found:
        return _likeness(inversion, directions, strength)
    names, left_out = [name for name, _ in found], [name for name, rows in each if not rows]
    report = {"remarks": [WITHOUT_WORDS.format(", ".join(left_out))]} if left_out else {}
    if len(found) == 1:
        rows = found[0][1]
        return Plot(chart_of_candidates(rows), {"directions": names, "what_else_moves": rows} | report)
    known = [{row["candidate"]: row["likeness"] for row in rows} for _, rows in found]
    candidates = dict.fromkeys(candidate for rows in known for candidate in rows)
    rows = [(candidate, [rows.get(candidate) for rows in known]) for candidate in candidates]
    rows.sort(key=lambda row: max(value for value in row[1] if value is not None), reverse=True)
    chart = bar_chart(
        [(candidate, values[:MOST_DIRECTIONS]) for candidate, values in rows[:MOST_SHOWN]],
        title=_title(TITLE, len(names)),
        axis=LIKENESS,
        limits=(0, 1),
        thresholds=(THRESHOLD,),
        series=names[:MOST_DIRECTIONS],
        graded=False,
        form="{:.2f}",
    )
    told = [{"candidate": candidate, "likeness": likeness} for candidate, likeness in rows]
    return Plot(chart, {"directions": names, "what_else_moves": told} | report)


def _candidates_of(direction: Direction) -> list[dict]:
    """The rows of what else the words of a direction move, without what a file may hold in their place."""
    rows = direction.notes.get(WHAT_ELSE_NOTE)
    return [
        {"candidate": row["candidate"], "likeness": float(row["likeness"]), "kept": row.get("kept") is True}
        for row in (rows[:MOST_CANDIDATES] if isinstance(rows, list) else ())
        if isinstance(row, dict) and isinstance(row.get("candidate"), str) and _number(row.get("likeness")) is not None
    ]


def _likeness(inversion: Inversion, directions: Sequence[Direction], strength: float) -> Plot:
    """How alike the changes are that the directions make at the encoded noisy latent, from 0 to 1."""
    names, title = [direction.name for direction in directions], "Which directions change the same"
    if len(directions) == 1:
        return Plot(table_chart([], [], title=title, note=ALONE), {"directions": names, "likeness": None})
    changes, cost = predicted_changes(inversion, directions, strength, inversion.sigma, _steps(len(directions)))
    flat = torch.stack(changes, dim=1).flatten(2).double()  # pictures, directions, cells
    cosines = (torch.nn.functional.normalize(flat, dim=2) @ torch.nn.functional.normalize(flat, dim=2).mT).abs()
    moves = flat.any(dim=2)
    cosines[~(moves[:, :, None] & moves[:, None])] = torch.nan
    likeness = [rounded_all(row) for row in cosines.nanmean(0)]
    moving = any(value is not None for row in likeness for value in row)
    chart = table_chart(
        names[:MOST_DIRECTIONS] if moving else [],
        [row[:MOST_DIRECTIONS] for row in likeness[:MOST_DIRECTIONS]] if moving else [],
        title=_title(title, len(names)),
        axis="likeness: 0 nothing in common, 1 the same change or its opposite",
        note="" if moving else NO_CHANGE,
    )
    return Plot(chart, {"directions": names, "sigma": inversion.sigma, "likeness": likeness, **cost})


def _strength_and_change(
    inversion: Inversion, directions: Sequence[Direction], strengths: Sequence[float], steps: int, vae
) -> Plot:
    """How far the sampled pictures are from the encoded one."""
    directions = [usable(inversion, direction) for direction in directions]
    look = _picture_of(vae) if vae is not None else _in_deviations(inversion.latent["samples"])
    before, sigmas = look(inversion.latent["samples"]), schedule_of(inversion, steps)
    show = SearchProgress(len(directions) * len(strengths), "pictures")
    cost, rows = RunsCost(inversion.statistics), []
    for direction in directions:
        changes = []
        for strength in strengths:
            after = look(sampled(with_slider(inversion, direction, strength), sigmas))
            changes.append(statistics.fmean(map(distance, after, before)))  # of the pictures of a batch
            cost.note()
            show(len(rows) * len(strengths) + len(changes))
        rows.append((direction.name, changes))
    unit = "from black to white is 1" if vae is not None else "in standard deviations of the latent"
    chart = line_chart(
        rows,
        strengths,
        title="How far the picture changes with the strength",
        x_axis="strength",
        y_axis=f"root mean square change, {unit}",
        limits=(0, None),
    )
    told = [{"name": name, "change": rounded_all(changes)} for name, changes in rows]
    report = {"unit": f"root mean square change, {unit}", "strengths": list(strengths), "steps": len(sigmas) - 1}
    return Plot(chart, report | {"directions": told} | cost.report())


def _picture_of(vae) -> Callable[[Tensor], Tensor]:
    """From samples in ComfyUI's latent space to what a VAE decodes, (..., H, W, 3) with values 0 to 1."""
    return lambda samples: vae.decode(samples)[..., :3].float().clamp(0, 1)


def _in_deviations(like: Tensor) -> Callable[[Tensor], Tensor]:
    """From samples to multiples of the standard deviation that each picture of a latent (B, ...) has."""
    deviations = like.cpu().float().flatten(1).std(1).view(-1, *[1] * (like.ndim - 1))
    return lambda samples: samples.cpu().float() / deviations


def _level_and_locality(
    inversion: Inversion, directions: Sequence[Direction], strength: float, points: int, vae
) -> Plot:
    """Which share of the change of the predicted picture lies in the tenth that changes most, by noise level."""
    levels, sigmas = zip(*_levels(inversion, points), strict=True)
    free = [replace(direction, keep=()) for direction in directions]  # what is kept takes further predictions
    look = None if vae is None else _change_of_picture(vae, inversion)
    step = _steps(len(levels) * len(directions) * (1 if vae is None else 2))
    shares, costs = [], []
    for sigma in sigmas:  # level by level, so that the changes of one level alone are in memory
        changes, spent = predicted_changes(inversion, free, strength, sigma, step)
        costs.append(spent)
        shares.append([])
        for change in changes:
            if look is not None:
                change = look(change)
                step()
            shares[-1].append(_mean(share_of_most_changed(change)))
    rows = [
        (direction.name, list(of_one)) for direction, of_one in zip(directions, zip(*shares, strict=True), strict=True)
    ]
    chart = line_chart(
        rows,
        levels,
        title="How local the change is at each noise level: 1 one place, 0.1 everywhere",
        x_axis=f"noise level, as 'level' of Encode Picture (this picture: {levels[-1]:.2g})",
        y_axis="share of the change in the tenth that changes most",
        limits=(0, 1),
    )
    told = [
        {"name": name, "share_in_a_tenth": [None if v is None else rounded(v) for v in values]} for name, values in rows
    ]
    measured = "latent" if vae is None else "picture"
    shown = {"levels": [round(level, 4) for level in levels], "sigmas": list(sigmas)}
    return Plot(chart, {"measured": measured, **shown, "directions": told, **sum_of_costs(*costs)})


def _levels(inversion: Inversion, points: int) -> list[tuple[float, float]]:
    """Noise levels, evenly up to that of the picture, and their sigmas; without those below the model's lowest."""
    sampling = inversion.source_model.get_model_object("model_sampling")
    highest = level_at_sigma(sampling.percent_to_sigma, inversion.sigma)
    levels = [highest * k / points for k in range(1, points)]
    by_sigma = {float(sampling.percent_to_sigma(1 - level)): level for level in levels}
    between = [(by_sigma[sigma], sigma) for sigma in by_sigma if float(sampling.sigma_min) < sigma < inversion.sigma]
    return [*between, (highest, inversion.sigma)]


def _steps(expected: int) -> Callable[[], None]:
    """What moves a progress bar on by one of so many steps, and ends the node where it was cancelled."""
    show, done = SearchProgress(expected, "steps"), itertools.count(1)

    def step() -> None:
        show(next(done))
        comfy.model_management.throw_exception_if_processing_interrupted()

    return step


def _change_of_picture(vae, inversion: Inversion) -> Callable[[Tensor], Tensor]:
    """From a change of the clean latent in the model's space to that of the decoded picture, channels first."""
    latent_format, decode = inversion.source_model.get_model_object("latent_format"), _picture_of(vae)
    samples = inversion.latent["samples"].cpu()
    clean, before = latent_format.process_in(samples), decode(samples)
    return lambda change: (decode(latent_format.process_out(clean + change)) - before).movedim(-1, 1)


def _mean(shares: Tensor) -> float | None:
    """Over those pictures of a batch that change at all; None where none does."""
    mean = float(shares.nanmean())
    return None if math.isnan(mean) else mean


NODES = [PlotDirections]
