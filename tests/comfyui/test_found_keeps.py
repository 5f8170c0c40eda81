"""What is kept by itself takes little from the change that was asked for, on the demo model."""

import numpy as np
import pytest
import torch

from benchmarks.portraits import Bench, Case
from latent_directions.demo.measures import named_in
from latent_directions.demo.world import ATTRIBUTES, caption, sample_portrait
from latent_directions.nodes.manipulate import schedule_of
from latent_directions.nodes.words import NOTHING, SAME_WORDS, candidates_of

LIST, LEVEL, STEPS, LEAST = "demo portraits", 0.7, 5, 0.9
# the candidates that name something which the model's portraits have; it does not know the others
KNOWN = [pair for pair in candidates_of(LIST, "") if all(named_in(words) for words in pair)]


@pytest.fixture(scope="module")
def bench() -> Bench:
    with torch.inference_mode():
        return Bench()


def case_without(present: str, absent: str) -> Case:
    """The first portrait drawn that shows `absent`, and an edit to `present`; two other attributes are named too."""
    (attribute,) = named_in(absent)
    rng = np.random.default_rng(70003)
    portrait = sample_portrait(rng)
    while ATTRIBUTES[attribute].phrase(getattr(portrait, attribute)) != absent:
        portrait = sample_portrait(rng)
    others = rng.choice([name for name in ATTRIBUTES if name != attribute], 2, replace=False)
    source = caption(portrait, attributes=[attribute, *others])
    return Case(present, portrait, attribute, source, source.replace(absent, present), present)


def test_the_list_has_candidates_that_the_model_knows():
    assert len(KNOWN) == 7


@torch.inference_mode()
@pytest.mark.parametrize("pair", KNOWN, ids=lambda pair: pair[0])
def test_each_candidate_as_target_keeps_its_change(bench, pair):
    case = case_without(*pair)
    inversion, _ = bench.encode(case, LEVEL, "fresh noise")
    sigmas, changes = schedule_of(inversion, STEPS), {}
    unmoved = bench.unmoved(inversion, sigmas)
    for kept in (NOTHING, LIST):
        direction, report = bench.find(case, inversion, "text", find_keeps=kept)
        before, after = bench.measure(case, [unmoved, *bench.edit(inversion, sigmas, direction, (1.0,))], 0)[0]
        changes[kept] = float(after - before)
    row = next(row for row in report["what_else_moves"] if row["candidate"] == " | ".join(pair))
    assert (row["kept"], row["why"]) == (False, SAME_WORDS)
    assert pair[0] not in [one.name for one in direction.keep]
    assert changes[NOTHING] > 0.1
    assert changes[LIST] >= LEAST * changes[NOTHING]
