"""The table of methods is what the node, its progress bar and its help read: a new row is all they need."""

import json

import pytest
import torch
from families import Family, sd3
from node_runs import find, invert, loaded

from latent_directions.core.methods import METHODS
from latent_directions.core.search import FoundDirection, Method
from latent_directions.nodes import host
from latent_directions.nodes.identify import FindDirections
from scripts.node_help import PAGE, with_methods


@pytest.fixture
def row(monkeypatch) -> Method:
    """A new method: one evaluation, and a move along the prediction."""

    def run(search) -> list[FoundDirection]:
        prediction = search.denoiser(search.x, search.sigma)
        return [FoundDirection(prediction / prediction.norm(), 0.5, {"mask": search.mask is not None})]

    method = Method("towards the prediction", "along what the model predicts", run, lambda *_: 1, ("mask",), False)
    monkeypatch.setitem(METHODS, method.name, method)
    return method


def test_a_new_row_is_offered_and_runs(row, monkeypatch):
    expected = []
    monkeypatch.setattr(host, "SearchProgress", lambda number: expected.append(number) or (lambda done: None))
    inputs = {given.id: given for given in FindDirections.define_schema().inputs}
    assert row.name in inputs["method"].options
    assert f"{row.name}: {row.summary}." in inputs["method"].tooltip
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model)
    expected.clear()
    (direction,), report = find(test_model, encoded.inversion, row.name, clip=None)
    report = json.loads(report)
    assert (direction.method, direction.step, direction.words) == (row.name, 0.5, None)
    assert float(direction.latent.norm()) == pytest.approx(1)
    assert report["model_evaluations"] == expected[0] == 1
    assert report["found"][0]["mask"] is False
    assert torch.isfinite(direction.latent).all()


def test_tooltips_name_the_methods_that_read_an_input():
    inputs = {given.id: given.tooltip for given in FindDirections.define_schema().inputs}
    for setting, given in (("null_rank", "hold_outside"), ("free", "free"), ("count", "count")):
        readers = [name for name, method in METHODS.items() if setting in method.reads]
        assert readers
        assert all(name in inputs[given] for name in readers)


def test_the_help_page_is_that_of_the_table(row):
    page = PAGE.read_text(encoding="utf-8")
    assert f"- **{row.label or row.name}** (in the API `{row.name}`): {row.summary}.\n" in with_methods(page)
    METHODS.pop(row.name)
    assert with_methods(page) == page, "run scripts/node_help.py"
