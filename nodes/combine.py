"""Combine Directions: several directions made into one, or one without what the others change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.combining import Combined, Held, added, held
from ..core.direction import Direction
from ..core.errors import size_in_words
from ..core.search import Search
from .errors import InputError, with_advice
from .inputs import DIRECTIONS, INDEX, check_inputs
from .manipulate import chosen, usable
from .progress import show_line
from .sampling import scale_at
from .search_at_picture import at_picture
from .sockets import DirectionsSocket, Inversion, InversionSocket

ADD, HOLD = "add", "hold what the others do"
# Where less than this share of the effect is left, most of what the direction did was what the others do.
LITTLE_LEFT = 0.5
WORDS = {
    ADD: "Chain Direction Sliders instead, one for each direction: their words add up there.",
    HOLD: "Find the direction again, with what is to stay as it is in 'keep' of Find Directions.",
}
MOSTLY_THE_SAME = (
    "Only {:.0%} of what '{}' changes is left, because the rest is what the others change too. At strength 1 its move"
    " is {:.1f} times as long as before."
)
MOSTLY_THE_SAME_MOVE = (
    "Only {:.0%} of the move of '{}' is left, because the rest points the same way as the others' moves."
)
IN_THE_LATENT = (
    "The moves of the latent were made orthogonal, which does not hold what the others change. Connect 'model' and"
    " 'inversion' to hold that."
)
OTHER_MODEL = "The direction '{}' was found on another model of this family, so it may do something else here."


class CombineDirections(io.ComfyNode):
    """One direction out of several."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_CombineDirections",
            display_name="Combine Directions",
            category="latent directions",
            description=(
                "Makes one direction out of several that move the latent: their sum, or one of them without what the"
                " others change. Directions of words are combined by chaining sliders."
            ),
            search_aliases=[
                "add directions",
                "merge directions",
                "direction arithmetic",
                "orthogonalise",
                "orthogonalize",
                "subtract directions",
                "disentangle",
            ],
            inputs=[
                DIRECTIONS,
                INDEX,
                DirectionsSocket.Input(
                    "others",
                    tooltip=("One or more directions. From the same node as 'directions': all but the one at 'index'."),
                ),
                io.Combo.Input(
                    "how",
                    options=[HOLD, ADD],
                    default=HOLD,
                    tooltip=(
                        "'hold what the others do': the direction without what would change what the others change."
                        " 'add': strength 1 does what a chain of sliders does, this direction at 1 and the others at"
                        " 'amount'."
                    ),
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=-3.0,
                    max=3.0,
                    step=0.05,
                    tooltip="For 'add': the strength of the others at strength 1 of the sum. Negative: their opposite.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "With 'inversion': what the others change is measured with the model, which takes two"
                        " evaluations for each direction and a few for a check. Without: nothing is measured;"
                        " only the part of the move that runs along the others is removed, which may not hold what they"
                        " change."
                    ),
                ),
                InversionSocket.Input(
                    "inversion", optional=True, tooltip="With 'model': the encoded picture that is measured on."
                ),
            ],
            outputs=[
                DirectionsSocket.Output(
                    display_name="directions", tooltip="The combined direction, for Direction Slider."
                ),
                io.String.Output(display_name="report", tooltip="What was combined and how, as JSON."),
            ],
        )

    @classmethod
    @with_advice()
    def execute(
        cls, directions, index=0, others=None, how=HOLD, amount=1.0, model=None, inversion=None
    ) -> io.NodeOutput:
        """Bring all to one noise level, combine them, and say what is left."""
        check_inputs(cls, locals())
        direction = chosen(directions, index)
        others = [other for other in others if other is not direction]
        if (model is None) != (inversion is None):
            missing = "model" if model is None else "inversion"
            msg = f"'{missing}' is missing: 'model' and 'inversion' are used together. Connect both, or neither."
            raise InputError(msg)
        _check_that_they_fit(direction, others, how)
        if inversion is not None:
            for one in (direction, *others):
                usable(inversion, one)
        measured = inversion is not None and how == HOLD
        here, *beside = _at_one_level(direction, others, model, inversion if measured else None)
        report = {"stage": "combine", "how": how, "direction": direction.name, "others": [o.name for o in others]}
        remarks = [
            OTHER_MODEL.format(other.name)
            for other in others
            if direction.model is not None and other.model is not None and direction.model.differs_from(other.model)
        ]
        if how == ADD:
            found, made = _sum(here, beside, float(amount))
        else:
            found, cost = _held(here, beside, model, inversion)
            remarks += cost.pop("remarks", []) if measured else [IN_THE_LATENT]
            if found.effect_left < LITTLE_LEFT:
                said = MOSTLY_THE_SAME if measured else MOSTLY_THE_SAME_MOVE
                remarks.append(said.format(found.effect_left, direction.name, found.step / here.step))
            report |= _what_is_left(found, others, measured) | cost
            made = replace(here, name=_without(direction.name, others))
        notes = {key: report[key] for key in ("how", "direction", "others", "effect_left") if key in report}
        made = replace(made, latent=found.vector, step=found.step, distilled=None, feature=None, notes=notes)
        report |= {"name": made.name, "step_before": here.step, "step": made.step}
        show_line(made.name)
        report |= {"remarks": remarks} if remarks else {}
        return io.NodeOutput([made], json.dumps(report, indent=1))


def _check_that_they_fit(direction: Direction, others: Sequence[Direction], how: str) -> None:
    """Refuse directions that cannot be made into one."""
    if not others:
        msg = "'others' holds no other direction than the one at 'index'. Connect the directions to combine it with."
        raise InputError(msg)
    for one in (direction, *others):
        if one.words is not None:
            msg = f"The direction '{one.name}' moves by words, which cannot be made into one move. {WORDS[how]}"
            raise InputError(msg)
        if one.latent is None:
            msg = f"The direction '{one.name}' holds no move of the latent. Find it again."
            if one.feature is not None:
                msg = (
                    f"The direction '{one.name}' has no move of the latent of its own yet. Connect it to Transfer"
                    " Direction first, which finds its move for a picture."
                )
            raise InputError(msg)
    for other in others:
        if other.family != direction.family:
            msg = (
                f"The direction '{direction.name}' was found on a model of the family {direction.family}, but"
                f" '{other.name}' on {other.family}. Combine directions of one family."
            )
            raise InputError(msg)
        if other.latent.shape != direction.latent.shape or _cells(other) != _cells(direction):
            msg = (
                f"The direction '{direction.name}' moves a latent of {size_in_words(direction.latent)}, but"
                f" '{other.name}' one of {size_in_words(other.latent)}. Put Transfer Direction before this node, to"
                " bring both to the size of one picture."
            )
            raise InputError(msg)


def _at_one_level(
    direction: Direction, others: Sequence[Direction], model, inversion: Inversion | None
) -> list[Direction]:
    """All of them for a start at the noise level of the inversion, or of the direction where there is none."""
    sigma = direction.sigma if inversion is None else inversion.sigma

    def scale(level: float) -> tuple[float, float]:
        if model is None:
            msg = (
                "The directions were found at different noise levels"
                f" ({', '.join(f'sigma {one.sigma:.4g}' for one in (direction, *others))}). Connect 'model' and"
                " 'inversion', which tell how to bring them to one level."
            )
            raise InputError(msg)
        return scale_at(model, level)

    return [one.at(sigma, scale) for one in (direction, *others)]


def _sum(direction: Direction, others: Sequence[Direction], amount: float) -> tuple[Combined, Direction]:
    """What a chain of sliders does, one at strength 1 and the others at `amount`: moves, masks and keeps of all."""
    if not amount:
        return Combined(direction.latent, direction.step), direction
    found = added([direction.step * direction.latent, *(amount * other.step * other.latent for other in others)])
    share = "" if amount == 1 else f"{amount:g} of "
    masks = [one.mask for one in (direction, *others)]
    mask = None
    if not any(one is None for one in masks):
        mask = torch.stack(torch.broadcast_tensors(*masks)).amax(0)
    return found, replace(
        direction,
        name=" and ".join([direction.name, *(f"{share}{other.name}" for other in others)]),
        method=direction.method if all(other.method == direction.method for other in others) else "combined",
        keep=tuple(dict.fromkeys(pair for one in (direction, *others) for pair in one.keep)),
        mask=mask,
    )


def _held(direction: Direction, others: Sequence[Direction], model, inversion: Inversion | None) -> tuple[Held, dict]:
    """The direction without what the others do, and what that cost: by effects, or without a model by their moves."""
    moves = torch.stack([one.latent.float() for one in (direction, *others)])
    if inversion is None:
        return held(moves[0], direction.step, moves[1:], moves[0], moves[1:]), {"model_evaluations": 0}

    def effects_of(search: Search) -> Tensor:
        like = search.x
        if moves.shape[-2:] != like.shape[-2:] or moves[0].numel() != like.numel():
            msg = (
                f"The direction '{direction.name}' moves a latent of {size_in_words(moves[0])}, but this picture's is"
                f" {size_in_words(like[0])}. Put Transfer Direction before this node, with this 'inversion'."
            )
            raise InputError(msg)
        with search.checked(backward=False) as check:
            # one at a time, which takes no more memory than a search
            return torch.cat([check.jacobian.matvec(move.view_as(like).to(like)).cpu() for move in moves])

    effects, cost = at_picture(model, inversion, effects_of, expected=2 * len(moves))
    effects = effects.view_as(moves)
    return held(moves[0], direction.step, moves[1:], effects[0], effects[1:], direction.mask), cost


def _what_is_left(found: Held, others: Sequence[Direction], measured: bool) -> dict:
    """What a report says of a direction without what the others do."""
    cosines = [
        {"name": other.name, "before": round(before, 4), "after": round(after, 4)}
        for other, before, after in zip(others, found.before, found.after, strict=True)
    ]
    return {
        "measured": "what they change, with the model" if measured else "the moves of the latent, without the model",
        **({"effect_left": round(found.effect_left, 4)} if measured else {}),
        "move_left": round(found.move_left, 4),
        "cosines": cosines,
    }


def _without(name: str, others: Sequence[Direction]) -> str:
    return f"{name} without {', '.join(other.name for other in others)}"


def _cells(direction: Direction) -> torch.Size:
    """Rows and columns of the latent that a direction is for, by its mask where it has one."""
    return (direction.latent if direction.mask is None else direction.mask).shape[-2:]


NODES = [CombineDirections]
