"""Identify: Find Directions asks the model's own derivatives which moves of the latent change what."""

from __future__ import annotations

import json

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.direction import Direction
from ..core.errors import InputError
from ..core.find import (
    AUTOMATIC,
    DERIVATIVES,
    HAS_TEXT_PART,
    HSDS,
    LOCO,
    LOW_PASS,
    METHODS,
    NEEDS_TEXT,
    TEXT,
    Settings,
    find_moves,
)
from .anchored import detach
from .host import family_of, run
from .masks import mask_on_latent
from .progress import search_evaluations
from .prompts import encode_text, keep_pairs, negative_prompt, require_text, shifted, with_prompt
from .sockets import DirectionsSocket, InversionSocket


class FindDirections(io.ComfyNode):
    """The node of the second verb."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_FindDirections",
            display_name="Find Directions",
            category="latent directions",
            description=(
                "Finds what a slider can move, from the model itself: from words (HSDS, text, T-LOCO), or without words"
                " (LOCO: whatever this picture leaves open inside the mask)."
            ),
            search_aliases=["edit directions", "jacobian", "hessian", "loco edit", "attribute slider"],
            inputs=[
                io.Model.Input("model", tooltip="The same model that Invert Image used."),
                InversionSocket.Input("inversion", tooltip="The encoded picture, from Invert Image."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=HSDS,
                    tooltip=(
                        "HSDS: words, latent and things to keep together. text: words alone, at once. T-LOCO: words "
                        "through the latent alone. LOCO: no words. The others are for comparison."
                    ),
                ),
                io.String.Input("source", default="", tooltip="What the picture shows now, such as 'a sad woman'."),
                io.String.Input(
                    "target", default="", tooltip="What strength 1 should show, such as 'a smiling woman'."
                ),
                io.String.Input(
                    "keep",
                    default="",
                    multiline=True,
                    tooltip=(
                        "What must not change along: one pair a line, 'with | without', such as 'a woman with "
                        "glasses | a woman without glasses'."
                    ),
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoder of the model; needed for every method with words."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the change should happen. Empty: everywhere."),
                io.Int.Input(
                    "count",
                    default=3,
                    min=1,
                    max=32,
                    tooltip="How many directions LOCO finds; methods with words find one.",
                ),
                io.Int.Input(
                    "hold_outside",
                    default=5,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="LOCO and T-LOCO: how many ways of changing what lies outside the mask are held still.",
                ),
                io.String.Input(
                    "free",
                    default="",
                    advanced=True,
                    tooltip="HSDS low-pass: the source prompt without the words that change. Empty: the source prompt.",
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance for comparing source and target. Above 1 it needs 'negative'.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    advanced=True,
                    tooltip="Negative prompt, for guidance above 1 and for nodes on the MODEL that ask for one.",
                ),
                io.Float.Input(
                    "image_share",
                    default=0.35,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="HSDS and DDS: how much of the move the latent takes.",
                ),
                io.Float.Input(
                    "text_share",
                    default=0.35,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="HSDS and DDS: how much of the move the words take.",
                ),
                io.Combo.Input(
                    "derivatives",
                    options=list(DERIVATIVES),
                    default=AUTOMATIC,
                    advanced=True,
                    tooltip=(
                        "How derivatives are taken. 'forward only' does without a backward pass, which takes the"
                        " most memory; 'central differences' uses plain model evaluations alone; 'double backward'"
                        " does without forward mode, where a model's code has none. T-LOCO always needs a backward"
                        " pass."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    advanced=True,
                    tooltip="Start of the solvers; the result hardly depends on it.",
                ),
            ],
            outputs=[DirectionsSocket.Output(display_name="directions"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(
        cls,
        model,
        inversion,
        method=HSDS,
        source="",
        target="",
        keep="",
        count=3,
        hold_outside=5,
        free="",
        guidance=1.0,
        image_share=0.35,
        text_share=0.35,
        derivatives=AUTOMATIC,
        seed=0,
        clip=None,
        mask=None,
        negative=None,
    ) -> io.NodeOutput:
        """Encode the prompts, find the moves, and bundle each with its words and what it keeps."""
        if family_of(model) != inversion.family:
            msg = (
                f"'model' is of the family {family_of(model)}, but the picture was inverted with {inversion.family}."
                " Connect the model that Invert Image used."
            )
            raise InputError(msg)
        if inversion.latent["samples"].shape[0] != 1:
            msg = (
                "The inversion holds several pictures, and directions belong to one. Take one out of the batch (Latent"
                " From Batch) before Invert Image."
            )
            raise InputError(msg)
        change, pairs, free_text = None, (), None
        if method in NEEDS_TEXT:
            change, pairs, free_text = _encode_prompts(clip, method, source, target, keep, free)
        prompts = {"source": inversion.positive}
        if change is not None:
            prompts["target"] = shifted(inversion.positive, change, 1.0)
        if method == LOW_PASS:
            prompts["free"] = inversion.positive if free_text is None else with_prompt(inversion.positive, free_text)
        for k, pair in enumerate(pairs):
            prompts |= {
                f"keep {k} present": with_prompt(inversion.positive, pair.present),
                f"keep {k} absent": with_prompt(inversion.positive, pair.absent),
            }
        if method != TEXT:
            prompts |= negative_prompt(model, guidance, negative)
        cells = None if mask is None else mask_on_latent(mask, inversion.latent["samples"], inversion.family)
        settings = Settings(
            method=method,
            count=count,
            null_rank=hold_outside,
            keep=len(pairs),
            guidance=guidance,
            seed=seed,
            derivatives=derivatives,
        )
        common = {"method": method, "family": inversion.family, "sigma": inversion.sigma, "keep": pairs}

        if method == TEXT:
            found, notes = (
                [Direction(name=target.strip(), text=change, **common)],
                {
                    "model_evaluations": 0,
                    "seconds": 0.0,
                    "peak_megabytes": None,
                },
            )
        else:

            def body(denoiser: Denoiser, x0: Tensor):
                x = denoiser.noised(x0, inversion.noise.noise.to(x0), inversion.sigma)
                return find_moves(denoiser, x, inversion.sigma, None if cells is None else cells.to(x0), settings)

            expected = search_evaluations(settings, cells is not None)
            (moves, notes), cost = run(
                detach(model), prompts, inversion.latent, inversion.sigma, body, expected=expected
            )
            notes = {**notes, **cost}
            shared = method in HAS_TEXT_PART
            found = [
                Direction(
                    name=f"direction {i + 1}" if method == LOCO else target.strip(),
                    latent=move.vector[0].cpu(),
                    step=move.step * (image_share if shared else 1.0),
                    text=change.scaled(text_share) if shared else None,
                    notes={**move.notes, "source": source, "target": target},
                    **common,
                )
                for i, move in enumerate(moves)
            ]
        report = {
            "stage": "identify",
            "method": method,
            "sigma": inversion.sigma,
            "directions": len(found),
            **notes,
            "found": [{"name": d.name, "step": d.step, **d.notes} for d in found],
        }
        return io.NodeOutput(found, json.dumps(report, indent=1))


def _encode_prompts(clip, method: str, source: str, target: str, keep: str, free: str):
    """The change from source to target, the keep pairs, and the free prompt, as embeddings."""
    if clip is None:
        msg = (
            f"Method '{method}' works with words and needs 'clip'. Connect the text encoder that belongs to the model."
        )
        raise InputError(msg)
    source = require_text(source, "source", f"method '{method}' compares it with 'target'")
    target = require_text(target, "target", f"method '{method}' needs to know what strength 1 should show")
    if source == target:
        msg = "'source' and 'target' are the same, so there is nothing to move. Change the words that differ."
        raise InputError(msg)
    change = encode_text(clip, target) - encode_text(clip, source)
    if not torch.any(change.tokens):
        msg = (
            "The text encoder gives 'source' and 'target' the same meaning: it does not know a word of them. Use other"
            " words."
        )
        raise InputError(msg)
    return change, keep_pairs(clip, keep), encode_text(clip, free) if free.strip() else None


NODES = [FindDirections]
