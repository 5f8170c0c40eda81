from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from latent_directions.demo import world
from latent_directions.demo.architecture import UNKNOWN, WordTokenizer

RNG_SEED = 7


def portraits(count, correlated=True):
    rng = np.random.default_rng(RNG_SEED)
    return [world.sample_portrait(rng, correlated) for _ in range(count)]


def column(people, name):
    return np.array([getattr(p, name) for p in people], dtype=float)


def correlations(correlated):
    people = portraits(8000, correlated)
    grey, yellow = (
        np.array([v == c for v in values], dtype=float)
        for values, c in (([p.hair_colour for p in people], "grey"), ([p.background for p in people], "yellow"))
    )
    return {
        "smile and mouth opening": np.corrcoef(column(people, "smile"), column(people, "mouth_opening"))[0, 1],
        "smile and brow angle": np.corrcoef(column(people, "smile"), column(people, "brow_angle"))[0, 1],
        "grey hair and glasses": np.corrcoef(grey, column(people, "glasses"))[0, 1],
        "yellow background and hat": np.corrcoef(yellow, column(people, "hat"))[0, 1],
    }


def test_the_world_is_correlated_as_its_table_says():
    found = correlations(True)
    expected = {
        "smile and mouth opening": 0.58,
        "smile and brow angle": -0.38,
        "grey hair and glasses": 0.49,
        "yellow background and hat": 0.57,
    }
    assert found == pytest.approx(expected, abs=0.04)


def test_the_uncorrelated_world_has_no_correlations():
    assert all(abs(value) < 0.04 for value in correlations(False).values())


def test_every_combination_occurs_in_the_correlated_world():
    people = portraits(20000)
    seen = {(p.hair_colour, p.glasses, p.hat, p.background) for p in people}
    assert seen == set(product(world.HAIR, (False, True), (False, True), world.BACKGROUND))
    words = {
        (
            world.ATTRIBUTES["smile"].phrase(p.smile),
            world.ATTRIBUTES["mouth_opening"].phrase(p.mouth_opening),
            world.ATTRIBUTES["brow_angle"].phrase(p.brow_angle),
        )
        for p in people
    }
    assert len(words) == 27


@pytest.mark.parametrize("name", world.ATTRIBUTES)
def test_every_attribute_shows_in_the_picture(name):
    attribute = world.ATTRIBUTES[name]
    values = attribute.range_5_95 if attribute.kind == "continuous" else attribute.classes
    for person in portraits(20, correlated=False):
        shown = [world.draw(replace(person, **{name: value})).astype(int) for value in values]
        assert np.abs(shown[0] - shown[-1]).max(axis=-1).clip(0, 40).sum() > 300


def test_the_same_seed_gives_the_same_picture():
    first, second = (world.sample_pool(3, seed=5)[1] for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == (3, 64, 64, 3)
    assert (first == second).all()


def test_full_captions_are_true_and_keep_their_slots():
    tokenizer, lengths = WordTokenizer(), set()
    for person in portraits(300):
        text = world.caption(person)
        tokens = tokenizer(text)["input_ids"]
        assert UNKNOWN not in tokens
        lengths.add(len(tokens))
        for name, attribute in world.ATTRIBUTES.items():
            assert attribute.names(attribute.phrase(getattr(person, name)), getattr(person, name))
            assert attribute.phrase(getattr(person, name)) in text
    assert len(lengths) == 1
    assert lengths.pop() <= world.MAX_TOKENS


def test_training_captions_leave_attributes_out():
    rng = np.random.default_rng(0)
    texts = [world.caption(p, rng) for p in portraits(3000)]
    share = np.mean(["glasses" in text for text in texts])
    assert 0.35 < share < 0.6
    assert "" in texts
    assert "a person" in texts


def test_a_caption_names_only_what_is_asked_for():
    person = world.Portrait(smile=0.9, glasses=True)
    assert world.caption(person, attributes=["glasses", "smile"]) == "a portrait of a person, smiling, with glasses"
    with pytest.raises(ValueError, match="Unknown attributes.*beard.*Known are: smile"):
        world.caption(person, attributes=["beard"])


def test_masks_cover_what_their_attribute_changes():
    cover = {"smile": ("mouth",), "mouth_opening": ("mouth",), "eye_size": ("eyes",), "hair_colour": ("hair",)}
    for person in portraits(20, correlated=False):
        regions = world.masks(person)
        assert {name: set(np.unique(mask)) for name, mask in regions.items()} == dict.fromkeys(regions, {0.0, 1.0})
        for name, (region,) in cover.items():
            attribute = world.ATTRIBUTES[name]
            values = (attribute.low, attribute.high) if attribute.kind == "continuous" else attribute.classes[:2]
            one, other = (world.draw(replace(person, **{name: v})).astype(int) for v in values)
            changed = np.abs(one - other).max(axis=-1) > 40
            assert (changed & (regions[region] > 0)).sum() >= 0.9 * changed.sum() > 0
