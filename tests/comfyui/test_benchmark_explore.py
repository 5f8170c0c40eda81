"""The claims of the table on directions found without words, on one of its portraits, and how it counts."""

import numpy as np
import pytest
import torch

from benchmarks.explore import LEVEL, PLAIN, STRENGTHS, changes_of, find_anew, mixed, portrait_case, seen_in, summary
from benchmarks.portraits import Bench
from latent_directions.core.direction import Direction
from latent_directions.core.search import AUTOMATIC
from latent_directions.demo.world import ATTRIBUTES

NAMES = list(ATTRIBUTES)


def change(**values: tuple) -> np.ndarray:
    """(strengths, 2, attributes): the same for both signs."""
    made = np.zeros((len(STRENGTHS), 2, len(NAMES)))
    for name, sizes in values.items():
        made[:, :, NAMES.index(name)] = np.array(sizes)[:, None]
    return made


def test_a_direction_is_looked_at_where_it_first_changes_something_plainly():
    seen = seen_in(change(smile=(-0.4, -1.2, -2), hat=(0.1, 0.3, 5)))
    assert seen == {"attribute": "smile", "plain": True, "share": pytest.approx(0.8), "one_thing": True}
    assert not seen_in(change(smile=(0.6, 1, 1), hat=(0.3, 0, 0), glasses=(0.31, 0, 0)))["one_thing"]
    weak = seen_in(change(smile=(0.1, 0.2, PLAIN - 0.1)))
    assert not weak["plain"] and not weak["one_thing"]


def test_random_mixes_are_orthonormal():
    moves = torch.eye(6)[:3].view(3, 6, 1, 1)
    found = mixed([Direction(f"{k}", "LOCO", "SD3", 1.0, latent=moves[k], step=1.0 + k) for k in range(3)], 0)
    flat = torch.stack([direction.latent.flatten() for direction in found])
    assert torch.allclose(flat @ flat.T, torch.eye(3), atol=1e-6)
    assert [direction.step for direction in found] == [2.0] * 3


def test_summary():
    row = {"search": "explore", "name": "direction 1 (upper)", "named": None, "evaluations": 100, "share": 0.75}
    alone = {"case": "a", "attribute": "hat", "one_thing": True}
    rows = [row | alone, row | alone | {"named": True}, row | alone | {"attribute": "smile", "one_thing": False}]
    (line,) = summary([*rows, row | alone | {"case": "b", "named": False}])
    assert line["change one thing"] == 0.75
    assert line["things found"] == line["fewest"] == 1
    assert (line["named"], line["named right"]) == (1.0, 0.5)


@torch.inference_mode()
def test_most_directions_of_a_portrait_change_one_thing():
    bench, case = Bench(), portrait_case(0)
    inversion, sigmas = bench.encode(case, LEVEL, "fresh noise")
    directions, report = find_anew(bench, case, inversion, "explore", AUTOMATIC)
    assert report["model_evaluations"] <= 140 + 22
    encoded = inversion, sigmas, bench.unmoved(inversion, sigmas)
    seen = [seen_in(changes_of(bench, encoded, direction, STRENGTHS)) for direction in directions]
    assert len(seen) == 12
    assert sum(one["one_thing"] for one in seen) >= 6
    assert len({one["attribute"] for one in seen if one["one_thing"]}) >= 5
