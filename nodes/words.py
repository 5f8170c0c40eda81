"""What words change at a picture: which of a list of things change along, so that they can be kept, and where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import comfy.model_management
import torch
from PIL import Image
from torch import Tensor

from ..core.charts import bar_chart
from ..core.denoiser import SOURCE, Denoiser
from ..core.direction import KeepPair, Prompt
from ..core.search import FoundDirection
from ..core.words import PathPoint, WordsChange
from .errors import InputError
from .host import run
from .pictures import image_of
from .prediction_keys import settings_of_search
from .prompts import encode_text, holds_prompt, parse_pairs, prompt_name, with_prompt
from .sampling import schedule_from
from .sockets import Inversion

NOTHING = "nothing"
WHAT_ELSE_NOTE = "what_else_moves"  # of a direction, and in reports: the rows of `WhatWordsMove`
# Pairs 'with | without' to be added to the source prompt. The lists for people and for scenes have been measured on no
# real model yet. That for the demo model names some of what its portraits show, and some things that they never show.
LISTS = {
    NOTHING: "",
    "people": """with glasses | with no glasses
with a hat | with no hat
with an open mouth | with a closed mouth
with a beard | with no beard
with long hair | with short hair
with grey hair | with dark hair
with makeup | with no makeup
with old skin | with young skin
with a wide face | with a narrow face
with raised eyebrows | with lowered eyebrows
looking at the camera | looking away
in front of a bright background | in front of a dark background""",
    "scenes and objects": """with people | with no people
at night | by day
in bright light | in dim light
with a cloudy sky | with a clear sky
in the snow | without snow
in warm colours | in cold colours
with a blurred background | with a sharp background
seen from near | seen from far away
with trees | with no trees
as a painting | as a photo""",
    "demo portraits": """open-mouthed | tight-lipped
big-eyed | small-eyed
angry | worried
wide-faced | narrow-faced
with glasses | without glasses
with hat | without hat
grey hair | brown hair
with beard | without beard
with red lips | with grey lips
with scarf | without scarf
looking left | looking right""",
}
# Chosen on tuning cases of the demo model.
NAMING_COSINE = 0.7  # |cosine| of effects from which a phrase gives a direction its name
THRESHOLD = 0.15  # mean |cosine| from which a candidate is kept
IS_TARGET_FROM = 0.6  # mean |cosine| from which it counts as the wanted change itself and is never kept
MOST_KEPT = 5  # candidates that are kept without being asked for
STEPS, SHARES = 10, (0.1, 0.5, 0.9)  # the noise levels that are compared, as shares of a schedule of so many steps
SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "any",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "no",
        "not",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
        "without",
    ]
)
# After a negation all words are negated until another small word or a punctuation mark, but for those inside phrases.
NEGATIONS = frozenset(["no", "not", "without"])
INSIDE_PHRASES = frozenset(["a", "an", "any", "of", "the"])
MOST_CANDIDATES = 100
TITLE = "What else the words move"
LIKENESS = "likeness of the changes, from 0 to 1"
NOT_LOOKED_FOR = "This was not looked for. With a method by words, choose a list at 'find_keeps' of Find Directions."
KEPT = "kept"
BELOW = "moves along too little to be kept"
SAME_WORDS = "has words that differ between source and target, so it is what is to change"
TOO_LIKE = "changes the picture nearly as the target does; if it must stay, write it into 'keep'"
ENOUGH = "moves along, but {} others move more; if it must stay, write it into 'keep'"


@dataclass(frozen=True)
class WhatWordsMove:
    """What else the words of a direction move, and where they act.

    Attributes:
        pairs: the candidates that are to be kept.
        rows: for a report, one a candidate, what moves along most first: its words, likeness (for a batch one a
            picture), whether it is kept, and why not.
        mask: where the words act, (B, h, w) in cells of the latent with values 0 to 1; None where that was not asked.
        cost: evaluations, seconds and so on.
    """

    pairs: tuple[KeepPair, ...] = ()
    rows: tuple[dict, ...] = ()
    mask: Tensor | None = None
    cost: dict = field(default_factory=dict)

    def chart(self) -> Tensor:
        """An IMAGE of it; where nothing was looked for, it says so.

        Raises:
            MissingPackageError: matplotlib is missing.
        """
        return image_of(chart_of_candidates(self.rows))


def chart_of_candidates(rows: Sequence[Mapping]) -> Image.Image:
    """A chart of the rows of `WhatWordsMove`; where there are none it says so.

    Raises:
        MissingPackageError: matplotlib is missing.
    """
    return bar_chart(
        [(row["candidate"], row["likeness"]) for row in rows],
        title=TITLE,
        axis=f"{LIKENESS} (orange: kept)",
        note="" if rows else NOT_LOOKED_FOR,
        limits=(0, 1),
        thresholds=(THRESHOLD,) if rows else (),
        highlighted=[number for number, row in enumerate(rows) if row["kept"]],
        form="{:.2f}",
    )


def candidates_of(chosen: str, typed: str) -> list[tuple[str, str]]:
    """The pairs of a list and those that were typed at 'candidates', each once."""
    pairs = parse_pairs(LISTS[chosen], "candidates", "")
    pairs += parse_pairs(typed, "candidates", "something that may move along")
    pairs = list(dict.fromkeys(pairs))
    if len(pairs) > MOST_CANDIDATES:
        msg = (
            f"'candidates' and the list of 'find_keeps' have {len(pairs)} pairs together, but at most"
            f" {MOST_CANDIDATES} are compared. Write fewer lines in 'candidates'."
        )
        raise InputError(msg)
    return pairs


def encoded_pairs(clip, text: str, pairs: list[tuple[str, str]]) -> list[KeepPair]:
    """Pairs (with, without) as prompts, each phrase added to a text."""
    encoded = []
    for with_it, without in pairs:
        comfy.model_management.throw_exception_if_processing_interrupted()
        both = (encode_text(clip, f"{text}, {phrase}" if text else phrase) for phrase in (with_it, without))
        encoded.append(KeepPair(with_it, *both))
    return encoded


def named_prompts(positive: list, pairs: list[KeepPair]) -> tuple[list[tuple[str, str]], dict[str, list]]:
    """The names (with, without) of pairs, and the conditionings by these names that ask for them.

    Args:
        positive: the picture's own conditioning, into which each prompt goes.
        pairs: of prompts.
    """
    names = [(prompt_name(pair.present), prompt_name(pair.absent)) for pair in pairs]
    prompts = {prompt_name(prompt): prompt for pair in pairs for prompt in (pair.present, pair.absent)}
    return names, {name: with_prompt(positive, prompt) for name, prompt in prompts.items()}


def named_by_words(
    moves: list[FoundDirection], pairs: list[tuple[str, str]], cosines: Tensor
) -> tuple[list[FoundDirection], list[str]]:
    """Moves that are named by the phrase whose effect is most like theirs, and their names.

    A phrase names one move, that with the largest cosine. Where the cosine is negative the move is turned round, so
    that strength 1 shows the first phrase of the pair.

    Args:
        moves: each with its effect.
        pairs: the phrases (with, without).
        cosines: (moves, pairs) of the effects; without pairs (moves, 0).
    """
    turned, names = [], []
    for number, (move, row) in enumerate(zip(moves, cosines, strict=True), 1):
        name, notes, sign = f"direction {number} ({move.notes['place']})", move.notes, 1.0
        if len(row):
            best = int(row.abs().argmax())
            value = float(row[best])
            sign = -1.0 if value < 0 else 1.0
            notes = notes | {"words": " | ".join(pairs[best]), "cosine_of_words": round(value * sign, 4)}
            is_best = int(cosines[:, best].abs().argmax()) == number - 1
            name = pairs[best][0] if is_best and abs(value) >= NAMING_COSINE else name
        feature = None if move.feature is None else sign * move.feature
        turned.append(replace(move, vector=sign * move.vector, effect=sign * move.effect, feature=feature, notes=notes))
        names.append(name)
    return turned, names


def find_what_words_move(
    model,
    inversion: Inversion,
    clip,
    texts: tuple[str, str],
    words: tuple[Prompt, Prompt],
    pairs: list[tuple[str, str]],
    negative: dict,
    *,
    where: bool,
) -> WhatWordsMove:
    """Compare what the words change with what each candidate changes, at three noise levels, and find where.

    Without candidates one level is enough.

    Args:
        model: without an anchor.
        inversion: the encoded picture.
        clip: its text encoder; None will do without candidates.
        texts: source and target as typed; the target empty where it is given as a conditioning.
        words: the same, encoded.
        pairs: candidates (with, without), which are added to the source text.
        negative: the negative prompt by its name, where the MODEL needs one.
        where: whether to find where the words act.

    Raises:
        EqualPredictionsError: the words change nothing.
    """
    encoded = encoded_pairs(clip, texts[0], pairs)
    names, conditionings = named_prompts(inversion.positive, encoded)
    own = SOURCE if holds_prompt(inversion.positive, words[0]) else prompt_name(words[0])
    for name, prompt in ((own, words[0]), (prompt_name(words[1]), words[1])):
        conditionings[name] = with_prompt(inversion.positive, prompt)
    sigmas = schedule_from(model.get_model_object("model_sampling"), "simple", STEPS, inversion.sigma)[:-1].tolist()
    shares = SHARES if pairs else SHARES[1:2]
    chosen = list(dict.fromkeys(sigmas[min(round(share * STEPS), len(sigmas) - 1)] for share in shares))

    def body(denoiser: Denoiser, x0: Tensor) -> tuple[Tensor | None, Tensor | None]:
        noises = [inversion.paths.at(sigma)[0].to(x0) for sigma in chosen]
        points = [PathPoint(s, denoiser.noised(x0, noise, s)) for s, noise in zip(chosen, noises, strict=True)]
        change = WordsChange(denoiser, points, (prompt_name(words[1]), own))
        likeness = change.likeness(names, inversion.cache, settings_of_search(model, negative)) if names else None
        return likeness, change.mask() if where else None

    expected = 2 * len(chosen) * (1 + len(pairs)) * len(inversion.latent["samples"])
    (likeness, mask), cost = run(
        model,
        {SOURCE: inversion.positive} | conditionings | negative,
        inversion.latent,
        inversion.sigma,
        body,
        expected=expected,
    )
    rows, kept = (
        ((), ())
        if likeness is None
        else _chosen(encoded, pairs, likeness, _changed_words(*texts) if texts[1] else set())
    )
    return WhatWordsMove(kept, rows, mask, cost)


def _chosen(
    encoded: list[KeepPair], pairs: list[tuple[str, str]], likeness: Tensor, changed: set[str]
) -> tuple[tuple[dict, ...], tuple[KeepPair, ...]]:
    """The rows of `WhatWordsMove`, and what is kept; `changed` are the words in which source and target differ."""
    most = likeness.amax(0)  # over the pictures of a batch
    rows, kept = [], []
    for number in torch.argsort(most, descending=True).tolist():
        value, why = float(most[number]), ""
        if changed & _changed_words(*pairs[number]):
            why = SAME_WORDS
        elif value >= IS_TARGET_FROM:
            why = TOO_LIKE
        elif value < THRESHOLD:
            why = BELOW
        elif len(kept) == MOST_KEPT:
            why = ENOUGH.format(MOST_KEPT)
        else:
            kept.append(encoded[number])
        row = {"candidate": " | ".join(pairs[number]), "likeness": round(value, 4), "kept": not why}
        if len(likeness) > 1:
            row["likeness_of_each_picture"] = [round(float(one), 4) for one in likeness[:, number]]
        rows.append(row | {"why": why or KEPT})
    return tuple(rows), tuple(kept)


def _changed_words(one: str, other: str) -> set[str]:
    """The words in which two texts differ, without the small ones; 'no hat' and 'with hat' differ in 'hat'."""
    return {word for word, _ in _content_words(one) ^ _content_words(other)}


def _content_words(text: str) -> set[tuple[str, bool]]:
    """The words of a text but for the small ones, each with whether its phrase begins with 'no', 'not' or 'without'."""
    found, negated = set(), False
    for word in re.findall(r"[\w-]+|[^\w\s]", text.lower()):
        if word not in SMALL_WORDS and any(map(str.isalnum, word)):
            found.add((word, negated))
        elif word not in INSIDE_PHRASES:
            negated = word in NEGATIONS
    return found
