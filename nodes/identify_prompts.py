"""The words of Find Directions: its prompts as embeddings, what else they move, and where they act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher

from ..core.direction import KeepPair, Prompt
from ..core.errors import printable
from ..core.methods import in_words
from ..core.search import Method
from .errors import InputError
from .prompts import (
    encode_text,
    holds_prompt,
    keep_pairs,
    negative_prompt,
    parse_keep,
    prompt_of,
    same_conditioning,
    wrong_words,
)
from .sockets import Inversion
from .words import WhatWordsMove, candidates_of, encoded_pairs, find_what_words_move

EVERYWHERE, FOUND = "everywhere", "found"  # where words act
NO_TEXT = (
    "Nothing was looked for that the words move along: 'find_keeps' and 'candidates' need 'source' as a text, not as"
    " 'source_conditioning'."
)
NO_NAMES = "The directions were not compared with 'candidates', because 'clip' is not connected."


@dataclass(frozen=True)
class SearchWords:
    """The prompts of a search as embeddings, and what is known of them; all empty for methods without words.

    Attributes:
        before: the source prompt.
        target: the target prompt.
        source: as `before`, or None where it says what the picture was encoded with.
        keep: pairs of prompts that are to be kept, those that were found among them.
        free: the prompt of that name.
        phrases: things to name what is found after, as typed (with, without).
        labels: the same as prompts.
        seen: what else the words move, and where they act.
        remarks: sentences for the report.
    """

    before: Prompt | None = None
    target: Prompt | None = None
    source: Prompt | None = None
    keep: tuple[KeepPair, ...] = ()
    free: Prompt | None = None
    phrases: tuple[tuple[str, str], ...] = ()
    labels: tuple[KeepPair, ...] = ()
    seen: WhatWordsMove = WhatWordsMove()
    remarks: tuple[str, ...] = ()


def words_of_search(model: ModelPatcher, inversion: Inversion, method: Method, inputs: Mapping) -> SearchWords:
    """Encode the words that a method reads, and look for what else they move where that is asked for.

    Args:
        model: the artist's MODEL without an anchor.
        inversion: the encoded picture.
        method: whose words they are.
        inputs: those of Find Directions by name.

    Raises:
        InputError: words are missing, equal, or the text encoder does not know them.
    """
    if not method.compares_words and not method.is_named:
        return SearchWords()
    clip, source = inputs["clip"], inputs["source"].strip()
    pairs = candidates_of(inputs["find_keeps"], inputs["candidates"])
    if method.is_named:
        if clip is not None:
            return SearchWords(phrases=tuple(pairs), labels=tuple(encoded_pairs(clip, source, pairs)))
        return SearchWords(remarks=(NO_NAMES,) if inputs["candidates"].strip() else ())
    given = {name: inputs[f"{name}_conditioning"] for name in ("source", "target")}
    typed = {name: inputs[name] for name in given}
    words = _encode_words(clip, method, inversion.positive, typed, given, inputs["keep"], inputs["free"])
    if pairs and given["source"] is not None:
        words, pairs = replace(words, remarks=(*words.remarks, NO_TEXT)), []
    find_where = inputs["where"] == FOUND and method.moves_words
    if not pairs and not find_where:
        return words
    texts = source, typed["target"].strip() if given["target"] is None else ""
    negatives = negative_prompt(model, 1.0, inputs["negative"])
    seen = find_what_words_move(
        model, inversion, clip, texts, (words.before, words.target), pairs, negatives, where=find_where
    )
    remarks = (*words.remarks, *seen.cost.pop("remarks", []))
    return replace(words, keep=words.keep + seen.pairs, seen=seen, remarks=remarks)


def _encode_words(
    clip, method: Method, positive: list, typed: dict[str, str], given: dict[str, list | None], keep: str, free: str
) -> SearchWords:
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
            f"This method works with words and needs 'clip' for {needing}."
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
    free_prompt = encode_text(clip, free, remarks) if free else None
    return SearchWords(before, after, own, pairs, free_prompt, remarks=tuple(remarks))
