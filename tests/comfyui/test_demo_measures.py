import numpy as np
import pytest

from latent_directions.demo import measures
from latent_directions.demo.world import ATTRIBUTES


def test_attributes_are_found_in_prompts_as_whole_words():
    assert measures.named_in("a person, Smiling, red hair, without glasses") == {
        "smile": "smiling",
        "hair_colour": "red hair",
        "glasses": "without glasses",
    }
    assert measures.named_in("a coloured hairdo") == {}


def test_the_target_is_what_differs():
    assert measures.target_of("a person, sad, with hat", "a person, smiling, with hat") == ("smile", "smiling")
    assert measures.target_of("a person", "a person, blond hair") == ("hair_colour", "blond hair")
    assert measures.target_of("a person", "somebody else") is None


def test_target_values_follow_the_phrase():
    hair = np.eye(len(ATTRIBUTES["hair_colour"].classes))
    values = {"smile": np.array([0.1, 0.2]), "glasses": np.array([0.25, 1.0]), "hair_colour": hair}
    assert measures.target_values(values, "smile", "smiling").tolist() == [0.1, 0.2]
    assert measures.target_values(values, "glasses", "with glasses").tolist() == [0.25, 1.0]
    assert measures.target_values(values, "glasses", "without glasses").tolist() == [0.75, 0.0]
    wanted = ATTRIBUTES["hair_colour"].classes.index("red")
    assert measures.target_values(values, "hair_colour", "red hair").tolist() == hair[:, wanted].tolist()


def test_leakage_is_measured_against_the_reference_picture():
    values = {"smile": np.array([0.5, 0.0, -1.0]), "glasses": np.array([0.9, 0.2, 0.1])}
    assert measures.leakage(values, 1, "smile") == pytest.approx(np.array([0.5, 0.0, 1.0]) / (2 / 12**0.5))
    # No glasses originally: only their appearing counts, not a surer absence.
    assert measures.leakage(values, 1, "glasses") == pytest.approx([0.7, 0.0, 0.0])


def test_changes_are_signed_and_in_the_unit_of_the_attribute():
    def values(smile, glasses, hair):
        read = {name: np.zeros(len(smile)) for name in ATTRIBUTES}
        read["background"] = np.eye(4)[np.zeros(len(smile), int)]
        return read | {"smile": np.array(smile), "glasses": np.array(glasses), "hair_colour": np.array(hair)}

    before = values([0.5], [0.9], [[0.7, 0.3, 0, 0, 0]])
    after = values([0.0, 1.0], [0.2, 1.0], [[0.2, 0.8, 0, 0, 0], [0.9, 0.1, 0, 0, 0]])
    found = measures.changes(before, after)
    assert found["smile"].change == pytest.approx(np.array([-0.5, 0.5]) / (2 / 12**0.5))
    assert found["glasses"].change == pytest.approx([-0.7, 0.1])
    assert found["hair_colour"].change == pytest.approx([-0.5, 0.2])
    first, second = ATTRIBUTES["hair_colour"].classes[:2]
    assert (found["hair_colour"].before, found["hair_colour"].after) == (first, [second, first])
    assert {change.unit for change in found.values()} == {"standard deviations", "probability"}
