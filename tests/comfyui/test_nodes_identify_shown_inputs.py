"""What the page hides because a method does without it has no effect on what that method finds."""

import pytest
import torch
from families import Family, sd3
from node_runs import find, invert, loaded

from latent_directions.core.methods import METHODS
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.identify_shown_inputs import inputs_of

OTHER_VALUES = {
    "source": "an old person",
    "target": "a young person",
    "keep": "hat | cap",
    "count": 1,
    "hold_outside": 1,
    "free": "person",
    "guidance": 3.0,
    "image_share": 0.9,
    "text_share": 0.2,
    "derivatives": "central differences",
    "seed": 5,
    "find_keeps": "people",
    "candidates": "with hat | without hat",
    "where": "found",
    "preset": "LOCO, animals (AFHQ, P2)",
    "look_at": "picture",
    "guided": True,
    "projection": "project after",
    "path": "geodesic shooting",
    "path_steps": 3,
    "block": 2,
}


@pytest.fixture(scope="module")
def encoded():
    test_model = loaded(Family("sd3", sd3))
    return test_model, invert(test_model)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_that_a_method_does_without_change_nothing(encoded, name):
    test_model, inverted = encoded
    unused = {key: value for key, value in OTHER_VALUES.items() if key not in inputs_of(METHODS[name])}
    assert unused
    expected, found = (find(test_model, inverted.inversion, name, **changes)[0] for changes in ({}, unused))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.name, one.step, len(one.keep)) == (other.name, other.step, len(other.keep))
        assert (one.words is None) == (other.words is None)
        assert one.words is None or one.words.share == other.words.share
        for mine, theirs in ((one.latent, other.latent), (one.mask, other.mask)):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


def test_every_input_with_a_value_is_used_by_a_method():
    valued = {given.id for given in FindDirections.define_schema().inputs if hasattr(given, "default")} - {"method"}
    assert valued == set(OTHER_VALUES)
    assert valued <= {name for method in METHODS.values() for name in inputs_of(method)}
