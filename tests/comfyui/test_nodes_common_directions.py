"""Find Common Directions: means over pictures, principal components, and what Transfer Direction makes of them."""

import json
from dataclasses import replace

import pytest
import torch
from families import Family, sd1, sd3
from node_runs import edit, find, invert, loaded, picture, sample

from latent_directions.core.geometry import grassmann_distance
from latent_directions.nodes.common_directions import COMPONENTS, MEAN, SUBSPACE, FindCommonDirections
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider
from latent_directions.nodes.transfer import AS_IT_IS, TransferDirection


@pytest.fixture(scope="module", params=[sd1, sd3], ids=lambda family: family.__name__)
def case(request):
    """A model, and three pictures encoded together."""
    test_model = loaded(Family(request.param.__name__, request.param))
    return test_model, invert(test_model, picture(test_model, batch=3), method="seeded noise")


def common(case, **options) -> tuple[list, dict]:
    test_model, encoded = case
    with torch.inference_mode():
        found, report = FindCommonDirections.execute(test_model.model, encoded.inversion, **options).args[:2]
    return found, json.loads(report)


def alone(encoded, number: int):
    """One picture of a batch, as Find Common Directions looks at it."""
    inversion, own = encoded.inversion, slice(number, number + 1)
    latent = {"samples": inversion.latent["samples"][own]}
    return replace(inversion, latent=latent, paths=replace(inversion.paths, base=inversion.paths.base[own]))


def changes_of(directions) -> torch.Tensor:
    return torch.stack([direction.feature.change for direction in directions])


@pytest.mark.parametrize("how", [MEAN, SUBSPACE, COMPONENTS])
def test_directions_are_orthonormal_and_move_nothing_themselves(case, how):
    directions, report = common(case, how=how, count=2)
    rows = changes_of(directions).flatten(1).double()
    assert torch.allclose(rows @ rows.T, torch.eye(2).double(), atol=1e-4)
    assert all(direction.latent is None and direction.words is None for direction in directions)
    assert report["pictures"] == 3
    assert report["model_evaluations"] > (0 if how == COMPONENTS else 3 * 10)
    assert [row["name"] for row in report["found"]] == ["common direction 1", "common direction 2"]
    with pytest.raises(InputError, match="Connect it to Transfer Direction first"):
        DirectionSlider.execute(alone(case[1], 0), directions, 0, 1.0)


def test_the_mean_of_equal_pictures_is_what_pullback_finds(case):
    """Two copies of one picture: each direction is that of the picture, and the subspaces do not spread."""
    test_model, encoded = case
    one = alone(encoded, 0)
    twice = replace(
        one,
        latent={"samples": one.latent["samples"].repeat(2, 1, 1, 1)},
        paths=replace(one.paths, base=one.paths.base.repeat(2, 1, 1, 1)),
    )
    with torch.inference_mode():
        found, report = FindCommonDirections.execute(test_model.model, twice, how=MEAN, count=2).args[:2]
        spans, told = FindCommonDirections.execute(test_model.model, twice, how=SUBSPACE, count=2).args[:2]
    own, _ = find(test_model, one, "pullback", count=2, clip=None)
    assert grassmann_distance(changes_of(found), changes_of(own)) < 1e-2
    assert grassmann_distance(changes_of(spans), changes_of(own)) < 1e-2
    assert [row["agreement"] for row in json.loads(report)["found"]] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert json.loads(told)["found"][0]["spread_in_radians"] == pytest.approx(0.0, abs=1e-3)


def test_components_are_those_of_the_features(case):
    directions, report = common(case, how=COMPONENTS, count=5)
    assert len(directions) == 2
    assert "Only 2 directions were found in place of 5" in report["remarks"][-1]
    assert report["model_evaluations"] == 3
    first, second = (row["standard_deviation"] for row in report["found"])
    assert first >= second > 0


@pytest.mark.parametrize(("how", "level"), [(MEAN, 0.6), (COMPONENTS, 0.6), (COMPONENTS, 0.3)])
def test_carried_to_a_picture_they_move_it(case, how, level):
    test_model, encoded = case
    directions, _ = common(case, how=how, count=1)
    other = invert(test_model, picture(test_model, seed=9), method="seeded noise", level=level)
    with torch.inference_mode():
        made, report = TransferDirection.execute(test_model.model, other.inversion, directions).args[:2]
    (row,) = json.loads(report)["directions"]
    assert 0 < row["cosine_inside_the_network"] <= 1
    assert made[0].latent.shape == other.inversion.latent["samples"].shape[1:]
    assert float(made[0].latent.norm()) == pytest.approx(1)
    assert row["change"] == pytest.approx(0.25, rel=1e-2)
    assert made[0].sigma == other.inversion.sigma
    samples = edit(test_model, other, made[0], 1.0)
    assert not torch.allclose(samples, other.latent["samples"].to(samples), atol=1e-3)
    assert torch.equal(edit(test_model, other, made[0], 0.0), sample(test_model, other))


def test_what_cannot_be_done_gets_a_sentence(case):
    test_model, encoded = case
    with pytest.raises(InputError, match="'inversion' holds one picture, and common directions need at least two"):
        FindCommonDirections.execute(test_model.model, alone(encoded, 0))
    with pytest.raises(InputError, match="block"):
        common(case, block=99)
    directions, _ = common(case, how=COMPONENTS, count=1)
    with pytest.raises(InputError, match="has no move of the latent that could be taken as it is"):
        TransferDirection.execute(test_model.model, alone(encoded, 0), directions, move=AS_IT_IS)
    elsewhere = [replace(directions[0], feature=replace(directions[0].feature, layer="another layer"))]
    with pytest.raises(InputError, match="was found at the layer 'another layer', which this model does not have"):
        TransferDirection.execute(test_model.model, alone(encoded, 0), elsewhere)
