"""Manipulate: the Direction Slider moves the encoded picture; the artist's own sampler does the rest."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.direction import Direction
from .anchored import AnchoredModel
from .errors import InputError, with_advice
from .inputs import check_inputs
from .prompts import shifted
from .sockets import DirectionsSocket, EncodedNoise, Inversion, InversionSocket


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
                "noise to your sampler. At 0 the sampler gives the encoded picture back."
            ),
            search_aliases=["attribute slider", "edit strength"],
            inputs=[
                InversionSocket.Input("inversion", tooltip="The encoded picture, from Invert Image."),
                DirectionsSocket.Input("directions", tooltip="From Find Directions or Load Direction."),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Which of the directions to move along, the first is 0.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-3.0,
                    max=3.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How far to move. 0 is the picture itself, negative goes the other way.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much of the model's change is let through at every step. Below 1 fades the edit.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Conditioning.Output(display_name="conditioning"),
                io.Noise.Output(display_name="noise"),
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion, directions, index=0, strength=1.0, weight=1.0) -> io.NodeOutput:
        """Move noise and prompt; strength 0 runs the same code as any other strength."""
        check_inputs(cls, locals())
        strength, weight = float(strength), float(weight)
        return io.NodeOutput(*move(inversion, choose(inversion, directions, index), strength, weight))


def choose(inversion: Inversion, directions: list[Direction], index: int) -> Direction:
    """The direction at `index`; InputError where there is none or it belongs to another model family."""
    if not 0 <= index < len(directions):
        names = ", ".join(f"{i}: {d.name}" for i, d in enumerate(directions))
        msg = f"'index' is {index}, but there are {len(directions)} directions ({names}). Choose one of them."
        raise InputError(msg)
    direction = directions[index]
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


def move(inversion: Inversion, direction: Direction, strength: float, weight: float = 1.0) -> tuple:
    """(MODEL, CONDITIONING, NOISE) at a strength."""
    anchor = AnchoredModel(inversion, ((direction, strength),), weight)
    return (
        anchor.model(),
        shifted(inversion.positive, direction.text, strength),
        EncodedNoise(anchor.start_noise),
    )


NODES = [DirectionSlider]
