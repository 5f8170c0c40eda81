"""Soak: hostile prompts, damaged files, cancels and long sessions against a live ComfyUI with the demo model (Linux).

    python -m benchmarks.soak [--quick] [--part NAME ...] [--json FILE]

Everything is drawn with fixed seeds, prompts and files by hypothesis. A prompt may be refused, or fail with a sentence
of the pack; what counts as a fault is listed in `outcomes`. The command ends with status 1 where there is one.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.command import parser, write
from benchmarks.process_memory import clear_peak, memory_of
from benchmarks.soak import damaged_files, file_damage, hostile_prompts, slider_runs
from benchmarks.soak.base_prompt import OUTPUTS, STORED, base, needed
from benchmarks.soak.hostile_prompts import can_be_sent, prompt_of
from benchmarks.soak.outcomes import (
    CHANGED,
    FAULTS,
    GOOD,
    MEMORY,
    OK,
    PREFIX,
    SKIPPED,
    STRAY_FILE,
    Outcome,
    distinct,
    shortened,
)
from benchmarks.soak.server import ENDED, Live, Reply
from benchmarks.tables import print_table
from scripts.comfy_server import Server
from scripts.environment import ensure

PARTS = ("prompts", "files", "cancels", "sliders")
HEAVY_PATIENCE = 5.0  # seconds until a prompt is cancelled that asks for much work
ORDINARY_PATIENCE = 40.0  # others take one or two
# How often a kind of value may stop the server before it is left out: at one input, at all inputs.
KILLS_AT_INPUT, KILLS = 1, 3


@dataclass(frozen=True)
class Size:
    """How much of each part is done."""

    prompts: int = 2000
    files: int = 100_000
    files_live: int = 500
    cancels: int = 100
    sliders: int = 500
    batch: int = 25  # prompts between two runs of a known prompt
    fresh: bool = True  # compare with a server of its own, in place of the first run on the one server

    @property
    def between(self) -> int:
        """Cancels between two such runs."""
        return max(2, self.batch // 3)


EACH_ONCE = len(slider_runs.PATCHES) + len(slider_runs.GUIDERS)  # slider runs that meet every patch and guider
QUICK = Size(prompts=52, files=500, files_live=6, cancels=5, sliders=EACH_ONCE, batch=26, fresh=False)


@dataclass
class Soak:
    """One run: the server, what a known prompt gives on a fresh one, and the rows found so far."""

    live: Live
    size: Size
    info: dict
    known: Reply | None = None
    runs: int = 0
    compared: int = 0
    rows: list[dict] = field(default_factory=list)
    kills: Counter = field(default_factory=Counter)

    def note(self, part: str, outcome: Outcome, seconds: float = 0.0, **more) -> None:
        """Add a row; a prompt is stored with it where it is a fault."""
        prompt = more.pop("prompt", None)
        row = {"part": part, "outcome": outcome.kind, "detail": outcome.detail[:1000], "seconds": round(seconds, 3)}
        if outcome.fault:
            print(f"{part}: {outcome.kind}: {more.get('where', '')}: {outcome.detail[:160]!r}", file=sys.stderr)
            row["prompt"] = shortened(prompt)
        self.rows.append(row | more)
        for path in self.live.stray_files() if outcome.kind not in ENDED else []:
            self.rows.append(row | more | {"outcome": STRAY_FILE, "detail": path, "prompt": shortened(prompt)})

    def check(self, part: str) -> bool:
        """Run the known prompt; where it fails or differs, note that and start the server again."""
        self.runs += 1
        reply = self.live.run(known_prompt(self.runs))
        outcome = reply.failed or self.live.results(reply)
        self.compared += 1
        if outcome.kind == OK and not same(self.known, reply):
            outcome = Outcome(CHANGED, difference(self.known, reply))
        if outcome.kind == OK:
            return True
        self.note(f"{part}, known prompt", outcome, reply.seconds)
        self.live.restart()
        self.restore()
        return False

    def restore(self) -> None:
        """Put the direction that cases load into a new server's folder."""
        direction = needed(base() | {"find": find_known()}, ["save"])
        direction["save"]["inputs"]["name"] = STORED
        reply = self.live.run(direction)
        if reply.failed:
            message = f"The direction to load could not be saved: {reply.failed}"
            raise RuntimeError(message)

    def run(self, part: str, prompt: dict, check: bool = True, **options) -> tuple[Outcome, Reply]:
        """Run a prompt; start the server again where that has ended it."""
        reply = self.live.run(prompt, **options)
        outcome = reply.failed or self.live.results(reply, check=check)
        if outcome.kind in ENDED:
            self.live.restart()
            self.restore()
        return outcome, reply


def find_known() -> dict:
    """Find Directions by a search, with a pair to keep."""
    find = base()["find"]
    find["inputs"] |= {"method": "HSDS", "keep": "a person with glasses | a person without glasses"}
    return find


def known_prompt(seed: int) -> dict:
    """A prompt whose result must never change; another seed, which its methods do not read, makes everything run."""
    prompt = base() | {"find": find_known()}
    prompt["invert"]["inputs"]["seed"] = seed
    return needed(prompt, OUTPUTS)


def same(one: Reply, other: Reply) -> bool:
    """Whether two runs gave bit-identical latents and pictures."""
    latents, pictures = zip(one.latents, other.latents, strict=True), zip(one.pictures, other.pictures, strict=True)
    return all(torch.equal(*pair) for pair in latents) and all(np.array_equal(*pair) for pair in pictures)


def difference(one: Reply, other: Reply) -> str:
    """How far the latents of two runs are apart."""
    far = float((one.latents[0] - other.latents[0]).abs().max())
    return f"the latent differs by {far:.3g}, its largest value is {float(one.latents[0].abs().max()):.3g}"


def run_prompts(soak: Soak) -> None:
    """Part 1: every input of every node."""
    cases = hostile_prompts.cases(soak.info, soak.size.prompts)
    for number, case in enumerate(cases, 1):
        more = {"where": case.where, "mode": case.mode, "kinds": case.kinds, "example": case.words}
        values = [(value.kind, f"{value.kind} at {node}.{name}") for node, name, value in case.changes]
        if any(soak.kills[kind] >= KILLS or soak.kills[place] >= KILLS_AT_INPUT for kind, place in values):
            soak.note("prompts", Outcome(SKIPPED), **more)
            continue
        prompt = prompt_of(case)
        if not can_be_sent(prompt):
            continue
        checked = case.where != "report.latent"  # whose latents need not be a sampler's
        patience = HEAVY_PATIENCE if case.heavy else ORDINARY_PATIENCE
        outcome, reply = soak.run("prompts", prompt, checked, patience=patience, heavy=case.heavy)
        soak.note("prompts", outcome, reply.seconds, prompt=prompt, **more)
        if outcome.kind in ENDED:
            soak.kills.update(key for pair in set(values) for key in pair if pair[0] != "ordinary")
        if number % soak.size.batch == 0:
            soak.check("prompts")
            progress("prompts", number, len(cases))
    soak.check("prompts")


def load_files(soak: Soak) -> None:
    """Part 2: damaged direction files, in a child process and over the API."""
    soak.rows += damaged_files.in_child(soak.size.files)
    stored = (soak.live.directions / f"{STORED}.safetensors").read_bytes()
    drawn = hostile_prompts.draw(file_damage.recipes(), soak.size.files_live + hostile_prompts.SIMPLEST, 999_999)
    for number, recipe in enumerate(drawn[hostile_prompts.SIMPLEST :], 1):
        name = f"damaged-{number}.safetensors"
        path = soak.live.directions / name
        file_damage.write(path, stored, recipe)
        case = hostile_prompts.Case("load", (("load", "file", hostile_prompts.Value("damaged", name)),))
        prompt = prompt_of(case, strength=0.5 + number / 1000)
        before = clear_peak(soak.live.pid)
        outcome, reply = soak.run("files", prompt)
        more = {"where": recipe[0], "example": str(recipe)[:200], "mode": "API"}
        if outcome.kind not in ENDED:
            growth = memory_of(soak.live.pid, "VmHWM") - before
            if growth > damaged_files.MOST_MEMORY:
                soak.note("files", Outcome(MEMORY, f"{growth >> 20} MB"), **more)
        soak.note("files", outcome, reply.seconds, **more)
        file_damage.clear(path)
        if number % soak.size.batch == 0:
            soak.check("files")
            progress("files", number, soak.size.files_live)
    soak.check("files")


LONG = {
    "inversion": {"invert": {"steps": 80, "method": "midpoint"}},
    "search": {"find": {"method": "LOCO", "count": 6, "hold_outside": 0}},
    "search with words": {"find": {"method": "HSDS", "derivatives": "central differences"}},
    "sampling": {"invert": {"method": "fresh noise", "seeds": 4, "steps": 24}},
}


def cancels(soak: Soak) -> None:
    """Part 3: cancel at random moments; the known prompt must give the same as on a fresh server afterwards."""
    moments, seconds = random.Random(hostile_prompts.SEED), {}
    for number in range(1, soak.size.cancels + 1):
        name = list(LONG)[number % len(LONG)]
        prompt = base()
        for node, inputs in LONG[name].items():
            prompt[node]["inputs"] |= inputs
        prompt["invert"]["inputs"]["seed"] = 10**6 + number
        prompt = needed(prompt, OUTPUTS)
        after = moments.uniform(0, seconds.get(name, 2.0))
        outcome, reply = soak.run("cancels", prompt, cancel_after=after)
        if not reply.interrupted_at:  # it ended before, so it takes at most this long
            seconds[name] = reply.seconds
        else:
            seconds[name] = max(seconds.get(name, 2.0), 1.2 * after)
        where = reply.interrupted_at.removeprefix(PREFIX) or "it had ended before"
        soak.note("cancels", outcome, reply.seconds, prompt=prompt, where=where, mode=name)
        if number % soak.size.between == 0:
            soak.check("cancels")
            progress("cancels", number, soak.size.cancels)
    soak.check("cancels")


def progress(part: str, done: int, of: int) -> None:
    """Say how far a part is."""
    print(f"{time.strftime('%H:%M:%S')} {part}: {done} of {of}", file=sys.stderr, flush=True)


def reference(live: Live, info: dict) -> Reply:
    """What the known prompt gives on a server."""
    reply = live.run(known_prompt(0))
    outcome = reply.failed or live.results(reply)
    if outcome.kind != OK:
        message = f"The known prompt does not run: {outcome}"
        raise RuntimeError(message)
    return reply


def run(size: Size, parts: tuple[str, ...] = PARTS, server: Server | None = None) -> list[dict]:
    """Run some parts and return all rows; on `server`, or on one of our own.

    What it leaves in the folder of directions is removed at the end.
    """
    environment = ensure()

    def start() -> Server:
        return Server(environment)

    known = None
    if size.fresh:
        with Live(start) as fresh:
            known = reference(fresh, fresh.server.client.object_info())
    with Live(start, server) as live:
        info, before = live.server.client.object_info(), set(live.directions.rglob("*"))
        soak = Soak(live, size, info, known or reference(live, info))
        soak.restore()
        soak.check("start")
        actions = {"prompts": run_prompts, "files": load_files, "cancels": cancels}
        for part in parts:
            began = time.monotonic()
            try:
                actions.get(part, slider_runs.sliders)(soak)
            except KeyboardInterrupt:  # the tables then are of what has run
                print(f"{part}: ended early", file=sys.stderr)
            soak.rows.append({"part": part, "outcome": "", "detail": "", "took": time.monotonic() - began})
        soak.check("end")
        soak.rows.append(
            {"part": "known prompt", "outcome": "", "detail": "", "compared": soak.compared, "restarts": live.restarts}
        )
        if not live.restarts:
            for path in sorted(set(live.directions.rglob("*")) - before, reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    return soak.rows


def faults(rows: list[dict]) -> list[dict]:
    """The rows that are faults of the pack."""
    return [row for row in rows if row["outcome"] in FAULTS]


def print_tables(rows: list[dict]) -> None:
    """All tables, and the different faults."""
    prompts = [row for row in rows if row["part"] == "prompts" and row["outcome"]]
    if prompts:
        print("Outcomes of prompts with random and hostile inputs, typed and linked:\n")
        print_table([outcome_line(kind, prompts, ("typed", "linked")) for kind in kinds_in(prompts)])
    summary = next((row for row in rows if row.get("summary")), None)
    if summary:
        live = [row for row in rows if row["part"] == "files" and row.get("mode") == "API"]
        print("\nDamaged direction files, loaded in a child process and over the API (with a slider and sampling):\n")
        names = [OK, *kinds_in(live), *summary["counts"]]
        loaded = {damaged_files.LOADED: OK}
        lines = []
        for kind in dict.fromkeys(loaded.get(name, name) for name in names):
            counts = sum(n for name, n in summary["counts"].items() if loaded.get(name, name) == kind)
            api = sum(row["outcome"] == kind for row in live)
            lines.append({"outcome": kind, "files": counts, "over the API": api, "fault": fault_word(kind)})
        print_table(lines)
        growth, example = summary["largest_growth"]
        print(f"\nLargest growth of memory in one load: {growth / 2**20:.0f} MB ({example[:80]}).")
    cancelled = [row for row in rows if row["part"] == "cancels" and row["outcome"]]
    if cancelled:
        print("\nCancels by the node that was running:\n")
        places = Counter((row["where"], row["outcome"]) for row in cancelled)
        print_table([{"cancelled at": w, "outcome": o, "cancels": n} for (w, o), n in sorted(places.items())])
    slider_runs.print_tables(rows)
    end = next(row for row in rows if row["part"] == "known prompt")
    changed = sum(row["outcome"] == CHANGED for row in rows)
    print(
        f"\nThe known prompt ran {end['compared']} times between all of this; its result differed {changed} times from"
    )
    print(f"that of a fresh server. The server was started again {end['restarts']} times.")
    found = distinct(rows)
    print(f"\nDifferent faults: {len(found)}\n")
    for row in found:
        example = f"{row.get('where', '')}: {row.get('example', '')[:200]}"
        print(f"- {row['times']} x {row['part']}, {row['outcome']}, {example}\n  {row['detail'][:300]!r}")


def kinds_in(rows: list[dict]) -> list[str]:
    """The kinds of outcome in some rows, faults last."""
    there = {row["outcome"] for row in rows}
    return [kind for kind in (*GOOD, SKIPPED, *FAULTS) if kind in there]


def outcome_line(kind: str, rows: list[dict], modes: tuple[str, ...]) -> dict:
    """One line of a table of outcomes."""
    mine = [row for row in rows if row["outcome"] == kind]
    return {"outcome": kind, **{m: sum(row["mode"] == m for row in mine) for m in modes}, "fault": fault_word(kind)}


def fault_word(kind: str) -> str:
    """Whether a kind of outcome is a fault, for a table."""
    return "yes" if kind in FAULTS else ""


def main() -> None:
    """Run the benchmark, print its tables and end with status 1 where there is a fault."""
    arguments = parser(__doc__, "few prompts, files, cancels and slider runs; on one server")
    arguments.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    options = arguments.parse_args()
    rows = run(QUICK if options.quick else Size(), tuple(options.part))
    print_tables(rows)
    write(rows, options.json)
    sys.exit(1 if faults(rows) else 0)


if __name__ == "__main__":
    main()
