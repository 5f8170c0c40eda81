"""Look at directions and edits: a contact sheet of what each direction does, and a report of what an edit cost."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

from ..core.contact_sheet import contact_sheet
from ..core.direction import Direction
from .errors import InputError, with_advice
from .host import samples_of
from .inputs import DIRECTIONS, check_inputs
from .manipulate import choose, sampled, schedule_of, with_slider
from .pictures import image_of, picture_of
from .previews import save_previews
from .progress import RunsCost, RunStatistics, SearchProgress, result_line, show_line
from .sockets import Inversion, InversionSocket

TILE = 256  # pixels of the longer side of a picture in the page's gallery, at most
EXACT = 1e-5  # largest difference to the encoded latent that is its rounding, relative to the largest value


class PreviewDirections(io.ComfyNode):
    """A contact sheet: one row a direction, one column a strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_PreviewDirections",
            display_name="Preview Directions",
            category="latent directions",
            description="Shows what each direction does at a few strengths, sampled in few steps.",
            search_aliases=[
                "contact sheet",
                "direction gallery",
                "xy plot",
                "grid of pictures",
                "compare directions",
                "comparison",
            ],
            inputs=[
                InversionSocket.Input("inversion", tooltip="The encoded picture, from Encode Picture."),
                DIRECTIONS,
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                io.Float.Input(
                    "strength",
                    default=2.0,
                    min=0.05,
                    max=3.0,
                    step=0.05,
                    tooltip="The largest strength shown, to both sides.",
                ),
                io.Int.Input(
                    "columns", default=5, min=3, max=15, step=2, tooltip="Pictures in a row; the middle one is at 0."
                ),
                io.Int.Input("steps", default=8, min=1, max=200, tooltip="Sampling steps for each picture."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet",
                    tooltip="The contact sheet: a row for each direction, a column for each strength.",
                ),
                io.String.Output(display_name="report", tooltip="What was shown and what it took, as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion, directions, vae, strength, columns, steps) -> io.NodeOutput:
        """Sample every direction at every strength, decode, and lay the pictures out."""
        check_inputs(cls, locals())
        strength = float(strength)
        strengths = _strengths(strength, columns)
        show = SearchProgress(len(directions) * len(strengths), "pictures")
        still = replace(inversion.counted_apart(), sliders=())
        cost, rows = RunsCost(still.statistics), []
        for index in range(len(directions)):
            direction = choose(inversion, directions, index)
            row = []
            for value in strengths:
                picture = picture_of(vae.decode(_sample(still, direction, value, steps)))
                row.append((f"{value:+.2g}", picture))
                cost.note()
                show(index * len(strengths) + len(row), ("JPEG", picture, 256))
            rows.append((direction.name, row))
        sheet = contact_sheet(rows)
        image = image_of(sheet)
        gallery = _gallery(directions, [[picture for _, picture in row] for _, row in rows], strengths)
        changes = [{name: one[name] for name in ("name", "change")} for one in gallery]
        report = {"stage": "preview", "pictures": len(rows) * len(strengths), "changes": changes, **cost.report()}
        show_line(result_line(report["pictures"], "picture", report["seconds"]))
        # as text, because ComfyUI counts every entry that is a dict as a file that was made
        shown = ui.PreviewImage(image, cls=cls).as_dict() | {"gallery": [json.dumps(gallery)]}
        return io.NodeOutput(image, json.dumps(report, indent=1), ui=shown)


class EditReport(io.ComfyNode):
    """What a finished edit changed in the latent, and what it cost."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_EditReport",
            display_name="Edit Report",
            category="latent directions",
            search_aliases=["compare latents", "difference", "what changed", "edit statistics", "sampling time"],
            description=(
                "Says how far a sampled latent is from the encoded picture, what sampling took, and how exactly"
                " strength 0 returns to the picture."
            ),
            inputs=[
                InversionSocket.Input("inversion", tooltip="The encoded picture, from Encode Picture."),
                io.Latent.Input("latent", tooltip="The sampler's result."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The sampler's result, unchanged."),
                io.String.Output(display_name="report", tooltip="What the edit changed and what it took, as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion, latent) -> io.NodeOutput:
        """Compare with the encoded latent; the latent is passed on."""
        check_inputs(cls, locals())
        before, after = inversion.latent["samples"], samples_of(latent)
        if before.shape != after.shape:
            msg = (
                f"'latent' has shape {tuple(after.shape)}, the encoded picture's is {tuple(before.shape)}. Connect the"
                " result of the sampler that used this inversion."
            )
            raise InputError(msg)
        before = before.to(after)
        statistics, change = inversion.statistics, float((after - before).abs().max())
        report = {
            "stage": "manipulate",
            "summary": _summary(before, after, statistics),
            "max_abs_diff": change if math.isfinite(change) else None,
            "sampling_runs": statistics.runs,
            "model_evaluations": statistics.last_evaluations,
            "seconds": statistics.last_seconds,
            "peak_megabytes": statistics.last_peak_megabytes,
            "return_error_at_strength_0": statistics.last_return_error,
            "model_evaluations_of_all_runs": statistics.evaluations,
            "seconds_of_all_runs": round(statistics.seconds, 3),
            "reference_cache_bytes": inversion.cache.bytes,
        }
        if statistics.last_remarks:
            report["remarks"] = statistics.last_remarks
        show_line(report["summary"])
        return io.NodeOutput(latent, json.dumps(report, indent=1), ui=ui.PreviewText(report["summary"]))


def _summary(before: Tensor, after: Tensor, statistics: RunStatistics) -> str:
    """What was changed and what it cost, in words; the latents are (B, C, H, W)."""
    if not torch.isfinite(after).all():
        changed = "The latent holds values that are not numbers (NaN or infinity): sampling failed."
    elif (largest := float((after - before).abs().max() / before.abs().max())) <= EXACT:
        changed = f"The latent is the encoded picture: they differ by {largest:.1g} of its largest value at most."
    else:
        changed = f"The latent was changed by {float((after - before).norm() / before.norm()):.1%} of its norm."
    if not statistics.runs:
        return f"{changed} The MODEL of this inversion has not been sampled with yet."
    memory = statistics.last_peak_megabytes
    graphics = "" if memory is None else f", with at most {memory:.0f} MB of graphics memory"
    evaluations, seconds = statistics.last_evaluations, statistics.last_seconds
    cost = f"The last run took {evaluations} model evaluations and {seconds} s{graphics}."
    if statistics.last_return_error is None:
        return f"{changed} {cost}"
    return (
        f"{changed} {cost} In a trial run at strength 0, without the model, its sampler gave the picture back to within"
        f" {statistics.last_return_error:.1g} of the largest value."
    )


def _strengths(most: float, columns: int) -> list[float]:
    """Evenly spaced from -most to most, an odd number of them, so that the middle one is 0 and nothing else."""
    half = columns // 2
    return [most * k / half for k in range(-half, half + 1)]


def _gallery(directions: list[Direction], rows: list[list[Image.Image]], strengths: list[float]) -> list[dict]:
    """What the page's gallery shows (web/gallery.js) of each direction, in order.

    Each is {name, key, change, pictures}. `key` is the same when the direction is found again. `change` is how much its
    first and last picture differ from the one at strength 0: the root mean square of their values, of which the largest
    is 1. `pictures` are the first, the middle and the last, {strength, filename, subfolder, type} each; the one at
    strength 0 is the same for all, and saved once.
    """
    middle, ends = rows[0][len(strengths) // 2], (strengths[0], strengths[-1])
    zero, *saved = save_previews((middle, *(row[k] for row in rows for k in (0, -1))), TILE)
    gallery = []
    for n, (direction, row) in enumerate(zip(directions, rows, strict=True)):
        below, above = (saved[2 * n + k] | {"strength": ends[k]} for k in (0, 1))
        change = round(_difference(middle, row[0], row[-1]), 5)
        known = {"name": direction.name, "key": _key(direction), "change": change}
        gallery.append(known | {"pictures": [below, zero | {"strength": 0.0}, above]})
    return gallery


def _difference(still: Image.Image, *others: Image.Image) -> float:
    """The root mean square of the differences of pictures from one of the same size, 1 from black to white."""
    statistics = [ImageStat.Stat(ImageChops.difference(still, other)) for other in others]
    squares, count = sum(sum(one.sum2) for one in statistics), sum(sum(one.count) for one in statistics)
    return math.sqrt(squares / count) / 255


def _key(direction: Direction) -> str:
    """What tells directions apart, also where rounding makes them slightly different when they are found again.

    It is made from the name and the places where each channel of the move is largest.
    """
    places = [] if direction.latent is None else direction.latent.flatten(1).abs().argmax(1).tolist()
    return hashlib.sha256(repr((direction.name, places)).encode()).hexdigest()[:16]


def _sample(inversion: Inversion, direction: Direction, strength: float, steps: int) -> Tensor:
    """The edited latent, by euler under guidance 1."""
    return sampled(with_slider(inversion, direction, strength), schedule_of(inversion, steps))


NODES = [PreviewDirections, EditReport]
