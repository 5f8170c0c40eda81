"""Identify: Find Directions asks the model's own derivatives which moves of the latent change what."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.denoiser import SOURCE, Denoiser
from ..core.direction import Direction
from ..core.errors import MissingPackageError
from ..core.jacobian_directions import has_outside
from ..core.methods import METHODS, in_words
from ..core.presets import PRESETS, Preset, has_presets, paper_step, preset_remarks, with_preset
from ..core.search import (
    AUTOMATIC,
    FREE,
    RESTRICT_FIRST,
    STRAIGHT,
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
from .decoded import decoder_of, with_vae
from .errors import InputError, advice_on, with_advice
from .features import MIDDLE, find_layer
from .host import run
from .identify_inputs import DEFAULT, LATENT, NO_PRESET, PICTURE, inputs
from .identify_prompts import EVERYWHERE, SearchWords, words_of_search
from .identify_results import Found, directions_of
from .inputs import check_inputs, quoted
from .masks import covered_cells, mask_in_pixels, refuse_empty_mask, soft_mask_on_latent, soft_mask_on_picture
from .prediction_keys import settings_of_search
from .progress import result_line, show_line, sum_of_costs
from .prompts import negative_prompt, with_prompt, wrong_words
from .sampling import scale_at, sigma_at_level
from .sockets import DirectionsSocket, Inversion, check_family
from .wiring import refuse_wiring
from .words import NOTHING, WHAT_ELSE_NOTE, named_prompts

NOT_LINKED = object()
PLACES_APART = (
    "The words hardly change the picture inside 'mask', so with 'where' on 'found' they would act nowhere. Paint"
    " another area, or set 'where' to 'everywhere'."
)
NO_OUTSIDE = (
    "'mask' covers the whole picture, so there is nothing outside of it that 'hold_outside' could hold. Paint only the"
    " area where the change should happen."
)
MASK_UNUSED = "'mask' was not used, because the method '{}' looks at the whole picture."
LATENT_ALONE = (
    "The settings of '{}' were published for a search that looks at the decoded picture. Connect 'vae' for that; here"
    " it looked at the latent."
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
                "Finds what a slider can move, from the model itself: what your words change, or, with methods that"
                f" need no words ({in_words([name for name, method in METHODS.items() if not method.compares_words])}),"
                " what can change in this picture."
            ),
            search_aliases=[
                "edit directions",
                "attribute",
                "attribute slider",
                "concept slider",
                "smile",
                "age",
                "expression",
                "emotion",
                "face edit",
                "hair",
                "glasses",
                "beard",
                "makeup",
                "mood",
                "image editing",
                "semantic edit",
                "prompt swap",
                "prompt to prompt",
                "FlowEdit",
                "LEDITS",
                "delta denoising score",
                "jacobian",
                "hessian",
                "loco edit",
            ],
            inputs=inputs(),
            outputs=[
                DirectionsSocket.Output(
                    display_name="directions",
                    tooltip="The directions that were found, for Direction Slider and Preview Directions.",
                ),
                io.String.Output(display_name="report", tooltip="What was found, how, and what it took, as JSON."),
                io.Image.Output(
                    display_name="what else moves",
                    tooltip="A chart of what else the words would change, and what of it is held still.",
                ),
                io.Mask.Output(display_name="where", tooltip="Where the directions act."),
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
        preset=NO_PRESET,
        look_at=LATENT,
        vae=None,
        guided=False,
        projection=RESTRICT_FIRST,
        path=STRAIGHT,
        path_steps=Settings.path_steps,
        block=MIDDLE,
    ) -> io.NodeOutput:
        """Encode the prompts, find the moves, and bundle each with its words and what it keeps."""
        given = locals()
        check_inputs(cls, given)
        refuse_wiring(cls.hidden and cls.hidden.prompt)
        result = find(given)
        directions, notes = result.directions, result.notes
        try:
            chart = result.words.seen.chart()
        except MissingPackageError as error:  # what was found is handed on all the same
            chart = torch.ones(1, 64, 64, 3)
            notes["remarks"] = [*notes.get("remarks", []), f"{error} {advice_on(error)}"]
        report = {
            "stage": "identify",
            "method": method,
            "sigma": inversion.sigma,
            "directions": len(directions),
            **notes,
            "found": [
                {"name": d.name, "step": d.step, **{k: note for k, note in d.notes.items() if k != WHAT_ELSE_NOTE}}
                for d in directions
            ],
        }
        show_line(result_line(len(directions), "direction", notes["seconds"]))
        shape = inversion.latent["samples"].shape
        where_they_act = mask_in_pixels(model, result.acts, shape)
        return io.NodeOutput(directions, json.dumps(report, indent=1), chart, where_they_act)


@dataclass(frozen=True)
class Findings:
    """What a search of Find Directions has found.

    Attributes:
        directions: one or more.
        words: the prompts that were compared, and what else they move.
        acts: where the directions act, (B, h, w) in cells of the latent; None for everywhere.
        notes: for a report: what it took, what else moves, remarks.
    """

    directions: list[Direction]
    words: SearchWords
    acts: Tensor | None
    notes: dict


def find(given: Mapping) -> Findings:
    """Encode the prompts, find the moves, and bundle each with its words and what it keeps.

    Args:
        given: the inputs of Find Directions by name, checked.

    Raises:
        InputError: an input does not fit the others.
    """
    model, inversion, mask = given["model"], given["inversion"], given["mask"]
    method, shape = METHODS[given["method"]], inversion.latent["samples"].shape
    _check_inversion(model, inversion, method)
    bare = without_anchor(model)
    words = words_of_search(bare, inversion, method, given)
    uses_mask = method.moves_words or "mask" in method.reads
    soft = soft_mask_on_latent(mask, shape) if mask is not None and uses_mask else None
    acts = None if soft is None else soft.view(-1, *shape[-2:])
    if words.seen.mask is not None:
        acts = words.seen.mask if acts is None else words.seen.mask * acts
        refuse_empty_mask(acts, PLACES_APART)
    found = Found() if method.run is None else _search_moves(bare, given, words, soft)
    directions = directions_of(given, words, found, acts)
    notes = sum_of_costs(found.notes, words.seen.cost)
    if words.seen.rows:
        notes[WHAT_ELSE_NOTE] = list(words.seen.rows)
    remarks = [*words.remarks, *found.remarks]
    if remarks:
        notes["remarks"] = remarks
    if acts is None and method.is_named:
        acts = torch.cat([direction.mask for direction in directions])
    return Findings(directions, words, acts, notes)


def _settings(given: Mapping, words: SearchWords) -> Settings:
    """How to look, from the inputs of the node; published settings take the place of those that they name.

    Raises:
        InputError: the published settings are of another method.
    """
    settings = Settings(
        count=given["count"],
        null_rank=given["hold_outside"],
        keep=len(words.keep),
        guidance=float(given["guidance"]),
        seed=int(given["seed"]),
        words_source=SOURCE if words.source is None else WORDS_SOURCE,
        derivatives=given["derivatives"],
        guided=given["guided"],
        projection=given["projection"],
        path=given["path"],
        path_steps=given["path_steps"],
    )
    preset = _preset(given)
    return settings if preset is None else with_preset(settings, preset)


def _preset(given: Mapping) -> Preset | None:
    """The published settings that were chosen; None for none, or where there are none for the method.

    Raises:
        InputError: they are of another method.
    """
    preset = PRESETS.get(given["preset"])
    if preset is None or not has_presets(given["method"]):
        return None
    if preset.method != given["method"]:
        msg = (
            f"'preset' is {quoted(preset.name)}, which belongs to the method '{preset.method}', but 'method' is"
            f" '{given['method']}'. Choose that method, or set 'preset' to '{NO_PRESET}'."
        )
        raise InputError(msg)
    return preset


def _check_inversion(model: ModelPatcher, inversion: Inversion, method: Method) -> None:
    check_family(model, inversion)
    if inversion.latent["samples"].shape[0] != 1 and method.run is not None:
        msg = (
            f"The inversion holds several pictures, and what method '{method.name}' finds belongs to one. Set"
            " 'method' to 'words' ('text' in the API), or take one picture out of the batch (Latent From Batch) before"
            " Encode Picture."
        )
        raise InputError(msg)


def _search_moves(model: ModelPatcher, given: Mapping, words: SearchWords, soft: Tensor | None) -> Found:
    """Run a method on an encoded picture.

    Args:
        model: the artist's MODEL without an anchor.
        given: the inputs of the node by name.
        words: the prompts of the search.
        soft: the artist's mask in cells of the latent; None for everywhere.

    Raises:
        InputError: an input does not fit the others.
    """
    method, inversion, settings = METHODS[given["method"]], given["inversion"], _settings(given, words)
    guides = "guidance" in method.reads and (method.compares_words or settings.guided)
    preset = _preset(given)
    if guides and settings.guidance > 1 and preset is not None and given["negative"] is None:
        msg = (
            f"'preset' is {quoted(preset.name)}, which searches under a guidance of {settings.guidance:g} and needs"
            " 'negative'. Connect a negative prompt (it may be empty text), or choose another preset."
        )
        raise InputError(msg)
    negatives = negative_prompt(model, settings.guidance if guides else 1.0, given["negative"])
    beside, compared = named_prompts(inversion.positive, words.labels)
    prompts = _prompts(inversion, method, words) | negatives | compared
    key = settings_of_search(model, negatives)
    place, decode, remarks = None, None, []
    if given["mask"] is not None and "mask" not in method.reads:
        remarks.append(MASK_UNUSED.format(method.name))
    if _looks_at_picture(given, method, remarks):
        decode, ratio = decoder_of(given["vae"], model)
        model = with_vae(model, given["vae"])
        if soft is not None:
            place = soft_mask_on_picture(given["mask"], tuple(ratio * cells for cells in soft.shape[-2:]))
    elif soft is not None:
        place = covered_cells(soft)
    if place is not None and "null_rank" in method.reads and settings.null_rank and not has_outside(place):
        remarks.append(NO_OUTSIDE)
    block = given["block"] if "features" in method.reads else None
    layer = "" if block is None else find_layer(model.get_model_object("diffusion_model"), block).name

    def body(denoiser: Denoiser, x0: Tensor) -> tuple[list[FoundDirection], Search, Tensor | None]:
        x = inversion.noisy(denoiser, x0)
        inside = None if place is None else place.to(x0)
        search = Search(denoiser, x, inversion.sigma, inside, settings, cache=inversion.cache, key=key, decode=decode)
        moves, cosines = method.run(search), None
        if beside:
            effects = torch.cat([move.effect for move in moves])
            cosines = likeness_of_effects(
                denoiser, PathPoint(inversion.sigma, x), effects, beside, inversion.cache, key
            )
        return moves, search, cosines

    expected = round(method.evaluations(settings, place is not None)) + 2 * len(beside)
    (moves, search, cosines), cost = run(
        model, prompts, inversion.latent, inversion.sigma, body, expected=expected, block=block
    )
    step = None
    if preset is not None:
        sampling = model.get_model_object("model_sampling")
        limits = float(sampling.sigma_min), float(sampling.sigma_max)
        remarks += preset_remarks(
            preset, inversion.sigma, lambda level: sigma_at_level(sampling.percent_to_sigma, level, *limits)
        )
        step = paper_step(preset, functools.partial(scale_at, model), inversion.sigma)
    remarks = (*remarks, *cost.pop("remarks", []), *search.remarks)
    return Found(moves, cosines, search.notes | cost, remarks, layer, step)


def _looks_at_picture(given: Mapping, method: Method, remarks: list[str]) -> bool:
    """Whether the search looks at the decoded picture; where published settings ask for it in vain, a remark.

    Raises:
        InputError: it should, but there is no VAE.
    """
    if "decode" not in method.reads:
        return False
    preset, vae = _preset(given), given["vae"]
    if given["look_at"] == PICTURE and vae is None:
        msg = (
            f"'look_at' is '{PICTURE}', which needs 'vae'. Connect the VAE that belongs to the model, or set 'look_at'"
            f" to '{LATENT}'."
        )
        raise InputError(msg)
    if preset is not None and preset.decoded and vae is None:
        remarks.append(LATENT_ALONE.format(preset.name))
    return vae is not None and (given["look_at"] == PICTURE or (preset is not None and preset.decoded))


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
