"""What became of a prompt: one of the kinds of outcome below, some of which are faults of the pack.

A prompt that fails is no fault as long as the user gets a sentence of the pack's own, or ComfyUI or a stock node
refused it before the pack was reached.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from scripts.comfy_server import PACK_FOLDER

OK = "ended well, all values finite"
REFUSED = "refused by ComfyUI at validation"
SENTENCE = "error with a sentence of the pack"
ELSEWHERE = "error of a stock node or of ComfyUI"
CANCELLED = "long run, cancelled when its time was over"
SKIPPED = "not run: its kind of value had stopped the server before"

NO_SENTENCE = "error of the pack without a sentence"
LONG_SENTENCE = "sentence longer than allowed"
UNPRINTABLE = "sentence with characters that cannot be printed"
NOT_FINITE = "picture or latent not finite or black, as success"
STUCK = "stuck: cancelling did not end it"
TOO_LONG = "ordinary prompt that did not end in time"
DEAD_WORKER = "the server answers, but runs no prompt any more"
DEAD_SERVER = "the server ended"
STRAY_FILE = "file written outside its folder"
CHANGED = "a later run differs from the same run on a fresh server"
NOT_EXACT = "strength 0 does not give the picture back"
MEMORY = "memory grew more than allowed"
DESCRIPTORS = "file descriptors were not closed"
UNUSABLE = "file loaded as a direction that cannot be used"

GOOD = (OK, REFUSED, SENTENCE, ELSEWHERE, CANCELLED)
FAULTS = (
    NO_SENTENCE,
    LONG_SENTENCE,
    UNPRINTABLE,
    NOT_FINITE,
    STUCK,
    TOO_LONG,
    DEAD_WORKER,
    DEAD_SERVER,
    STRAY_FILE,
    CHANGED,
    NOT_EXACT,
    MEMORY,
    DESCRIPTORS,
    UNUSABLE,
)
LONGEST_SENTENCE = 2000
PACK_FRAMES = f"custom_nodes/{PACK_FOLDER}/"
LIBRARIES = ("site-packages", "lib/python")
PREFIX = "LatentDirections_"
# Full names of the classes of error that carry a sentence for the user; all of them live in these two modules.
PACK_ERRORS = re.compile(rf"{PACK_FOLDER}.*\.(core|nodes)\.errors\.\w+$")


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt or a file; `detail` is the sentence or the traceback's last line."""

    kind: str
    detail: str = ""

    @property
    def fault(self) -> bool:
        """Whether the pack is to blame."""
        return self.kind in FAULTS


def of_sentence(text: str, longest: int = LONGEST_SENTENCE) -> Outcome:
    """A sentence of the pack must have a reasonable length and be printable."""
    if len(text) > longest:
        return Outcome(LONG_SENTENCE, f"{len(text)} characters: {text[:80]!r}")
    wrong = [c for c in text if not (c.isprintable() or c in "\n\t")]
    if wrong:
        return Outcome(UNPRINTABLE, f"{wrong[0]!r} in {text[:120]!r}")
    if not text.strip():
        return Outcome(NO_SENTENCE, "an error of the pack with an empty message")
    return Outcome(SENTENCE, text)


def of_error(error: dict) -> Outcome:
    """What an execution_error says, as ComfyUI sends it to the page.

    At a node of the pack any other error than the pack's own is a fault once the pack's code had been reached. At a
    stock node it is one where the pack's wrappers on the MODEL are the innermost code, libraries aside.
    """
    kind, message = error["exception_type"], error["exception_message"].rstrip("\n")
    if is_pack_error(kind):
        return of_sentence(message)
    frames = [frame for frame in error["traceback"] if not any(name in frame for name in LIBRARIES)]
    reached = any(PACK_FRAMES in frame for frame in frames)
    innermost = bool(frames) and PACK_FRAMES in frames[-1]
    detail = f"{error['node_type']}: {kind}: {message[:300]}{place(error['traceback'])}"
    at_pack = error["node_type"].startswith(PREFIX)
    return Outcome(NO_SENTENCE if (at_pack and reached) or innermost else ELSEWHERE, detail)


def is_pack_error(exception_type: str) -> bool:
    """Whether a full name of an exception's class is one of the pack's errors, whatever ComfyUI calls the package."""
    return PACK_ERRORS.search(exception_type) is not None


def place(traceback: list[str]) -> str:
    """The pack's innermost line in a traceback, as " at file:line", or nothing where there is none."""
    for frame in reversed(traceback):
        if PACK_FRAMES in frame:
            found = re.search(r'File "(.*?)", line (\d+)', frame)
            if found:
                return f" (at {found[1].rpartition(PACK_FRAMES)[2]}:{found[2]})"
    return ""


def of_refusal(status: int, answer: dict) -> Outcome:
    """What ComfyUI answered where it did not queue a prompt; an exception of the pack while validating is a fault."""
    for node in (answer.get("node_errors") or {}).values():
        for error in node["errors"]:
            extra = error.get("extra_info") or {}
            frames = extra.get("traceback") or []
            if any(PACK_FRAMES in frame for frame in frames) and not is_pack_error(extra.get("exception_type", "")):
                detail = f"{node['class_type']}: {extra.get('exception_type')}: {error['details'][:300]}{place(frames)}"
                return Outcome(NO_SENTENCE, detail)
    head = answer.get("error") or {}
    said = head.get("details") or head.get("message") or "" if isinstance(head, dict) else str(head)
    return Outcome(REFUSED, f"HTTP {status}: {said[:200]}")


def of_results(reports: list[dict], latents: list, pictures: list) -> Outcome:
    """What a prompt that ended well gave: reports of Edit Report, latents as tensors, pictures as 8-bit arrays."""
    for report in reports:
        difference = report.get("max_abs_diff")
        if difference is None or not math.isfinite(difference):
            return Outcome(NOT_FINITE, f"Edit Report: max_abs_diff is {difference}")
    for latent in latents:
        if not latent.isfinite().all():
            return Outcome(NOT_FINITE, "the sampled latent holds values that are not finite")
    for picture in pictures:
        if (picture == 0).mean() > 0.5:
            return Outcome(NOT_FINITE, "more than half of the picture is exactly black")
    return Outcome(OK)


def shortened(value, longest: int = 300):
    """A copy of a prompt for the JSON, with long texts described by their start and length."""
    if isinstance(value, dict):
        return {str(key)[:longest]: shortened(item, longest) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(item, longest) for item in value[:20]]
    if isinstance(value, str) and len(value) > longest:
        return f"{value[:40]}... ({len(value)} characters)"
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of about {value.bit_length() * 0.30103:.0f} digits"
    return value


def distinct(rows: list[dict]) -> list[dict]:
    """One row for each different fault: the first example and how often it came."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if row["outcome"] not in FAULTS:
            continue
        # numbers, quoted names and addresses differ between examples of one fault
        said = re.sub(r"'[^']*'|\"[^\"]*\"|0x[0-9a-f]+|-?\d[\d.e+]*", "*", row["detail"].splitlines()[-1][:200])
        first = found.setdefault((row["outcome"], said, row.get("where", "")), {**row, "times": 0})
        first["times"] += 1
    return list(found.values())
