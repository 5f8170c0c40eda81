"""Identify: Find Directions asks the model's own derivatives which moves of the latent change what."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.denoiser import SOURCE, Denoiser
from ..core.methods import METHODS, in_words
from ..core.search import (
    AUTOMATIC,
    FREE,
    TARGET,
    WORDS_SOURCE,
    FoundDirection,
    Method,
    Search,
    Settings,
    keep_prompts,
)
from ..core.words import PathPoint, likeness_of_effects
from .anchored import without_anchor
from .errors import InputError, with_advice
from .found_directions import Found, directions_of, sum_of_costs
from .host import family_of, run
from .identify_inputs import DEFAULT, inputs
from .inputs import check_inputs, quoted
from .masks import covered_cells, mask_in_pixels, refuse_empty_mask, soft_mask_on_latent
from .prediction_keys import settings_of_search
from .progress import result_line, show_line
from .prompts import negative_prompt, with_prompt, wrong_words
from .search_words import EVERYWHERE, SearchWords, words_of_search
from .sockets import DirectionsSocket, Inversion
from .wiring import refuse_wiring
from .words import NOTHING, named_prompts

NOT_LINKED = object()
PLACES_APART = (
    "The words hardly change the picture inside 'mask', so with 'where' on 'found' they would act nowhere. Paint"
    " another area, or set 'where' to 'everywhere'."
)


class FindDirections(io.ComfyNode):
    """Identify: find directions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_FindDirections",
            display_name="Find Directions",
            category="latent directions",
            description=(
                "Finds what a slider can move, from the model itself: from words"
                f" ({in_words([name for name, method in METHODS.items() if method.compares_words])}), or without words"
                f" ({in_words([name for name, method in METHODS.items() if not method.compares_words])})."
            ),
            search_aliases=["edit directions", "jacobian", "hessian", "loco edit", "attribute slider"],
            inputs=inputs(),
            outputs=[
                DirectionsSocket.Output(display_name="directions"),
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="what else moves"),
                io.Mask.Output(display_name="where"),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(
        cls, method=None, source=None, target=None, source_conditioning=NOT_LINKED, target_conditioning=NOT_LINKED
    ) -> bool | str:
        """Check typed words before anything runs; what is linked arrives as None, and `execute` checks it."""
        source = source if source_conditioning is NOT_LINKED else None
        target = target if target_conditioning is NOT_LINKED else None
        if method is not None and method not in list(METHODS):
            return f"'method' is {quoted(method)}, which is no method. Choose one of: {', '.join(METHODS)}."
        wrong = wrong_words(method, source, target)
        return True if wrong is None else wrong[1]

    @classmethod
    @with_advice()
    def execute(
        cls,
        model,
        inversion,
        method=DEFAULT,
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
        source_conditioning=None,
        target_conditioning=None,
        find_keeps=NOTHING,
        candidates="",
        where=EVERYWHERE,
    ) -> io.NodeOutput:
        """Encode the prompts, find the moves, and bundle each with its words and what it keeps."""
        given = locals()
        check_inputs(cls, given)
        refuse_wiring(cls.hidden and cls.hidden.prompt)
        record, shape = METHODS[method], inversion.latent["samples"].shape
        _check_inversion(model, inversion, record)
        bare = without_anchor(model)
        words = words_of_search(bare, inversion, record, given)
        soft = None if mask is None else soft_mask_on_latent(mask, shape)
        acts = None if soft is None else soft.view(-1, *shape[-2:])
        if words.seen.mask is not None:
            acts = words.seen.mask if acts is None else words.seen.mask * acts
            refuse_empty_mask(acts, PLACES_APART)
        found = Found()
        if record.run is not None:
            cells = None if soft is None else covered_cells(soft)
            found = _search_moves(bare, inversion, record, _settings(given, words), words, cells, negative)
        directions = directions_of(given, words, found, acts)
        notes = sum_of_costs(found.notes, words.seen.cost)
        if words.seen.rows:
            notes["what_else_moves"] = list(words.seen.rows)
        remarks = [*words.remarks, *found.remarks]
        report = {
            "stage": "identify",
            "method": method,
            "sigma": inversion.sigma,
            "directions": len(directions),
            **notes,
            **({"remarks": remarks} if remarks else {}),
            "found": [{"name": d.name, "step": d.step, **d.notes} for d in directions],
        }
        show_line(result_line(len(directions), "direction", notes["seconds"]))
        if acts is None and record.is_named:
            acts = torch.cat([direction.mask for direction in directions])
        shown = words.seen.chart(), mask_in_pixels(model, acts, shape)
        return io.NodeOutput(directions, json.dumps(report, indent=1), *shown)


def _settings(given: Mapping, words: SearchWords) -> Settings:
    """How to look, from the inputs of the node."""
    return Settings(
        count=given["count"],
        null_rank=given["hold_outside"],
        keep=len(words.keep),
        guidance=float(given["guidance"]),
        seed=int(given["seed"]),
        words_source=SOURCE if words.source is None else WORDS_SOURCE,
        derivatives=given["derivatives"],
    )


def _check_inversion(model: ModelPatcher, inversion: Inversion, method: Method) -> None:
    if family_of(model) != inversion.family:
        msg = (
            f"'model' is of the family {family_of(model)}, but the picture was inverted with {inversion.family}."
            " Connect the model that Invert Image used."
        )
        raise InputError(msg)
    if inversion.latent["samples"].shape[0] != 1 and method.run is not None:
        msg = (
            f"The inversion holds several pictures, and what method '{method.name}' finds belongs to one. Use the"
            " method 'text', or take one picture out of the batch (Latent From Batch) before Invert Image."
        )
        raise InputError(msg)


def _search_moves(
    model: ModelPatcher,
    inversion: Inversion,
    method: Method,
    settings: Settings,
    words: SearchWords,
    cells: Tensor | None,
    negative: list | None,
) -> Found:
    """Run a method on an encoded picture.

    Args:
        model: the artist's MODEL without an anchor.
        inversion: the encoded picture.
        method: what runs.
        settings: how to look.
        words: the prompts of the search.
        cells: where to look, (1, 1, H, W) in cells of the latent; None for everywhere.
        negative: the negative prompt; None where there is none.
    """
    negatives = negative_prompt(model, settings.guidance, negative)
    beside, compared = named_prompts(inversion.positive, words.labels)
    prompts = _prompts(inversion, method, words) | negatives | compared
    key = settings_of_search(model, negatives)

    def body(denoiser: Denoiser, x0: Tensor) -> tuple[list[FoundDirection], Search, Tensor | None]:
        x = denoiser.noised(x0, inversion.paths.base.to(x0), inversion.sigma)
        inside = None if cells is None else cells.to(x0)
        search = Search(denoiser, x, inversion.sigma, inside, settings, cache=inversion.cache, key=key)
        moves, cosines = method.run(search), None
        if beside:
            effects = torch.cat([move.effect for move in moves])
            cosines = likeness_of_effects(
                denoiser, PathPoint(inversion.sigma, x), effects, beside, inversion.cache, key
            )
        return moves, search, cosines

    expected = round(method.evaluations(settings, cells is not None)) + 2 * len(beside)
    (moves, search, cosines), cost = run(model, prompts, inversion.latent, inversion.sigma, body, expected=expected)
    remarks = (*cost.pop("remarks", []), *search.remarks)
    return Found(moves, cosines, search.notes | cost, remarks)


def _prompts(inversion: Inversion, method: Method, words: SearchWords) -> dict[str, list]:
    """The conditionings of a search by the names that `core` asks for."""
    source = inversion.positive
    prompts = {SOURCE: source}
    if "free" in method.reads:
        prompts[FREE] = source if words.free is None else with_prompt(source, words.free)
    for name, prompt in ((TARGET, words.target), (WORDS_SOURCE, words.source)):
        if prompt is not None:
            prompts[name] = with_prompt(source, prompt)
    for number, pair in enumerate(words.keep):
        present, absent = keep_prompts(number)
        prompts |= {present: with_prompt(source, pair.present), absent: with_prompt(source, pair.absent)}
    return prompts


NODES = [FindDirections]
