"""What Find Directions hands on: the moves that a search has found, as directions with their words and places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.direction import Direction, Feature, Words
from ..core.methods import METHODS
from ..core.search import CHANGE_NOTE, FoundDirection
from .identify_prompts import SearchWords
from .model_fingerprint import fingerprint_of
from .words import WHAT_ELSE_NOTE, named_by_words


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        moves: of the latent; a single None where the words are all that moves.
        cosines: (moves, labels) of their effects and those of the words that may name them; None without labels.
        notes: for the report.
        remarks: sentences for the report.
        layer: of the network, whose features the moves' own are; empty where none were looked at.
        step: length of a move of strength 1 where published settings say it; None where the method does.
    """

    moves: list[FoundDirection | None] = field(default_factory=lambda: [None])
    cosines: Tensor | None = None
    notes: dict = field(default_factory=lambda: {"model_evaluations": 0, "seconds": 0.0, "peak_megabytes": None})
    remarks: tuple[str, ...] = ()
    layer: str = ""
    step: float | None = None


def directions_of(inputs: Mapping, words: SearchWords, found: Found, acts: Tensor | None) -> list[Direction]:
    """Each move bundled with its words, what it keeps and where it acts.

    Args:
        inputs: those of the node by name.
        words: the prompts of the search.
        found: the moves.
        acts: where the artist's mask and the words let a slider act, (B, h, w); None for everywhere.
    """
    method, inversion, moves = METHODS[inputs["method"]], inputs["inversion"], found.moves
    source, target = inputs["source"], inputs["target"]
    if method.is_named:
        cosines = torch.zeros(len(moves), 0) if found.cosines is None else found.cosines
        moves, names = named_by_words(moves, words.phrases, cosines)
    elif method.finds_several:
        names = [f"direction {number}" for number in range(1, len(moves) + 1)]
    else:
        names = [target.strip() or "words"]
    # a method that moves the words alone takes them whole
    text_share, image_share = float(inputs["text_share"]) if method.run else 1.0, float(inputs["image_share"])
    typed = {"source": source, "target": target} if method.compares_words else {}
    seen = {WHAT_ELSE_NOTE: list(words.seen.rows)} if words.seen.rows else {}
    return [
        Direction(
            name=name,
            method=method.name,
            family=inversion.family,
            sigma=inversion.sigma,
            latent=None if move is None else move.vector[0].cpu(),
            step=_step_of(found, move, image_share if method.moves_words else 1.0),
            words=Words(words.target, words.source, text_share) if method.moves_words else None,
            keep=words.keep,
            mask=acts if method.moves_words else _mask_of(move, acts),
            feature=None if move is None or move.feature is None else Feature(move.feature[0].cpu(), found.layer),
            model=fingerprint_of(inputs["model"]),
            notes=_notes_of(found, move) | typed | seen,
        )
        for name, move in zip(names, moves, strict=True)
    ]


def _step_of(found: Found, move: FoundDirection | None, share: float) -> float:
    """Length of the move at strength 1."""
    if move is None:
        return 0.0
    return share * (move.step if found.step is None else found.step)


def _notes_of(found: Found, move: FoundDirection | None) -> dict:
    """What is known of a move, with the change that its step makes."""
    if move is None:
        return {}
    if found.step is None or CHANGE_NOTE not in move.notes:
        return move.notes
    return move.notes | {CHANGE_NOTE: move.notes[CHANGE_NOTE] * found.step / move.step}


def _mask_of(move: FoundDirection | None, painted: Tensor | None) -> Tensor | None:
    """Where a slider of a found move acts, (1, h, w): the artist's mask before the move's own; None for everywhere."""
    if move is None or move.mask is None:
        return None
    return move.mask.view(-1, *move.mask.shape[-2:]).cpu() if painted is None else painted
