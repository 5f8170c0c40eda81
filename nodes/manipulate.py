"""Manipulate: the Direction Slider moves the encoded picture; the artist's own sampler does the rest."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..core.direction import Direction
from .anchored import AnchoredModel
from .errors import InputError, with_advice
from .inputs import DIRECTIONS, INDEX, STRENGTH, check_inputs
from .masks import refuse_empty_mask, soft_mask_on_latent
from .sampling import sample_euler, schedule_from
from .sockets import AppliedSlider, EncodedNoise, Inversion, InversionSocket

LIVE, RECORDED = "live", "recorded"
PLACES_APART = (
    "'mask' and the place where the direction '{}' acts do not overlap, so the slider would move nothing. Paint another"
    " area, or find the direction with 'where' on 'everywhere' and without a mask."
)

# What both nodes hand to the sampler; `outputs` makes it.
FOR_THE_SAMPLER = (
    io.Model.Output(display_name="model", tooltip="The model with the sliders applied, for the sampler."),
    io.Conditioning.Output(
        display_name="conditioning",
        tooltip="The prompt of the picture, for the sampler as the positive prompt.",
    ),
    io.Noise.Output(
        display_name="noise",
        tooltip="The noise to start from, for SamplerCustomAdvanced. KSampler does without.",
    ),
)


class DirectionSlider(io.ComfyNode):
    """Manipulate: move along a direction."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_DirectionSlider",
            display_name="Direction Slider",
            category="latent directions",
            description=(
                "Moves the encoded picture along a direction. Connect model, conditioning (as the positive prompt) and "
                "noise to your sampler. At 0 the sampler gives the encoded picture back. For several sliders connect"
                " inversion to the next one, and the last one to the sampler or to Apply Sliders."
            ),
            search_aliases=[
                "attribute",
                "attribute slider",
                "concept slider",
                "edit strength",
                "smile",
                "age",
                "expression",
                "emotion",
                "face edit",
                "hair",
                "live portrait",
                "image editing",
                "strength slider",
                "prompt slider",
            ],
            inputs=[
                InversionSocket.Input(
                    "inversion", tooltip="The encoded picture, from Encode Picture or another Direction Slider."
                ),
                DIRECTIONS,
                INDEX,
                STRENGTH,
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip=(
                        "How much of the model's change is let through at every step. Below 1 the change is weaker, and"
                        " less else changes; above 1 it is stronger, and more does."
                    ),
                ),
                io.Combo.Input(
                    "words",
                    options=[LIVE, RECORDED],
                    default=LIVE,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "What the words change is asked from the model. 'live': at every step of every run, which is"
                        " best. 'recorded': once for a picture and all strengths. Runs then take less time, but things"
                        " that appear or move far may stop short."
                    ),
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "For directions that move words only: when they begin to act, as a share of the sampling steps."
                        " 0: from the first step."
                    ),
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "For directions that move words only: when they stop acting, as a share of the sampling steps."
                        " 1: after the last step."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Where this slider acts; grey lets through a part. With the mask of Find Directions, only where"
                        " both are painted."
                    ),
                ),
            ],
            outputs=[
                *FOR_THE_SAMPLER,
                InversionSocket.Output(
                    display_name="inversion",
                    tooltip="The encoded picture with this slider, for the next slider or Apply Sliders.",
                ),
            ],
        )

    @classmethod
    @with_advice()
    def execute(
        cls, inversion, directions, index=0, strength=1.0, weight=1.0, words=LIVE, mask=None, start=0.0, end=1.0
    ) -> io.NodeOutput:
        """Add the slider to those of the inversion; strength 0 runs the same code as any other strength."""
        check_inputs(cls, locals())
        start, end = 0.0 if start is None else float(start), 1.0 if end is None else float(end)
        direction = choose(inversion, directions, index)
        _check_range(direction, start, end)
        moved = with_slider(
            inversion,
            direction,
            float(strength),
            weight=float(weight),
            recorded=words == RECORDED,
            mask=mask,
            start=start,
            end=end,
        )
        return io.NodeOutput(*outputs(moved), moved)


class ApplySliders(io.ComfyNode):
    """The end of a chain of sliders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_ApplySliders",
            display_name="Apply Sliders",
            category="latent directions",
            description=(
                "Gives what the sampler needs for all Direction Sliders before it. With it at the end, any"
                " Direction Slider can be bypassed; without a slider the sampler gives the encoded picture back."
            ),
            search_aliases=[
                "combine sliders",
                "several directions",
                "several sliders",
                "multiple attributes",
                "edit stack",
            ],
            inputs=[
                InversionSocket.Input("inversion", tooltip="From the last Direction Slider, or from Encode Picture."),
            ],
            outputs=[*FOR_THE_SAMPLER],
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion) -> io.NodeOutput:
        """Anchor the model with all sliders."""
        check_inputs(cls, locals())
        return io.NodeOutput(*outputs(inversion))


def _check_range(direction: Direction, start: float, end: float) -> None:
    """Refuse a range of steps that is empty, or of a direction whose move of the latent it cannot limit."""
    if not start < end:
        msg = f"'start' is {start:g} and 'end' is {end:g}, so the slider would act at no step. Set 'start' below 'end'."
        raise InputError(msg)
    if direction.latent is not None and (start > 0 or end < 1):
        msg = (
            f"'start' and 'end' limit words alone, but the direction '{direction.name}' moves the latent that sampling"
            " starts from, and what follows from that reaches from the first step to the last. Set 'start' to 0 and"
            " 'end' to 1. For a change that begins later, lower 'level' of Encode Picture."
        )
        raise InputError(msg)


def chosen(directions: list[Direction], index: int) -> Direction:
    """The direction at `index`; InputError where there is none."""
    if not 0 <= index < len(directions):
        names = ", ".join(f"{i}: {d.name}" for i, d in enumerate(directions))
        msg = f"'index' is {index}, but there are {len(directions)} directions ({names}). Choose one of them."
        raise InputError(msg)
    return directions[index]


def choose(inversion: Inversion, directions: list[Direction], index: int) -> Direction:
    """The direction at `index`; InputError where there is none or it cannot be used on the inversion's model."""
    return usable(inversion, chosen(directions, index))


def usable(inversion: Inversion, direction: Direction) -> Direction:
    """The direction itself; InputError where a slider cannot run it, or it belongs to another model family or level."""
    if direction.latent is None and direction.words is None:
        what_to_do = "Use Quick Slider, or find the direction again."
        if direction.feature is not None:
            what_to_do = "Connect it to Transfer Direction first, which finds its move for this picture."
        msg = (
            f"The direction '{direction.name}' holds neither a move of the latent nor words, so a slider cannot run it."
            f" {what_to_do}"
        )
        raise InputError(msg)
    return of_its_model(inversion, direction)


def of_its_model(inversion: Inversion, direction: Direction) -> Direction:
    """The direction itself; InputError where it belongs to another model family or noise level than the picture."""
    sampling = inversion.source_model.get_model_object("model_sampling")
    lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
    if direction.family != inversion.family:
        msg = (
            f"The direction '{direction.name}' was found on a model of the family {direction.family}, but the picture"
            f" was inverted with {inversion.family}. Find the direction again with this model."
        )
        raise InputError(msg)
    if direction.latent is not None and not lowest * (1 - 1e-3) <= direction.sigma <= highest * (1 + 1e-3):
        msg = (
            f"The direction '{direction.name}' says that it was found at noise level sigma {direction.sigma:.4g}, but"
            f" this model's schedule is {lowest:.4g} to {highest:.4g}. Find the direction again with this model."
        )
        raise InputError(msg)
    return direction


def with_slider(
    inversion: Inversion,
    direction: Direction,
    strength: float,
    *,
    weight: float = 1.0,
    recorded: bool = False,
    mask: Tensor | None = None,
    start: float = 0.0,
    end: float = 1.0,
) -> Inversion:
    """The inversion with one slider more.

    Args:
        inversion: with the sliders so far.
        direction: what the slider moves.
        strength: how far.
        weight: how much of the model's change is let through.
        recorded: whether its words are taken on the reference path.
        mask: a MASK of the picture, where the slider acts; the direction's own mask counts too.
        start: share of a run's steps after which its words begin to act.
        end: share of a run's steps after which they act no more, above `start`.

    Raises:
        InputError: a mask does not fit the picture.
    """
    shape = inversion.latent["samples"].shape
    cells = None if mask is None else soft_mask_on_latent(mask, shape)
    if direction.mask is not None:
        own = direction.mask.view(-1, *[1] * (len(shape) - 3), *direction.mask.shape[-2:])
        if own.shape[-2:] != shape[-2:]:
            msg = (
                f"The direction '{direction.name}' has a mask of {own.shape[-1]} x {own.shape[-2]} cells, but this"
                f" picture's latent is {shape[-1]} x {shape[-2]}. Put Transfer Direction before this node, with this"
                " 'inversion', or find the direction again on this picture."
            )
            raise InputError(msg)
        if len(own) not in (1, shape[0]):
            msg = (
                f"The direction '{direction.name}' has masks for {len(own)} pictures, but the number of pictures here"
                f" is {shape[0]}. Find the direction again on these pictures."
            )
            raise InputError(msg)
        if cells is None:
            cells = own
        else:
            cells = own * cells
            refuse_empty_mask(cells, PLACES_APART.format(direction.name))
    slider = AppliedSlider(direction, strength, weight, recorded, cells, start, end)
    return replace(inversion, sliders=(*inversion.sliders, slider))


def outputs(inversion: Inversion) -> tuple:
    """(MODEL, CONDITIONING, NOISE) for a sampler, with all sliders of the inversion."""
    anchor = AnchoredModel(inversion)
    return anchor.model(), inversion.positive, EncodedNoise(anchor.start_noise)


def schedule_of(inversion: Inversion, steps: int) -> Tensor:
    """`steps` noise levels from that of the inversion down to 0, evenly along the model's schedule."""
    return schedule_from(inversion.source_model.get_model_object("model_sampling"), "simple", steps, inversion.sigma)


def sampled(inversion: Inversion, sigmas: Tensor) -> Tensor:
    """What ComfyUI's euler ends at under guidance 1, with all sliders of the inversion; ComfyUI's latent space."""
    model, positive, noise = outputs(inversion)
    return sample_euler(model, noise.noise, sigmas, positive, inversion.latent, inversion.negative)


NODES = [DirectionSlider, ApplySliders]
