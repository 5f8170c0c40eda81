"""The cases: 24 to tune on, 100 held out, and the pairs of `benchmarks.first` that go together in the world.

Attributes take turns, so that every case list covers all eleven: faces, classes (hair colour, background), and things
that appear or go (glasses, hat).
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.first import PAIRS, pair_case
from benchmarks.portraits import Case, held_out
from latent_directions.demo.world import ATTRIBUTES

TUNING_SEED, HELD_OUT_SEED = 70002, 70211
TUNING, HELD_OUT, PAIR = "tuning", "held out", "pairs"
TUNING_CASES, HELD_OUT_CASES, PORTRAITS_OF_A_PAIR = 24, 100, 6

# Whole strengths are what Spearman sees of a signed slider; leakage is interpolated between those from 0 on.
SIGNED = np.array([-3, -2, -1, 0, 0.5, 1, 1.5, 2, 2.5, 3])
FORWARD = SIGNED[SIGNED >= 0]


@dataclass(frozen=True)
class Entry:
    """A case, the table that it belongs to, and what goes along with its attribute in the world ("" for nothing)."""

    table: str
    case: Case
    along: str = ""


def cases_of(table: str, count: int | None = None) -> list[Entry]:
    """The first `count` cases of a table, all without it."""
    if table == PAIR:
        made = [
            Entry(PAIR, pair_case(attribute, along, without, present, number), along)
            for number in range(PORTRAITS_OF_A_PAIR)
            for attribute, along, without, present in PAIRS
        ]
        return made[:count]
    seed, most = {TUNING: (TUNING_SEED, TUNING_CASES), HELD_OUT: (HELD_OUT_SEED, HELD_OUT_CASES)}[table]
    names = list(ATTRIBUTES)
    return [
        Entry(table, held_out(names[i % len(names)], i // len(names), seed))
        for i in range(most if count is None else min(count, most))
    ]
