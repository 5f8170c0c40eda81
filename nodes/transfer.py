"""Transfer Direction: directions for another picture, size or seed, with a report of how well each carries."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..core.denoiser import Denoiser
from ..core.direction import Direction
from ..core.errors import size_in_words
from ..core.exploration import EXPLORE
from ..core.exploration import STEP as STEP_OF_EXPLORE
from ..core.methods import METHODS
from ..core.self_check import SelfCheck
from ..core.transfer import BADLY, CHANGE, PARTLY, WELL, Measured, measure_move, resampled, resampled_move
from .effects import at_picture
from .errors import InputError, with_advice
from .inputs import DIRECTIONS, check_inputs
from .manipulate import chosen, usable
from .masks import refuse_empty_mask
from .progress import show_line
from .sampling import scale_at
from .sockets import DirectionsSocket, Inversion, InversionSocket

ALL = -1
CUT_OFF = (
    "The direction '{}' acts in a part of the picture that is cut off at this picture's shape, so it would move nothing"
    " here. Use a picture of another shape, or find the direction again on this one."
)
WORDS_ALONE = "It moves by words, which fit any picture of this model; nothing was measured."


class TransferDirection(io.ComfyNode):
    """Directions for another picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_TransferDirection",
            display_name="Transfer Direction",
            category="latent directions",
            description=(
                "Makes directions that were found on one picture fit another picture, size or seed, measures what they"
                " do there, and says how well each carries over."
            ),
            search_aliases=["direction to another picture", "resize direction", "parallel transport"],
            inputs=[
                io.Model.Input("model", tooltip="The same model that Invert Image used."),
                InversionSocket.Input(
                    "inversion", tooltip="The picture that the directions are for, from Invert Image."
                ),
                DIRECTIONS,
                io.Int.Input(
                    "index",
                    default=ALL,
                    min=ALL,
                    max=1000,
                    tooltip="Which direction to transfer, counted from 0. -1: all of them.",
                ),
            ],
            outputs=[DirectionsSocket.Output(display_name="directions"), io.String.Output(display_name="report")],
        )

    @classmethod
    @with_advice()
    def execute(cls, model, inversion, directions, index=ALL) -> io.NodeOutput:
        """Resample, measure and set the step of each; the others of the list are left out."""
        check_inputs(cls, locals())
        wanted = directions if index == ALL else [chosen(directions, index)]
        made, rows, cost = transferred(model, inversion, wanted)
        summary = " ".join(f"'{row['name']}': {row['sentence']}" for row in rows)
        report = {"stage": "transfer", "summary": summary, "sigma": inversion.sigma, **cost, "directions": rows}
        show_line(_line(rows))
        return io.NodeOutput(made, json.dumps(report, indent=1), ui=ui.PreviewText(summary))


def transferred(
    model: ModelPatcher, inversion: Inversion, directions: Sequence[Direction]
) -> tuple[list[Direction], list[dict], dict]:
    """Directions for another picture.

    Args:
        model: the MODEL.
        inversion: the picture.
        directions: of its model family.

    Returns:
        The directions with moves and masks of the picture's size, their steps measured, and without what
        Prepare Quick Slider knows of them; a row of the report for each; and the cost.

    Raises:
        InputError: a direction does not fit the model, or what it acts on is cut off.
    """
    fitted = [_fitted(inversion, usable(inversion, direction)) for direction in directions]
    moving = [direction for direction in fitted if direction.latent is not None]
    cost = {"model_evaluations": 0, "seconds": 0.0, "peak_megabytes": None}
    measured: list[Measured] = []
    if moving:

        def body(denoiser: Denoiser, check: SelfCheck) -> list[Measured]:
            return [_measure(denoiser, check, inversion.sigma, direction) for direction in moving]

        measured, cost = at_picture(model, inversion, body, products=len(moving), more=len(moving))
    of_moving = iter(measured)
    made, rows = [], []
    for before, direction in zip(directions, fitted, strict=True):
        if direction.latent is None:
            made.append(direction)
            rows.append({"name": direction.name, "carries": WELL, "sentence": WORDS_ALONE})
        else:
            found = next(of_moving)
            made.append(replace(direction, step=found.step))
            rows.append(_row(before, direction, found))
    return made, rows, cost


def _fitted(inversion: Inversion, direction: Direction) -> Direction:
    """The direction at the size and the noise level of the picture, its step as long in each cell as before."""
    shape = inversion.latent["samples"].shape
    size = tuple(shape[-2:])
    fitted = direction.at(inversion.sigma, functools.partial(scale_at, inversion.source_model))
    if fitted.mask is not None:
        fitted = replace(fitted, mask=resampled(fitted.mask, size).clamp(0, 1))
        refuse_empty_mask(fitted.mask, CUT_OFF.format(direction.name))
    if fitted.latent is not None:
        channels = fitted.latent.shape[0]
        if channels != shape[1] or fitted.latent.shape[1:-2].numel() != 1:
            msg = (
                f"The direction '{direction.name}' moves a latent of {size_in_words(fitted.latent)}, but this picture's"
                f" is {size_in_words(inversion.latent['samples'][0])}: they differ in more than rows and columns. Find"
                " the direction again with this model."
            )
            raise InputError(msg)
        latent, step = resampled_move(fitted.latent, fitted.step, size)
        fitted = replace(fitted, latent=latent, step=step)
    return replace(fitted, distilled=None)


def _measure(denoiser: Denoiser, check: SelfCheck, sigma: float, direction: Direction) -> Measured:
    like = check.jacobian.x
    vector = direction.latent.to(like).view_as(like)
    mask = direction.mask
    if mask is not None:
        mask = mask[:1].to(like).view(1, *[1] * (like.ndim - 3), *mask.shape[-2:])
    return measure_move(denoiser, check, sigma, vector, direction.step, mask, change=_change_of(direction))


def _change_of(direction: Direction) -> float | None:
    """What strength 1 of a direction changed of the prediction; None where words set that, or it is not known."""
    method = METHODS.get(direction.method)
    if direction.words is not None or method is None or method.compares_words:
        return None
    return STEP_OF_EXPLORE if method is EXPLORE else CHANGE


def _row(before: Direction, direction: Direction, found: Measured) -> dict:
    """What the report says of one direction."""
    row = {
        "name": direction.name,
        "carries": found.carries,
        "sentence": _sentence(found),
        "strength": round(found.strength, 3),
        "nonlinearity": round(found.nonlinearity, 3),
        "step_before": direction.step,
        "step": found.step,
        "change_with_step_before": round(found.change_before, 4),
        "change": round(found.change, 4),
    }
    if found.kept is not None:
        row["effect_kept"] = round(found.kept, 4)
    if found.share_inside is not None:
        row |= {"share_inside_mask": round(found.share_inside, 4), "share_of_cells": round(found.area, 4)}
    if before.latent.shape[-2:] != direction.latent.shape[-2:]:
        row["resampled_from"] = size_in_words(before.latent)
    return row


def _sentence(found: Measured) -> str:
    """How well a direction carries, and why, in words."""
    said = f"carries {found.carries}: it changes the picture {found.strength:.1f} times as much as a random move"
    if found.kept is not None:
        said += f" and {found.kept:.0%} as much as the picture where it was found"
    if found.share_inside is not None:
        said += f", {found.share_inside:.0%} of it inside its mask of {found.area:.0%} of the picture"
    said += f"; at strength 1 the change differs from the expected one by {found.nonlinearity:.0%} of its size."
    if found.bounded:
        said += " Its step was kept from growing further, so strength 1 does less than usual."
    return said


def _line(rows: list[dict]) -> str:
    """How many of the directions carry how well."""
    counts = {how: sum(row["carries"] == how for row in rows) for how in (WELL, PARTLY, BADLY)}
    return ", ".join(f"{count} {'carries' if count == 1 else 'carry'} {how}" for how, count in counts.items() if count)


NODES = [TransferDirection]
