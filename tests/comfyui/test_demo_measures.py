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
