"""The Encode benchmark: chains of sliders that come to nothing; leakage, compared where the change was reached."""

import math

import pytest
import torch
from families import Family, flux
from node_runs import HashingClip, loaded, picture

from benchmarks import encode_sliders
from benchmarks.encode import Subject
from benchmarks.encode_edits import CONTROLLED, FRESH, INVERTED, encoding_cost, summary


def edit(case: str, direction: str, reached: bool, leakage: float, method: str = INVERTED, weight: float = 1.0) -> dict:
    return {
        "case": case,
        "direction": direction,
        "method": method,
        "weight": weight,
        "reached": reached,
        "leakage": leakage,
        "evaluations": 0,
        "evaluations_of_a_run": 10,
    }


def lines_of(rows: list[dict], by: str, default) -> dict:
    return {(line["direction"], line["start" if by == "method" else by]): line for line in summary(rows, by, default)}


def test_starts_are_compared_where_all_of_them_reached_the_change():
    cases = [("a", True, 0.1, 0.2), ("b", True, 0.2, 0.4), ("c", False, 9.0, 0.3)]
    rows = [edit(*c[:1], d, c[1], c[2]) for c in cases for d in ("text", "HSDS")]
    rows += [edit(c[0], d, True, c[3], FRESH) for c in cases for d in ("text", "HSDS")]
    lines = lines_of(rows, "method", INVERTED)
    assert lines["text", INVERTED]["reached a third"] == pytest.approx(2 / 3)
    for start, leakage in ((INVERTED, 0.15), (FRESH, 0.3)):
        assert lines["HSDS", start]["cases compared"] == 2
        assert lines["HSDS", start]["leakage"] == pytest.approx(leakage)
    # differences 0.1 and 0.2: mean 0.15, standard error 0.05
    assert lines["text", FRESH]["more than backward euler, weight 1"] == "+0.1500 ± 0.0500"


def test_a_weight_that_reaches_nothing_hides_no_other_weight():
    rows = []
    for case, leakage in (("a", 0.1), ("b", 0.3)):
        for direction in ("text", "HSDS"):
            rows += [edit(case, direction, weight >= 1, weight * leakage, weight=weight) for weight in (0.5, 1.0, 1.5)]
    lines = lines_of(rows, "weight", 1.0)
    assert lines["text", 0.5]["cases compared"] == 0
    assert lines["text", 0.5]["leakage"] is None
    assert lines["text", 1.5]["cases compared"] == 2
    assert math.isclose(lines["text", 1.5]["leakage"], 0.3)
    assert lines["text", 1.5]["more than backward euler, weight 1"] == "+0.1000 ± 0.0500"


def test_what_encoding_costs():
    """Ten steps; that the nodes spend as much is tested in test_core_inversion."""
    costs = [encoding_cost(method) for method in (INVERTED, "heun", "backward euler, refined", CONTROLLED, FRESH)]
    assert costs == [11, 20, 29, 11, 0]


@torch.inference_mode()
def test_chains_that_come_to_nothing_give_the_picture_and_others_do_not(monkeypatch):
    small = loaded(Family("flux", flux))
    subject = Subject("flux", small.model, small.positive, small.negative, picture(small), None)
    found = list(encode_sliders.rows(subject, HashingClip(small), ("euler",)))
    assert {row["chain"] for row in found} == set(encode_sliders.CHAINS)
    assert all(row["same"] and row["zero_strength_max_abs_diff"] == 0 for row in found)
    kinds = (encode_sliders.WORDS, encode_sliders.PLACED, encode_sliders.HSDS)
    uneven = {
        f"{kind} {recorded}": [(kind, 1.0, recorded), (kind, -0.9, recorded)] for kind in kinds for recorded in (0, 1)
    }
    monkeypatch.setattr(encode_sliders, "CHAINS", uneven)
    found = list(encode_sliders.rows(subject, HashingClip(small), ("euler",)))
    assert not any(row["same"] for row in found)
    (line, *_) = encode_sliders.summary(found)
    assert (line["runs"], line["not exact"]) == (4, 4)
