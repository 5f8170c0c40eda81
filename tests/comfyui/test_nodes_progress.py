"""What a search says of itself while it runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from families import Family, sd3
from node_runs import find, invert, loaded
from server import PromptServer

from benchmarks.portraits import Bench, held_out
from latent_directions.nodes import host
from latent_directions.nodes.encode import INSTANT, INVERSION_METHODS
from latent_directions.nodes.progress import SearchProgress, result_line, show_line

# method, directions, directions of the null space, whether there is a mask
SEARCHES = [
    ("LOCO", 1, 0, False),
    ("LOCO", 3, 5, False),
    ("LOCO", 1, 5, True),
    ("LOCO", 3, 5, True),
    ("LOCO", 8, 12, True),
    ("T-LOCO", 1, 0, True),
    ("T-LOCO", 1, 5, True),
    ("HSDS", 1, 5, True),
    ("HSDS", 1, 5, False),
    ("HSDS low-pass", 1, 5, True),
    ("DDS", 1, 5, False),
    ("explore", 12, 5, True),  # a second search on a picture takes nothing
]


@pytest.fixture
def bars(monkeypatch):
    """What every progress bar was told to expect."""
    expected = []

    class Noted(SearchProgress):
        def __init__(self, number):
            expected.append(number)
            super().__init__(number)

    monkeypatch.setattr(host, "SearchProgress", Noted)
    return expected


@pytest.fixture(scope="module")
def small():
    test_model = loaded(Family("sd3", sd3))
    return test_model, invert(test_model).inversion


@torch.inference_mode()
@pytest.mark.parametrize("derivatives", ["automatic", "forward only", "central differences", "double backward"])
def test_searches_take_about_what_their_bars_expect(bars, derivatives):
    bench, case = Bench(), held_out("smile", 0, 80001)
    inversion, _ = bench.encode(case, 0.5)
    for method, count, null_rank, masked in SEARCHES:
        options = {"count": count, "hold_outside": null_rank, "derivatives": derivatives}
        _, report = bench.find(case, inversion, method, masked=masked, **options)
        share = report["model_evaluations"] / bars[-1]
        assert 0.7 <= share <= 1.6, (method, options, masked, share)


@pytest.mark.parametrize("keep", ["", "hat | cap"])
def test_guidance_and_keep_prompts_count(bars, small, keep):
    test_model, inversion = small
    options = {"keep": keep, "guidance": 3.0, "negative": test_model.negative}
    _, report = find(test_model, inversion, "DDS", **options)
    assert json.loads(report)["model_evaluations"] == bars[-1]


@pytest.mark.parametrize("method", [method for method in INVERSION_METHODS if method not in INSTANT])
def test_inversions_take_exactly_what_their_bars_expect(bars, method):
    encoded = invert(loaded(Family("sd3", sd3)), method=method)
    assert json.loads(encoded.report)["model_evaluations"] == bars[-1]


def test_time_left(monkeypatch):
    said = []
    server = SimpleNamespace(send_progress_text=lambda *text: said.append(text))
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    with CurrentNodeContext("prompt", "7"):
        progress = SearchProgress(40)
        progress.started -= 2
        progress(10)
        progress(11)  # too soon after the first
        progress.started, progress.shown = progress.started - 6, 0.0
        progress(50)
        pictures = SearchProgress(4, "pictures")
        pictures.started -= 3
        pictures(1)
        show_line(result_line(1, "direction", 3.2))
        show_line(result_line(2, "direction", 0.2))
    assert said == [
        ("10 of about 40 model evaluations, 6 s left", "7"),
        ("50 of about 40 model evaluations, 0 s left", "7"),
        ("1 of about 4 pictures, 9 s left", "7"),
        ("1 direction, 3 s", "7"),
        ("2 directions, less than 1 s", "7"),
    ]
