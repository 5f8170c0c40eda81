"""Transfer Direction: directions for another picture, size or seed, with a report of how well each carries."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..core.direction import Direction, Feature
from ..core.errors import DerivativeError, NothingInCommonError, NothingToMoveError, ShapeError, size_in_words
from ..core.pullback import OTHER_RANK, carry_over
from ..core.search import CHANGE_NOTE, Search, pairs_evaluations
from ..core.self_check import SelfCheck
from ..core.transfer import BADLY, PARTLY, WELL, Measured, measure_move, resampled, resampled_move
from .errors import InputError, UnsupportedModelError, with_advice
from .features import find_layer
from .inputs import DIRECTIONS, INDEX, check_inputs
from .manipulate import chosen, of_its_model, usable
from .masks import refuse_empty_mask
from .progress import show_line, sum_of_costs
from .sampling import scale_at
from .search_at_picture import at_picture
from .sockets import DirectionsSocket, Inversion, InversionSocket

ALL, ONE = "all", "the one at index"
BY_FEATURES, AS_IT_IS = "by what it changes inside the network", "as it is"
CUT_OFF = (
    "The direction '{}' acts in a part of the picture that is cut off at this picture's shape, so it would move nothing"
    " here. Use a picture of another shape, or find the direction again on this one."
)
NOT_MEASURED = "not measured"
WORDS_ALONE = "it moves by words, which act on every picture of this model; it was left as it is and not measured."
NO_LAYER = "this model has no layer '{}', by which it would be carried over; its move was taken as it is."
NOT_CARRIED = "it was not carried over by what it changes inside the network; its move was taken as it is. {}"


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
            search_aliases=[
                "direction to another picture",
                "copy edit to another picture",
                "reuse direction",
                "resize direction",
                "parallel transport",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The same model that Encode Picture used."),
                InversionSocket.Input(
                    "inversion", tooltip="The picture that the directions are for, from Encode Picture."
                ),
                DIRECTIONS,
                io.Combo.Input(
                    "which",
                    options=[ALL, ONE],
                    default=ALL,
                    tooltip="Which directions to transfer; with 'the one at index' the others are left out.",
                ),
                INDEX,
                io.Combo.Input(
                    "move",
                    options=[BY_FEATURES, AS_IT_IS],
                    default=BY_FEATURES,
                    advanced=True,
                    tooltip=(
                        "For directions of the method 'pullback'. 'by what it changes inside the network': finds the"
                        " move that makes the same change inside the network at this picture, for which a search is"
                        " needed. 'as it is': the same move of the latent, as for directions of all other methods."
                    ),
                ),
            ],
            outputs=[
                DirectionsSocket.Output(
                    display_name="directions", tooltip="The directions as they fit this picture, for Direction Slider."
                ),
                io.String.Output(display_name="report", tooltip="How well each direction carries over, as JSON."),
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls, model, inversion, directions, which=ALL, index=0, move=BY_FEATURES) -> io.NodeOutput:
        """Resample, measure and set the step of each that is wanted; the others of the list are left out."""
        check_inputs(cls, locals())
        wanted = directions if which == ALL else [chosen(directions, index)]
        made, rows, cost = transferred(model, inversion, wanted, by_features=move == BY_FEATURES)
        summary = " ".join(f"'{row['name']}': {row['sentence']}" for row in rows)
        report = {"stage": "transfer", "summary": summary, "sigma": inversion.sigma, **cost, "directions": rows}
        show_line(_line(rows))
        return io.NodeOutput(made, json.dumps(report, indent=1), ui=ui.PreviewText(summary))


@dataclass(frozen=True)
class _Moved:
    """A direction that was measured at the picture.

    Attributes:
        direction: with its move and step there.
        found: what was measured.
        cosine: of the change inside the network that carried over; None where the move was taken as it is.
        remark: why it was, where it should not have been.
    """

    direction: Direction
    found: Measured
    cosine: float | None = None
    remark: str = ""


def transferred(
    model: ModelPatcher, inversion: Inversion, directions: Sequence[Direction], *, by_features: bool = True
) -> tuple[list[Direction], list[dict], dict]:
    """Directions for another picture.

    Args:
        model: the MODEL.
        inversion: the picture.
        directions: of its model family.
        by_features: whether directions that know what they change inside the network are carried over by that.

    Returns:
        The directions with moves and masks of the picture's size, their steps measured, and without what
        Prepare Quick Slider knows of them; a row of the report for each; and the cost.

    Raises:
        InputError: a direction does not fit the model, or what it acts on is cut off.
    """
    for direction in directions:
        _check(inversion, direction, by_features)
    fitted = [_fitted(inversion, direction) for direction in directions]
    moving = [
        number for number, direction in enumerate(fitted) if direction.latent is not None or _is_common(direction)
    ]
    layers: dict[str | None, list[int]] = {}
    for number in moving:
        feature = fitted[number].feature
        layers.setdefault(feature.layer if by_features and feature is not None else None, []).append(number)
    moved: dict[int, _Moved] = {}
    costs = []
    for layer, numbers in layers.items():
        found, spent = _at_layer(model, inversion, [fitted[number] for number in numbers], layer)
        moved |= dict(zip(numbers, found, strict=True))
        costs.append(spent)
    made = [moved[number].direction if number in moved else direction for number, direction in enumerate(fitted)]
    rows = [
        _row(before, moved[number])
        if number in moved
        else {"name": before.name, "carries": NOT_MEASURED, "sentence": WORDS_ALONE}
        for number, before in enumerate(directions)
    ]
    return made, rows, sum_of_costs(*costs)


def _is_common(direction: Direction) -> bool:
    """Whether all that a direction holds is what it changes inside the network, as that of several pictures does."""
    return direction.feature is not None and direction.latent is None and direction.words is None


def _check(inversion: Inversion, direction: Direction, by_features: bool) -> None:
    if not _is_common(direction):
        usable(inversion, direction)
        return
    of_its_model(inversion, direction)
    if not by_features:
        msg = (
            f"The direction '{direction.name}' has no move of the latent that could be taken as it is, only what it"
            f" changes inside the network. Set 'move' to '{BY_FEATURES}'."
        )
        raise InputError(msg)


def _at_layer(
    model: ModelPatcher, inversion: Inversion, directions: Sequence[Direction], layer: str | None
) -> tuple[list[_Moved], dict]:
    """Directions measured at the picture, carried over by the features of a layer where one is given and known."""
    block = None if layer is None else _block_of(model, layer)
    remark = NO_LAYER.format(layer) if layer is not None and block is None else ""

    def body(search: Search) -> list[_Moved]:
        carried = [
            _carried(search, direction, remark) if layer is not None else (direction, None, "")
            for direction in directions
        ]
        with search.checked(backward=False) as check:
            found = [_measure(search, check, direction) for direction, *_ in carried]
        return [
            _Moved(_with_step(direction, measured), measured, cosine, said)
            for (direction, cosine, said), measured in zip(carried, found, strict=True)
        ]

    search_of_basis = 0 if block is None else 30 + pairs_evaluations(OTHER_RANK)
    return at_picture(model, inversion, body, expected=len(directions) * (3 + search_of_basis), block=block)


def _with_step(direction: Direction, found: Measured) -> Direction:
    """The direction with the step that was measured, and what that changes where it is known."""
    known = {} if _change_of(direction) is None else {CHANGE_NOTE: found.change}
    return replace(direction, step=found.step, notes=direction.notes | known)


def _block_of(model: ModelPatcher, layer: str) -> int | None:
    """The number of the block of that name; None where the model has none."""
    network, number = model.get_model_object("diffusion_model"), 1
    try:
        while find_layer(network, number).name != layer:
            number += 1
    except (InputError, UnsupportedModelError):
        return None
    return number


def _carried(search: Search, direction: Direction, remark: str) -> tuple[Direction, float | None, str]:
    """A direction with the move that makes its change of the features here, and the cosine; or the same, and why."""
    is_common = _is_common(direction)
    if remark and is_common:
        msg = f"The direction '{direction.name}' was found at the layer '{direction.feature.layer}', which this model"
        msg += " does not have. Find common directions again with this model."
        raise InputError(msg)
    if remark:
        return direction, None, remark
    try:
        found = carry_over(search, direction.feature.change[None])
    except (ShapeError, DerivativeError, NothingToMoveError, NothingInCommonError) as error:
        if is_common and isinstance(error, ShapeError):
            msg = f"{error} Use a picture of the size of those that the direction '{direction.name}' was found on, or"
            msg += " run Find Common Directions on pictures of this size."
            raise InputError(msg) from error
        if is_common:
            raise
        return direction, None, NOT_CARRIED.format(error)
    feature = Feature(found.feature[0].cpu(), direction.feature.layer)
    carried = replace(direction, latent=found.vector[0].cpu(), feature=feature)
    if is_common:  # its step and change are those of this picture, at its level
        notes = direction.notes | {CHANGE_NOTE: found.notes[CHANGE_NOTE]}
        carried = replace(carried, sigma=search.sigma, step=found.step, notes=notes)
    return carried, found.notes["cosine"], ""


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


def _measure(search: Search, check: SelfCheck, direction: Direction) -> Measured:
    like = search.x
    vector = direction.latent.to(like).view_as(like)
    mask = direction.mask
    if mask is not None:
        mask = mask[:1].to(like).view(1, *[1] * (like.ndim - 3), *mask.shape[-2:])
    change = _change_of(direction)
    return measure_move(search.denoiser, check, search.sigma, vector, direction.step, mask, change=change)


def _change_of(direction: Direction) -> float | None:
    """What strength 1 of a direction changed of the prediction; None where words set that, or it is not known."""
    value = direction.notes.get(CHANGE_NOTE)
    known = direction.words is None and type(value) in (int, float) and 0 < value < math.inf
    return float(value) if known else None


def _row(before: Direction, moved: _Moved) -> dict:
    """What the report says of one direction."""
    direction, found = moved.direction, moved.found
    row = {
        "name": direction.name,
        "carries": found.carries,
        "sentence": _sentence(moved),
        "strength": round(found.strength, 3),
        "nonlinearity": round(found.nonlinearity, 3),
        "step_before": found.step_before,
        "step": found.step,
        "change_with_step_before": round(found.change_before, 4),
        "change": round(found.change, 4),
    }
    if found.kept is not None:
        row["effect_kept"] = round(found.kept, 4)
    if found.share_inside is not None:
        row |= {"share_inside_mask": round(found.share_inside, 4), "share_of_cells": round(found.area, 4)}
    if moved.cosine is not None:
        row["cosine_inside_the_network"] = round(moved.cosine, 4)
    if before.latent is not None and before.latent.shape[-2:] != direction.latent.shape[-2:]:
        row["resampled_from"] = size_in_words(before.latent)
    return row


def _sentence(moved: _Moved) -> str:
    """How well a direction carries, and why, in words."""
    found = moved.found
    said = f"carries {found.carries}: it changes the model's prediction {found.strength:.1f} times as much as a random"
    said += " move"
    if found.kept is not None:
        said += f" and {found.kept:.0%} as much as at the picture where it was found"
    if found.share_inside is not None:
        said += f", {found.share_inside:.0%} of it inside its mask of {found.area:.0%} of the picture"
    said += f"; at strength 1 the change differs from the expected one by {found.nonlinearity:.0%} of its size."
    if moved.cosine is not None:
        said += f" This picture can make {moved.cosine**2:.0%} of what it changes inside the network."
    if found.bounded:
        said += " The step was limited, so strength 1 changes less here than at the picture where it was found."
    return f"{said} But {moved.remark}" if moved.remark else said


def _line(rows: list[dict]) -> str:
    """How many of the directions carry how well."""
    counts = {how: sum(row["carries"] == how for row in rows) for how in (WELL, PARTLY, BADLY, NOT_MEASURED)}
    verbs = {
        how: "" if how == NOT_MEASURED else "carries " if count == 1 else "carry " for how, count in counts.items()
    }
    return ", ".join(f"{count} {verbs[how]}{how}" for how, count in counts.items() if count)


NODES = [TransferDirection]
