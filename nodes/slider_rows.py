"""The JSON of Slider Board: its rows, and every way in which it can be wrong (docs/slider_board.md)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ..core.errors import has_surrogates
from .errors import InputError
from .inputs import STRENGTH_RANGE, in_short, quoted
from .prompts import parse_keep

VERSION = 1
MOST_SLIDERS = 8
EMPTY = json.dumps({"version": VERSION, "sliders": []})
EXAMPLE = '{"version": 1, "sliders": [{"words": "smiling", "strength": 1}]}'
NO_SOURCE = "'source' is empty, but the words of the sliders are added to it. Write what the picture shows now."
_LOWEST, _HIGHEST = STRENGTH_RANGE["min"], STRENGTH_RANGE["max"]


@dataclass(frozen=True)
class SliderRow:
    """A slider of a board.

    Attributes:
        words: what strength 1 should show, such as "smiling", or "frowning | smiling" with what the picture shows now
            before the bar.
        strength: how far to move.
        keep: what must stay as it is, one pair "with | without" a line.
        on: whether it acts.
    """

    words: str
    strength: float = 1.0
    keep: str = ""
    on: bool = True

    @property
    def now_and_then(self) -> tuple[str, str]:
        """The phrases before and after the bar; the first is empty where there is no bar."""
        now, _, then = self.words.rpartition("|")
        return now.strip(), then.strip()

    @property
    def name(self) -> str:
        """What strength 1 shows."""
        return self.now_and_then[1]

    def prompts(self, source: str) -> tuple[str, str]:
        """The source and the target prompt, with the phrases of the row added to what the picture shows."""
        now, then = self.now_and_then
        return added(source, now), added(source, then)

    def keep_prompts(self, source: str) -> str:
        """The pairs that are kept as whole prompts, in the form of Find Directions' 'keep'."""
        before, _ = self.prompts(source)
        pairs = parse_keep(self.keep)
        return "\n".join(" | ".join(added(before, phrase) for phrase in pair) for pair in pairs)


def added(source: str, phrase: str) -> str:
    """A prompt with a phrase behind it."""
    return f"{source}, {phrase}" if phrase else source


def rows_of(text: str) -> tuple[SliderRow, ...]:
    """Read the JSON of a board.

    Args:
        text: {"version": 1, "sliders": [{"words", "strength", "keep", "on"}, ...]}, of which only words must be there.

    Raises:
        InputError: it is no such JSON; the sentence names the slider, counted from 1, and the key.
    """
    try:
        board = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"'board' is no JSON ({in_short(str(error))}). Write it like this: {EXAMPLE}"
        raise InputError(msg) from error
    if not isinstance(board, dict) or not isinstance(board.get("sliders"), list):
        msg = f"'board' is JSON without a list 'sliders'. Write it like this: {EXAMPLE}"
        raise InputError(msg)
    version = board.get("version")
    if version != VERSION or isinstance(version, bool):
        msg = (
            f"'version' of 'board' is {quoted(version)}, but this version of the node pack reads version {VERSION}."
            f" Write 'version': {VERSION}, or update the node pack."
        )
        raise InputError(msg)
    _refuse_unknown(board, ("version", "sliders"), "'board'")
    if len(board["sliders"]) > MOST_SLIDERS:
        msg = (
            f"'board' has {len(board['sliders'])} sliders, but at most {MOST_SLIDERS} fit on one. Connect 'inversion'"
            " to a second Slider Board for the others."
        )
        raise InputError(msg)
    return tuple(_row(number, row) for number, row in enumerate(board["sliders"], 1))


def wrong_board(text: object) -> str | None:
    """A sentence on what is wrong with a board; None where all is well, or where it is no text, such as a link."""
    if not isinstance(text, str):
        return None
    try:
        rows_of(text)
    except InputError as error:
        return str(error)
    return None


def _refuse_unknown(values: dict, known: tuple[str, ...], where: str) -> None:
    unknown = [key for key in values if key not in known]
    if unknown:
        msg = f"{where} has the key {quoted(unknown[0])}, which is none of: {', '.join(known)}. Remove or rename it."
        raise InputError(msg)


def _row(number: int, row: object) -> SliderRow:
    where = f"Slider {number} of 'board'"
    if not isinstance(row, dict):
        msg = f"{where} is {quoted(row)}, but it must be an object like this: {EXAMPLE}"
        raise InputError(msg)
    _refuse_unknown(row, ("words", "strength", "keep", "on"), where)
    for key, kind, must in (("words", str, "a text"), ("keep", str, "a text"), ("on", bool, "true or false")):
        if key in row and not isinstance(row[key], kind):
            msg = f"'{key}' of slider {number} of 'board' is {quoted(row[key])}, but it must be {must}."
            raise InputError(msg)
        if kind is str and has_surrogates(row.get(key, "")):
            msg = f"'{key}' of slider {number} of 'board' holds an incomplete character. Type it again."
            raise InputError(msg)
    strength = row.get("strength", 1.0)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        msg = f"'strength' of slider {number} of 'board' is {quoted(strength)}, but it must be a number."
        raise InputError(msg)
    if not _LOWEST <= strength <= _HIGHEST or not math.isfinite(strength):
        msg = (
            f"'strength' of slider {number} of 'board' is {in_short(strength)}. It must be {_LOWEST:g} to"
            f" {_HIGHEST:g}: choose a number in that range."
        )
        raise InputError(msg)
    made = SliderRow(row.get("words", "").strip(), float(strength), row.get("keep", ""), row.get("on", True))
    _check_words(number, made)
    return made


def _check_words(number: int, row: SliderRow) -> None:
    """Refuse words that say nothing or too much, and pairs that are none."""
    if not row.words:
        msg = f"Slider {number} of 'board' has no words. Write what strength 1 should show, such as 'smiling'."
        raise InputError(msg)
    if "|" in row.words:
        now, then = row.now_and_then
        if "|" in now or not now or not then or now == then:
            msg = (
                f"'words' of slider {number} of 'board' is {quoted(row.words)}. Write what strength 1 should show, such"
                " as 'smiling', or two different phrases with one bar between them: what the picture shows now, and"
                " what it should show, such as 'frowning | smiling'."
            )
            raise InputError(msg)
    try:
        parse_keep(row.keep)
    except InputError as error:
        msg = f"Slider {number} of 'board': {error}"
        raise InputError(msg) from error
