"""Identify: Find Directions asks the model's own derivatives which moves of the latent change what."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.denoiser import SOURCE, Denoiser
from ..core.direction import Direction, KeepPair, Prompt, Words
from ..core.errors import printable
from ..core.methods import METHODS, in_words, names_of_methods_that_read
from ..core.search import (
    AUTOMATIC,
    DERIVATIVES,
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
from .host import family_of, run
from .inputs import check_inputs, quoted
from .masks import covered_cells, mask_in_pixels, refuse_empty_mask, soft_mask_on_latent
from .model_fingerprint import fingerprint_of
from .prediction_keys import settings_of_search
from .progress import result_line, show_line
from .prompts import (
    encode_text,
    holds_prompt,
    keep_pairs,
    negative_prompt,
    parse_keep,
    prompt_of,
    same_conditioning,
    with_prompt,
    wrong_words,
)
from .sockets import DirectionsSocket, Inversion, InversionSocket
from .wiring import refuse_wiring
from .words import (
    LISTS,
    NOTHING,
    WhatWordsMove,
    candidates_of,
    encoded_pairs,
    find_what_words_move,
    named_by_words,
    named_prompts,
)

DEFAULT = next(iter(METHODS))
NOT_LINKED = object()
PLACES_APART = (
    "The words hardly change the picture inside 'mask', so with 'where' on 'found' they would act nowhere. Paint"
    " another area, or set 'where' to 'everywhere'."
)
NO_TEXT = (
    "Nothing was looked for that the words move along: 'find_keeps' and 'candidates' need 'source' as a text, not as"
    " 'source_conditioning'."
)
NO_NAMES = "The directions were not compared with 'candidates', because 'clip' is not connected."
EVERYWHERE, FOUND = "everywhere", "found"


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
            inputs=[
                io.Model.Input("model", tooltip="The same model that Invert Image used."),
                InversionSocket.Input("inversion", tooltip="The encoded picture, from Invert Image."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=DEFAULT,
                    tooltip=" ".join(f"{method.name}: {method.summary}." for method in METHODS.values()),
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
                    "clip",
                    optional=True,
                    tooltip=(
                        "Text encoder of the model; needed for every method with words. With 'explore' it names what is"
                        " found."
                    ),
                ),
                *(
                    io.Conditioning.Input(
                        f"{name}_conditioning",
                        optional=True,
                        tooltip=(
                            f"In place of '{name}': the prompt from a text encoder node of its own, for edit models"
                            " whose prompts need the picture, such as Qwen-Image-Edit."
                        ),
                    )
                    for name in ("source", "target")
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the change should happen. Not connected: as 'where' says."
                ),
                io.Int.Input(
                    "count",
                    default=3,
                    min=1,
                    max=32,
                    tooltip=(
                        f"How many directions to find, for {names_of_methods_that_read('count')}; others find one."
                    ),
                ),
                io.Int.Input(
                    "hold_outside",
                    default=5,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip=(
                        f"{names_of_methods_that_read('null_rank')}: how many changes of what lies outside the mask"
                        " are ruled out, the strongest first."
                    ),
                ),
                io.String.Input(
                    "free",
                    default="",
                    advanced=True,
                    tooltip=(
                        f"{names_of_methods_that_read('free')}: the source prompt without the words that change."
                        " Empty: the source prompt."
                    ),
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip=(
                        f"{names_of_methods_that_read('guidance')}: guidance for comparing source and target. Above 1"
                        " it needs 'negative'."
                    ),
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
                    tooltip="How much of the move the latent takes, for methods that move latent and words.",
                ),
                io.Float.Input(
                    "text_share",
                    default=0.35,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much of the move the words take, for methods that move latent and words.",
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
                io.Combo.Input(
                    "find_keeps",
                    options=list(LISTS),
                    default="people",
                    optional=True,
                    tooltip=(
                        "Checks a list of things for what the words would change too, and holds those still that change"
                        " much. It asks the model six times for each thing, once a picture. 'nothing': only what 'keep'"
                        " says is held. With 'explore' and 'clip' the list gives names to what is found, for two"
                        " evaluations a thing."
                    ),
                ),
                io.String.Input(
                    "candidates",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "More things that may move along: one pair a line, 'with | without', to be added to 'source',"
                        " such as 'with freckles | without freckles'."
                    ),
                ),
                io.Combo.Input(
                    "where",
                    options=[EVERYWHERE, FOUND],
                    default=FOUND,
                    optional=True,
                    tooltip=(
                        "Where methods that move words act. 'found': where the words change the picture most, for which"
                        " the model is asked twice; shown at the output 'where'. With 'mask', only inside it. 'explore'"
                        " finds a place for each direction itself."
                    ),
                ),
            ],
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
        check_inputs(cls, locals())
        image_share, text_share, guidance, seed = float(image_share), float(text_share), float(guidance), int(seed)
        refuse_wiring(cls.hidden and cls.hidden.prompt)
        record, shape = METHODS[method], inversion.latent["samples"].shape
        _check_inversion(model, inversion, record)
        words, seen, bare = _Words(), WhatWordsMove(), without_anchor(model)
        if record.compares_words:
            given = {"source": source_conditioning, "target": target_conditioning}
            typed = {"source": source, "target": target}
            words = _encode_words(clip, record, inversion.positive, typed, given, keep, free)
            pairs = candidates_of(find_keeps, candidates)
            if pairs and source_conditioning is not None:
                words, pairs = replace(words, remarks=(*words.remarks, NO_TEXT)), []
            find_where = where == FOUND and record.moves_words
            if pairs or find_where:
                encoded = words.before, words.target
                texts = source.strip(), target.strip() if target_conditioning is None else ""
                negatives = negative_prompt(model, 1.0, negative)
                seen = find_what_words_move(bare, inversion, clip, texts, encoded, pairs, negatives, where=find_where)
                words = replace(words, keep=words.keep + seen.pairs)
        phrases = candidates_of(find_keeps, candidates) if record.is_named else []
        if phrases and clip is None:
            if candidates.strip():
                words = replace(words, remarks=(*words.remarks, NO_NAMES))
            phrases = []
        labels = encoded_pairs(clip, source.strip(), phrases)
        soft = None if mask is None else soft_mask_on_latent(mask, shape)
        cells = None if soft is None else covered_cells(soft)
        acts = None if soft is None else soft.view(-1, *shape[-2:])
        if seen.mask is not None:
            acts = seen.mask if acts is None else seen.mask * acts
            refuse_empty_mask(acts, PLACES_APART)
        settings = Settings(
            count=count,
            null_rank=hold_outside,
            keep=len(words.keep),
            guidance=guidance,
            seed=seed,
            words_source=SOURCE if words.source is None else WORDS_SOURCE,
            derivatives=derivatives,
        )
        # without a search there is no move of the latent: the words are all that moves
        moves, notes = [None], {"model_evaluations": 0, "seconds": 0.0, "peak_megabytes": None}
        remarks = list(words.remarks)
        if record.run is not None:
            negatives = negative_prompt(model, guidance, negative)
            beside, compared = named_prompts(inversion.positive, labels)
            prompts = _prompts(inversion, record, words) | negatives | compared
            key = settings_of_search(bare, negatives)

            def body(denoiser: Denoiser, x0: Tensor) -> tuple[list[FoundDirection], Search, Tensor | None]:
                x = denoiser.noised(x0, inversion.paths.base.to(x0), inversion.sigma)
                inside = None if cells is None else cells.to(x0)
                search = Search(denoiser, x, inversion.sigma, inside, settings, cache=inversion.cache, key=key)
                moves, cosines = record.run(search), None
                if beside:
                    effects = torch.cat([move.effect for move in moves])
                    point = PathPoint(inversion.sigma, x)
                    cosines = likeness_of_effects(denoiser, point, effects, beside, inversion.cache, key)
                return moves, search, cosines

            expected = round(record.evaluations(settings, cells is not None)) + 2 * len(beside)
            (moves, search, cosines), cost = run(
                bare, prompts, inversion.latent, inversion.sigma, body, expected=expected
            )
            remarks += [*cost.pop("remarks", []), *search.remarks]
            notes = search.notes | cost
        if seen.cost:
            remarks += seen.cost.pop("remarks", [])
            notes = _sum_of_costs(notes, seen.cost) | ({"what_else_moves": list(seen.rows)} if seen.rows else {})
        names = [
            f"direction {n}" if record.finds_several else target.strip() or "words" for n in range(1, len(moves) + 1)
        ]
        if record.is_named:
            moves, names = named_by_words(moves, phrases, torch.zeros(len(moves), 0) if cosines is None else cosines)
        # a method that moves the words alone takes them whole
        text_share = text_share if record.run else 1.0
        found = [
            Direction(
                name=name,
                method=method,
                family=inversion.family,
                sigma=inversion.sigma,
                latent=None if move is None else move.vector[0].cpu(),
                step=0.0 if move is None else move.step * (image_share if record.moves_words else 1.0),
                words=Words(words.target, words.source, text_share) if record.moves_words else None,
                keep=words.keep,
                mask=acts if record.moves_words else _mask_of(move, acts),
                model=fingerprint_of(model),
                notes=({} if move is None else move.notes)
                | ({"source": source, "target": target} if record.compares_words else {}),
            )
            for name, move in zip(names, moves, strict=True)
        ]
        report = {
            "stage": "identify",
            "method": method,
            "sigma": inversion.sigma,
            "directions": len(found),
            **notes,
            **({"remarks": remarks} if remarks else {}),
            "found": [{"name": d.name, "step": d.step, **d.notes} for d in found],
        }
        show_line(result_line(len(found), "direction", notes["seconds"]))
        if acts is None and record.is_named:
            acts = torch.cat([direction.mask for direction in found])
        return io.NodeOutput(found, json.dumps(report, indent=1), seen.chart(), mask_in_pixels(model, acts, shape))


@dataclass(frozen=True)
class _Words:
    """The prompts of a search as embeddings; all empty for methods without words.

    Attributes:
        before: the source prompt.
        source: the same, or None where it says what the picture was encoded with.
    """

    before: Prompt | None = None
    target: Prompt | None = None
    source: Prompt | None = None
    keep: tuple[KeepPair, ...] = ()
    free: Prompt | None = None
    remarks: tuple[str, ...] = ()


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


def _encode_words(
    clip, method: Method, positive: list, typed: dict[str, str], given: dict[str, list | None], keep: str, free: str
) -> _Words:
    """Source, target, keep pairs and the free prompt as embeddings.

    Args:
        clip: the text encoder; None where every prompt is given.
        method: with words.
        positive: what the picture was encoded with.
        typed: source and target as texts.
        given: source and target as conditionings, which are taken in place of the texts; None where there is none.
        keep: what is to stay, as typed.
        free: the prompt of that name, as typed.
    """
    texts = {name: text.strip() for name, text in typed.items() if given[name] is None}
    free = free.strip() if "free" in method.reads else ""
    if clip is None and (texts or keep.strip() or free):
        reading = texts | {"keep": keep.strip(), "free": free}
        needing = in_words([f"'{name}'" for name, text in reading.items() if name in texts or text])
        msg = (
            f"Method '{method.name}' works with words and needs 'clip' for {needing}."
            " Connect the text encoder that belongs to the model."
        )
        raise InputError(msg)
    wrong = wrong_words(method.name, texts.get("source"), texts.get("target"))
    if wrong is not None:
        raise InputError(wrong[1])
    remarks: list[str] = []
    before, after = (
        encode_text(clip, texts[name], remarks)
        if name in texts
        else prompt_of(given[name], f"{name}_conditioning", positive)
        for name in ("source", "target")
    )
    if same_conditioning(before.parts(), after.parts()):
        msg = (
            "The text encoder gives 'source' and 'target' the same meaning: it does not know a word of them. Use other"
            " words."
        )
        if not texts:
            msg = "'source_conditioning' and 'target_conditioning' are the same prompt. Connect two different ones."
        raise InputError(msg)
    for present, absent in parse_keep(keep):
        if {present, absent} == {texts.get("source"), texts.get("target")}:
            msg = (
                f"'keep' has the pair {printable(present, 60)!r} and {printable(absent, 60)!r}, which is the change"
                " from 'source' to 'target' itself: nothing would be left to move. Name only what is to stay."
            )
            raise InputError(msg)
    own = None if holds_prompt(positive, before) else before
    pairs = keep_pairs(clip, keep, remarks)
    return _Words(before, after, own, pairs, encode_text(clip, free, remarks) if free else None, tuple(remarks))


def _mask_of(move: FoundDirection | None, painted: Tensor | None) -> Tensor | None:
    """Where a slider of a found move acts, (1, h, w): the artist's mask before the move's own; None for everywhere."""
    if move is None or move.mask is None:
        return None
    return move.mask.view(-1, *move.mask.shape[-2:]).cpu() if painted is None else painted


def _sum_of_costs(notes: dict, more: dict) -> dict:
    """A report's notes with the cost of something else added."""
    peaks = [cost["peak_megabytes"] for cost in (notes, more) if cost["peak_megabytes"] is not None]
    return notes | {
        "model_evaluations": notes["model_evaluations"] + more["model_evaluations"],
        "seconds": round(notes["seconds"] + more["seconds"], 3),
        "peak_megabytes": max(peaks, default=None),
    }


def _prompts(inversion: Inversion, method: Method, words: _Words) -> dict[str, list]:
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
