"""The claims of the first benchmark on a few of its cases: sliders move, a random direction does not, keeping keeps."""

import numpy as np
import pytest
import torch

from benchmarks.first import LEVEL, METHODS, PAIRS, SEED, pair_case, random_like, row, wanted_change
from benchmarks.forward_only import FINE, Slider, compare, loco_slider, summary
from benchmarks.portraits import Bench, held_out
from latent_directions.core.search import AUTOMATIC, FORWARD_ONLY


@pytest.fixture(scope="module")
def bench() -> Bench:
    with torch.inference_mode():
        return Bench()


@torch.inference_mode()
@pytest.mark.parametrize("attribute", ["smile", "mouth_opening", "hair_length"])
def test_a_slider_moves_its_attribute_and_a_random_direction_does_not(bench, attribute):
    case = held_out(attribute, 0, SEED)
    inversion, sigmas = bench.encode(case, LEVEL)
    image_only, options = METHODS["HSDS image only"]
    both, _ = bench.find(case, inversion, "HSDS")
    image, _ = bench.find(case, inversion, image_only, **options)
    moved = row(bench, case, "HSDS", inversion, sigmas, both)
    random = row(bench, case, "random", inversion, sigmas, random_like(image, 0))
    assert moved["spearman"] >= 0.9
    assert moved["reached"]
    assert moved["leakage"] <= 0.5
    assert random["change"] <= moved["change"] / 4


@torch.inference_mode()
def test_keep_prompts_halve_what_goes_along(bench):
    attribute, along, without, present = PAIRS[0]
    leaks = {"text": [], "keep": []}
    for number in range(3):
        case = pair_case(attribute, along, without, present, number)
        inversion, sigmas = bench.encode(case, LEVEL)
        for name, method, keep in (("text", "text", ""), ("keep", "HSDS", case.keep)):
            direction, _ = bench.find(case, inversion, method, keep=keep)
            leaks[name].append(row(bench, case, name, inversion, sigmas, direction)["leaks"][along])
    assert np.mean(leaks["keep"]) <= np.mean(leaks["text"]) / 2


def test_searches_are_compared_at_the_change_that_the_automatic_one_reaches():
    case = held_out("smile", 0, SEED)
    third = wanted_change("smile")
    weak = Slider(third * FINE / 6, 0.1 * FINE, 0, 1, 100, 1.0)  # half of what is wanted at strength 3
    strong = Slider(third * FINE / 3, 0.2 * FINE, 0, 1, 40, 1.0)
    automatic, forward = compare(case, "LOCO", {AUTOMATIC: weak, FORWARD_ONLY: strong})
    assert automatic["reached"] and forward["reached"]
    assert automatic["leakage"] == pytest.approx(0.3)
    assert forward["leakage"] == pytest.approx(0.3)
    (line, other) = summary([automatic, forward])
    assert line["search"] == "LOCO, automatic"
    assert (other["reached automatic's change"], other["automatic reached its"]) == (1.0, 0.0)
    assert other["over automatic's"] == pytest.approx(1.0)


@torch.inference_mode()
def test_a_direction_without_a_backward_pass_moves_its_attribute(bench):
    case = held_out("smile", 0, SEED)
    inversion, sigmas = bench.encode(case, LEVEL)
    encoded = inversion, sigmas, bench.unmoved(inversion, sigmas)
    slider = loco_slider(bench, case, encoded, FORWARD_ONLY)
    assert slider.change.max() >= wanted_change("smile")
    assert slider.evaluations <= 40
