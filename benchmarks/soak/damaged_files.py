"""Damaged direction files in a child process that loads one after the other, and what comes of each.

A load must give a usable direction with finite values or a DirectionFileError with a printable sentence, and must not
take much memory for it, whatever the file says or how large it claims to be.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from benchmarks.process_memory import clear_peak, memory_of
from benchmarks.soak.file_damage import clear, originals, recipes, write
from benchmarks.soak.hostile_prompts import draw
from benchmarks.soak.outcomes import DEAD_SERVER, MEMORY, NO_SENTENCE, OK, STUCK, UNUSABLE, Outcome, of_sentence
from latent_directions.core import direction_files
from latent_directions.core.direction import Direction
from latent_directions.core.errors import DirectionFileError
from scripts.environment import ROOT

LOADED = "loaded, usable"
MOST_MEMORY = 64 << 20  # bytes that a load may take beyond what was there before
LONGEST = 1000  # characters of a sentence
CHUNK = 1000  # recipes drawn at once
ADDRESS_SPACE = 24 << 30  # bytes; a load that asks for more fails instead of taking the machine's memory
RESIDENT = 3 << 30  # bytes after which a child that is still loading is ended
PATIENCE = 60.0  # seconds for one file


def outcome_of(path: Path) -> Outcome:
    """Load a file and judge what comes of it."""
    try:
        direction = direction_files.load(path)
    except DirectionFileError as error:
        return of_sentence(str(error), LONGEST)
    except Exception as error:  # every other error is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error)[:200]}"
        return Outcome(NO_SENTENCE, f"{said} (at {Path(place.filename).name}:{place.lineno})")
    try:
        wrong = unusable(direction)
    except Exception as error:
        wrong = f"{type(error).__name__}: {str(error)[:200]}"
    return Outcome(UNUSABLE, wrong) if wrong else Outcome(OK)


def unusable(direction: Direction) -> str:
    """Why a direction cannot be used, or nothing."""
    tensors = {"latent": direction.latent, "mask": direction.mask}
    prompts = {}
    if direction.words is not None:
        prompts = {"target": direction.words.target, "source": direction.words.source}
    if direction.distilled is not None:
        tensors |= {"move above 0": direction.distilled.above, "move below 0": direction.distilled.below}
    if direction.feature is not None:
        tensors["feature"] = direction.feature.change
    for i, pair in enumerate(direction.keep):
        prompts |= {f"keep {i} present": pair.present, f"keep {i} absent": pair.absent}
    for name, prompt in prompts.items():
        if prompt is not None:
            tensors |= {f"{name} tokens": prompt.tokens, f"{name} pooled": prompt.pooled}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.dtype.is_floating_point:
            return f"{name} is of type {tensor.dtype}"
        if not tensor.float().isfinite().all():
            return f"{name} is not finite"
        if tensor.numel() == 0:
            return f"{name} is empty, shape {list(tensor.shape)}"
    if direction.mask is not None and not (direction.mask.min() >= 0 and direction.mask.max() <= 1):
        return "the mask has values outside 0 to 1"
    parts = (direction.latent, direction.words, direction.distilled, direction.feature)
    if all(part is None for part in parts):
        return "nothing to move"
    numbers = [0.0 if direction.words is None else direction.words.share]
    numbers += [] if direction.distilled is None else [direction.distilled.bend]
    numbers += [] if direction.model is None else [value for part in direction.model.weights for value in part]
    if not all(map(math.isfinite, numbers)):
        return "a number of its parts is not finite"
    if not (math.isfinite(direction.sigma) and math.isfinite(direction.step)):
        return f"sigma {direction.sigma}, step {direction.step}"
    if direction.latent is not None and not (3 * direction.step * direction.latent.float()).isfinite().all():
        return f"the move is not finite: step {direction.step}"
    texts = [direction.name, direction.method, direction.family, *(pair.name for pair in direction.keep)]
    for text in texts:
        text.encode()
        if not text.isprintable() or len(text) > LONGEST:
            return f"a name of {len(text)} characters or one that cannot be printed: {text[:40]!r}"
    json.dumps(direction.notes, allow_nan=False).encode()
    return ""


def load_all(first: int, count: int, folder: Path) -> None:
    """Load damaged files number `first` and on, with a JSON line for each fault; state.json tells how far it is."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    path, files, strategy = folder / "damaged.safetensors", originals(), recipes()
    counts: Counter = Counter()
    largest, me = (0, ""), os.getpid()
    for chunk in range(first // CHUNK, (first + count - 1) // CHUNK + 1):
        for i, recipe in enumerate(draw(strategy, CHUNK, 1000 + chunk), chunk * CHUNK):
            if not first <= i < first + count:
                continue
            write(path, files[i % len(files)], recipe)
            state = {"number": i, "example": str(recipe)[:200], "counts": counts, "largest": largest}
            _store(folder, state)
            before = clear_peak(me)
            found = outcome_of(path)
            growth = memory_of(me, "VmHWM") - before
            largest = max(largest, (growth, str(recipe)[:200]))
            for outcome in (found, *([Outcome(MEMORY, f"{growth >> 20} MB")] if growth > MOST_MEMORY else [])):
                counts[LOADED if outcome.kind == OK else outcome.kind] += 1
                if outcome.fault:
                    row = {"number": i, "example": str(recipe)[:200], "where": recipe[0]}
                    print(json.dumps({**row, "outcome": outcome.kind, "detail": outcome.detail}), flush=True)
    _store(folder, {"number": first + count, "counts": counts, "largest": largest})
    clear(path)


def in_child(count: int) -> list[dict]:
    """Load `count` damaged files in child processes; where one ends or hangs, note the file and go on behind it.

    Returns:
        A row for each fault, and one with the counts.
    """
    rows, counts, largest, first, began = [], Counter(), (0, ""), 0, time.monotonic()
    (ROOT / ".run").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=ROOT / ".run", prefix="files-"))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    while first < count:
        command = [sys.executable, "-m", "benchmarks.soak.damaged_files", "--child", str(first), str(count - first)]
        with (folder / "lines").open("w+") as lines, (folder / "errors").open("w+") as errors:
            child = subprocess.Popen(
                [*command, str(folder)], cwd=ROOT, stdout=lines, stderr=errors, env=environment, text=True
            )
            why = _watch(child, folder)
            lines.seek(0)
            errors.seek(0)
            found = [json.loads(line) for line in lines.read().splitlines() if line.endswith("}")]
            said = errors.read().strip().splitlines()
        rows += [{"part": "files", **row} for row in found]
        state = _state(folder)
        if state is None or state["number"] < first:
            message = f"The child process of damaged files failed: {said[-1] if said else child.returncode}"
            raise RuntimeError(message)
        counts.update(state["counts"])
        largest = max(largest, tuple(state["largest"]))
        if child.returncode == 0:
            break
        detail = why or f"exit status {child.returncode}: {said[-1] if said else ''}"
        kind = {"memory": MEMORY, "time": STUCK}.get(why, DEAD_SERVER)
        counts[kind] += 1
        example = {"number": state["number"], "example": state["example"], "where": "child process"}
        rows.append({"part": "files", **example, "outcome": kind, "detail": detail})
        first = state["number"] + 1
    shutil.rmtree(folder, ignore_errors=True)
    total = {"part": "files", "summary": True, "outcome": "", "files": count, "counts": dict(counts), "detail": ""}
    return [*rows, {**total, "largest_growth": list(largest), "seconds": time.monotonic() - began}]


def _state(folder: Path) -> dict | None:
    """How far the child process is; None where it has not begun."""
    try:
        return json.loads((folder / "state.json").read_text())
    except OSError:
        return None


def _store(folder: Path, state: dict) -> None:
    """Write how far the child process is; the file is never half written."""
    (folder / "state.part").write_text(json.dumps(state))
    (folder / "state.part").replace(folder / "state.json")


def _watch(child: subprocess.Popen, folder: Path) -> str:
    """Wait for a child; end it where it takes too much memory or too long for one file, and say which."""
    at, since = 0, time.monotonic()
    while child.poll() is None:
        time.sleep(0.1)
        now = os.stat(folder / "state.json").st_mtime_ns if (folder / "state.json").exists() else 0
        if now != at:
            at, since = now, time.monotonic()
        try:
            resident = memory_of(child.pid, "VmRSS")
        except (OSError, StopIteration):
            continue
        if resident > RESIDENT or time.monotonic() - since > PATIENCE:
            child.kill()
            child.wait()
            return "memory" if resident > RESIDENT else "time"
    return ""


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--child", nargs=3, required=True, metavar=("FIRST", "COUNT", "FOLDER"))
    child = arguments.parse_args().child
    load_all(int(child[0]), int(child[1]), Path(child[2]))
