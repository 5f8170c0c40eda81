"""Previews of a slider without the model, and strips of pictures between a few sampled ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import latent_preview
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.direction import Direction, Distilled
from ..core.distilled import bends, between, distil, evenly_spaced
from .errors import InputError, with_advice
from .host import samples_of
from .inputs import DIRECTIONS, INDEX, STRENGTH, STRENGTH_RANGE, check_inputs
from .manipulate import choose, sampled, schedule_of, with_slider
from .pictures import picture_of
from .previews import save_previews
from .progress import RunsCost, SearchProgress, result_line, show_line
from .prompts import digest
from .sockets import DirectionsSocket, Inversion, InversionSocket

# From here on ghosts were seen between the strengths that were sampled, of the demo model's portraits
# (`python -m benchmarks.quick`).
LARGE_BEND = 0.3
MOST_SHOWN, SHOWN_SIDE = 65, 512  # pictures of a strip that the page shows, and their pixels a side
STEPS = io.Int.Input(
    "steps", default=20, min=1, max=200, tooltip="Sampling steps of each true run. As many as your sampler takes."
)
SIGMAS = io.Sigmas.Input(
    "sigmas",
    optional=True,
    advanced=True,
    tooltip="In place of 'steps': the sigmas that your sampler is given, for exactly its runs.",
)
UNMOVED = InversionSocket.Input(
    "inversion", tooltip="The encoded picture. Direction Sliders earlier in the chain are left out."
)


class PrepareQuickSlider(io.ComfyNode):
    """Measures by true runs what a slider does to the clean latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_PrepareQuickSlider",
            display_name="Prepare Quick Slider",
            category="latent directions",
            description=(
                "Samples a slider at strengths -1 and 1 once, so that Quick Slider can show every other strength"
                " without the model. Works for directions of all methods."
            ),
            search_aliases=["distil direction", "instant preview", "real-time slider", "fast slider", "cache slider"],
            inputs=[
                UNMOVED,
                DIRECTIONS,
                INDEX,
                STEPS,
                SIGMAS,
            ],
            outputs=[
                DirectionsSocket.Output(
                    display_name="directions", tooltip="The direction with its measured moves, for Quick Slider."
                ),
                io.String.Output(display_name="report", tooltip="What the two sampling runs took, as JSON."),
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion, directions, index=0, steps=20, sigmas=None) -> io.NodeOutput:
        """Sample to both sides, and hand on the directions with what was measured."""
        check_inputs(cls, locals())
        direction = choose(inversion, directions, index)
        still = replace(inversion.counted_apart(), sliders=())
        cost, sigmas = RunsCost(still.statistics), schedule_of(inversion, steps) if sigmas is None else sigmas
        run = _runs(still, direction, sigmas, cost, 2)
        latent = inversion.latent["samples"]
        *moves, bend = distil(run, latent)
        if not any(move.any() for move in moves):
            msg = (
                f"The direction '{direction.name}' moves nothing in this picture, so there is nothing to prepare."
                " Choose another 'index', or find the direction again for this picture."
            )
            raise InputError(msg)
        # without the axis of time, which pictures of video models have
        moves = [move.float().reshape(*latent.shape[:2], *latent.shape[-2:]) for move in moves]
        made = Distilled(*(move[0] if len(move) == 1 else move for move in moves), digest(latent), bend)
        report = {
            "stage": "prepare quick slider",
            "summary": _summary(direction.name, bend),
            "direction": direction.name,
            "index": int(index),
            "bend": round(bend, 4),
            "strengths": [-1.0, 1.0],
            "steps": len(sigmas) - 1,
            **cost.report(),
        }
        show_line(report["summary"])
        prepared = [replace(one, distilled=made) if k == index else one for k, one in enumerate(directions)]
        return io.NodeOutput(prepared, json.dumps(report, indent=1), ui=ui.PreviewText(report["summary"]))


class QuickSlider(io.ComfyNode):
    """A preview of a slider without the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_QuickSlider",
            display_name="Quick Slider",
            category="latent directions",
            description=(
                "Shows at once about what a Direction Slider would do: it adds the moves that Prepare Quick Slider has"
                " measured to the picture's latent, without the model. A preview; sample the picture that you keep."
            ),
            search_aliases=[
                "instant preview",
                "real-time slider",
                "preview slider",
                "fast slider",
                "concept slider",
                "live portrait",
            ],
            inputs=[
                UNMOVED,
                DirectionsSocket.Input("directions", tooltip="From Prepare Quick Slider."),
                INDEX,
                STRENGTH,
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent of another Quick Slider on this picture: both moves then add up.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The moved latent, for VAE Decode or another Quick Slider."
                )
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls, inversion, directions, index=0, strength=1.0, latent=None) -> io.NodeOutput:
        """Add the move of the strength's sign; at strength 0 the latent is handed on as it is."""
        check_inputs(cls, locals())
        direction = choose(inversion, directions, index)
        own = inversion.latent["samples"]
        made = _prepared(direction, own)
        moved = own if latent is None else _fitting(latent, own)
        if strength:
            move = made.above if strength > 0 else made.below
            moved = moved + float(strength) * move.reshape(own.shape).to(moved)
        return io.NodeOutput({**inversion.latent, "samples": moved})


class SliderStrip(io.ComfyNode):
    """A slider from one strength to another, as a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_SliderStrip",
            display_name="Slider Strip",
            category="latent directions",
            description=(
                "Moves a slider from one strength to another in many pictures: a few are sampled, the latents between"
                " them are mixed from their neighbours. For strips and short films."
            ),
            search_aliases=[
                "slider animation",
                "animate",
                "interpolate",
                "interpolate strengths",
                "strength sweep",
                "morph",
                "xy plot",
                "age progression",
                "time lapse",
                "video",
                "live portrait",
                "frames",
            ],
            inputs=[
                InversionSocket.Input(
                    "inversion",
                    tooltip=(
                        "The encoded picture. Sliders earlier in the chain stay applied. If one of them has the same"
                        " direction, the strip moves that one, with its mask and its other settings."
                    ),
                ),
                DIRECTIONS,
                INDEX,
                io.Float.Input("start", default=-1.0, **STRENGTH_RANGE, tooltip="Strength of the first picture."),
                io.Float.Input("end", default=1.0, **STRENGTH_RANGE, tooltip="Strength of the last picture."),
                io.Int.Input(
                    "keyframes",
                    default=5,
                    min=2,
                    max=65,
                    tooltip=(
                        "How many pictures are sampled, first and last included. Things that appear or move far need"
                        " more."
                    ),
                ),
                io.Int.Input(
                    "frames", default=9, min=2, max=500, tooltip="How many pictures in all. No fewer than keyframes."
                ),
                STEPS,
                SIGMAS,
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Decodes the pictures to show them in this node, where they follow the strength of a slider."
                        " Not connected: none are shown."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="One latent a picture, as a batch for VAE Decode."),
                io.String.Output(
                    display_name="report",
                    tooltip="Which strengths were sampled, where mixing may show ghosts, and what it took, as JSON.",
                ),
            ],
            is_output_node=True,  # its pictures are shown in the node itself
        )

    @classmethod
    @with_advice()
    def execute(
        cls, inversion, directions, index=0, start=-1.0, end=1.0, keyframes=5, frames=9, steps=20, sigmas=None, vae=None
    ) -> io.NodeOutput:
        """Sample the keyframes, mix the latents between them, and say where that may show ghosts."""
        check_inputs(cls, locals())
        direction = choose(inversion, directions, index)
        if start == end:
            msg = f"'start' and 'end' are both {start:g}, so nothing would move. Choose two different strengths."
            raise InputError(msg)
        if keyframes > frames:
            msg = (
                f"'keyframes' is {keyframes}, more than the {frames} 'frames' of the strip. Raise 'frames', or lower"
                " 'keyframes'."
            )
            raise InputError(msg)
        aside = inversion.counted_apart()
        cost, sigmas = RunsCost(aside.statistics), schedule_of(inversion, steps) if sigmas is None else sigmas
        run = _runs(aside, direction, sigmas, cost, keyframes)
        strengths = evenly_spaced(float(start), float(end), keyframes)
        ends = [run(strength) for strength in strengths]
        latents = torch.stack(between(ends, frames), dim=1).flatten(0, 1)  # of a batch picture by picture
        bent = dict(zip(strengths[1:-1], bends(ends), strict=True))
        report = {
            "stage": "strip",
            "summary": _strip_summary(keyframes, frames, bent),
            "direction": direction.name,
            "strengths": evenly_spaced(float(start), float(end), frames),
            "keyframes": strengths,
            "bends": [round(bend, 4) for bend in bent.values()],
            "steps": len(sigmas) - 1,
            **cost.report(),
        }
        show_line(result_line(keyframes, "run", report["seconds"]))
        # the numbers of a batch's pictures would be those of another batch
        strip = {name: value for name, value in inversion.latent.items() if name != "batch_index"}
        shown = ui.PreviewText(report["summary"]).as_dict()
        if vae is not None:
            pictures = _pictures(vae, latents[:frames], report["strengths"])
            strip_of = {"index": int(index), "name": direction.name, "frames": pictures}
            # as text, because ComfyUI counts every entry that is a dict as a file that was made
            shown["scrub"] = [json.dumps(strip_of)]
        return io.NodeOutput({**strip, "samples": latents}, json.dumps(report, indent=1), ui=shown)


def _at_strength(inversion: Inversion, direction: Direction, strength: float) -> Inversion:
    """The last slider of the direction with another strength, in its place and as it is otherwise; else one more."""
    sliders = list(inversion.sliders)
    for place in reversed(range(len(sliders))):
        if sliders[place].direction is direction:
            sliders[place] = replace(sliders[place], strength=strength)
            return replace(inversion, sliders=tuple(sliders))
    return with_slider(inversion, direction, strength)


def _runs(
    inversion: Inversion, direction: Direction, sigmas: Tensor, cost: RunsCost, expected: int
) -> Callable[[float], Tensor]:
    """True runs of a direction's slider: strength -> sampled latent. Each moves the bar on and shows its latent."""
    model = inversion.source_model
    show, done = SearchProgress(expected, "runs"), 0
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def run(strength: float) -> Tensor:
        nonlocal done
        latent = sampled(_at_strength(inversion, direction, strength), sigmas)
        cost.note()
        done += 1
        preview = None
        if previewer is not None:
            preview = previewer.decode_latent_to_preview_image("JPEG", model.model.process_latent_in(latent))
        show(done, preview)
        return latent

    return run


def _pictures(vae, latents: Tensor, strengths: list[float]) -> list[dict]:
    """What the page shows of a strip (web/scrub.js): evenly chosen ones, each {strength, filename, subfolder, type}."""
    count = min(len(strengths), MOST_SHOWN)
    chosen = [round(k * (len(strengths) - 1) / (count - 1)) for k in range(count)]
    saved = save_previews((picture_of(vae.decode(latents[k : k + 1])) for k in chosen), SHOWN_SIDE)
    return [file | {"strength": round(strengths[k], 4)} for k, file in zip(chosen, saved, strict=True)]


def _prepared(direction: Direction, samples: Tensor) -> Distilled:
    """What Prepare Quick Slider has measured; InputError where it has not, for this latent."""
    made = direction.distilled
    if made is None:
        msg = (
            f"The direction '{direction.name}' has not been prepared for Quick Slider. Put Prepare Quick Slider before"
            " this node, with the same 'index'."
        )
        raise InputError(msg)
    if made.picture != digest(samples) or made.above.numel() != samples.numel():
        msg = (
            f"The direction '{direction.name}' was prepared for another picture, where the same moves would do"
            " something else. Prepare it again for this one: connect this 'inversion' to Prepare Quick Slider."
        )
        raise InputError(msg)
    return made


def _fitting(latent: dict, own: Tensor) -> Tensor:
    """The samples of another Quick Slider's LATENT; InputError where they cannot be of this picture."""
    samples = samples_of(latent)
    if samples.shape != own.shape:
        msg = (
            f"'latent' has shape {tuple(samples.shape)}, the encoded picture's is {tuple(own.shape)}. Connect the"
            " latent of another Quick Slider on the same picture, or nothing."
        )
        raise InputError(msg)
    if not torch.isfinite(samples).all():
        msg = (
            "'latent' holds values that are not numbers (NaN or infinity). Connect the latent of another Quick Slider"
            " on the same picture, or nothing."
        )
        raise InputError(msg)
    return samples


def _summary(name: str, bend: float) -> str:
    """What the preview is, and where it may show ghosts, in words."""
    exact = (
        f"At strengths -1, 0 and 1 the preview of '{name}' is exactly a sampled picture; at others it is"
        " interpolated or extended linearly."
    )
    if bend >= LARGE_BEND:
        return (
            f"{exact} This slider does not change the picture evenly, as where things appear or move far: between these"
            " strengths two pictures may show over each other. Check them with Direction Slider or Slider Strip."
        )
    return f"{exact} Sample the picture that you keep with Direction Slider."


def _strip_summary(keyframes: int, frames: int, bent: dict[float, float]) -> str:
    """What was sampled and where the pictures between may show ghosts, in words."""
    made = f"{keyframes} of {frames} pictures were sampled, the others mixed from their neighbours."
    if frames == keyframes:
        return f"All {frames} pictures were sampled."
    places = [f"{strength:g}" for strength, bend in bent.items() if bend >= LARGE_BEND]
    if not places:
        return made
    return (
        f"{made} Near strength {', '.join(places)} the slider does not move evenly, as where things appear: pictures"
        " there may show ghosts, two pictures over each other. Raise 'keyframes' to sample more of them."
    )


NODES = [PrepareQuickSlider, QuickSlider, SliderStrip]
