"""Transfer Direction: other pictures, sizes and seeds; what it measures, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from families import CORE, Family, sd1, sd3
from more_families import wan
from node_runs import edit, find, invert, loaded, picture, sample

from latent_directions.core.direction import Distilled, Feature
from latent_directions.core.search import CHANGE
from latent_directions.nodes.combine import CombineDirections
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider
from latent_directions.nodes.transfer import AS_IT_IS, NOT_MEASURED, ONE, TransferDirection

MASK = torch.zeros(1, 64, 64)
MASK[:, 16:48, 16:48] = 1


def transfer(test_model, encoded, directions, **options) -> tuple[list, dict]:
    with torch.inference_mode():
        made, report = TransferDirection.execute(test_model.model, encoded.inversion, directions, **options).args[:2]
    return made, json.loads(report)


class TestTransfer:
    @pytest.fixture(scope="class")
    def case(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model)
        directions, _ = find(test_model, encoded.inversion, "LOCO", count=2)
        return test_model, encoded, directions

    def test_at_its_own_picture_nothing_changes(self, case):
        test_model, encoded, directions = case
        made, report = transfer(test_model, encoded, directions)
        assert report["model_evaluations"] == 7 + 3 * 2
        for before, after, row in zip(directions, made, report["directions"], strict=True):
            assert torch.equal(before.latent, after.latent)
            assert after.step == pytest.approx(before.step, rel=1e-3)
            assert row["effect_kept"] == pytest.approx(1.0, abs=1e-3)
            assert row["change"] == pytest.approx(CHANGE, rel=1e-3)
            assert row["strength"] > 1
            assert row["name"] in report["summary"]

    def test_another_picture_and_another_seed(self, case):
        """The same moves; the steps follow what they do there."""
        test_model, _, directions = case
        other = invert(test_model, picture(test_model, seed=8), method="seeded noise", seed=4)
        made, report = transfer(test_model, other, directions)
        for before, after, row in zip(directions, made, report["directions"], strict=True):
            assert torch.equal(before.latent, after.latent)
            assert row["change_with_step_before"] / before.step == pytest.approx(row["change"] / after.step, rel=1e-3)
            assert row["change"] <= CHANGE * 1.001
            assert f"carries {row['carries']}" in row["sentence"]
            samples = edit(test_model, other, after, 1.0)
            assert torch.isfinite(samples).all()
            assert not torch.allclose(samples, other.latent["samples"].to(samples), atol=1e-3)
            assert torch.equal(edit(test_model, other, after, 0.0), other.latent["samples"])

    def test_a_random_move_does_less_than_a_direction(self, case):
        test_model, encoded, (direction, *_) = case
        move = torch.randn(direction.latent.shape, generator=torch.Generator().manual_seed(2))
        _, report = transfer(test_model, encoded, [direction, replace(direction, latent=move / move.norm())])
        found, random = report["directions"]
        assert found["strength"] > 2 * random["strength"]

    def test_another_size(self, case):
        """The move is resampled, and so is its mask; the slider refuses it without that."""
        test_model, encoded, (direction, *_) = case
        mask = torch.zeros(1, 8, 8)
        mask[:, 2:6, 2:6] = 1
        direction = replace(direction, mask=mask)
        larger = invert(test_model, picture(test_model, size=(12, 16)))
        with pytest.raises(InputError, match="has a mask of 8 x 8 cells.*Put Transfer Direction before this node"):
            DirectionSlider.execute(larger.inversion, [direction], 0, 1.0)
        (made,), report = transfer(test_model, larger, [direction])
        assert made.latent.shape == (16, 12, 16)
        assert float(made.latent.norm()) == pytest.approx(1.0, abs=1e-4)
        assert made.mask.shape == (1, 12, 16)
        assert 0.05 < float(made.mask.mean()) < 0.5
        (row,) = report["directions"]
        assert row["resampled_from"] == "16 x 8 x 8"
        assert row["step_before"] == pytest.approx(direction.step * (12 * 16 / 64) ** 0.5, rel=1e-5)
        assert 0 < row["share_inside_mask"] < 1
        assert torch.isfinite(edit(test_model, larger, made, 1.0)).all()

    def test_another_noise_level(self, case):
        test_model, _, (direction, *_) = case
        higher = invert(test_model, level=0.8)
        (made,), _ = transfer(test_model, higher, [direction])
        assert made.sigma == higher.inversion.sigma
        model, positive, noise, _ = DirectionSlider.execute(higher.inversion, [made], 0, 1.0).args
        sample(test_model, higher, model=model, positive=positive, noise=noise)
        assert higher.inversion.statistics.last_remarks == []

    def test_one_of_several(self, case):
        test_model, encoded, directions = case
        made, report = transfer(test_model, encoded, directions, which=ONE, index=1)
        assert [one.name for one in made] == [directions[1].name]
        assert len(report["directions"]) == 1
        with pytest.raises(InputError, match="'index' is 2, but there are 2 directions"):
            transfer(test_model, encoded, directions, which=ONE, index=2)

    def test_words_are_left_as_they_are_but_for_their_mask(self, case):
        test_model, encoded, _ = case
        (words,), _ = find(test_model, encoded.inversion, "text")
        larger = invert(test_model, picture(test_model, size=(12, 12)))
        (made, masked), report = transfer(test_model, larger, [words, replace(words, mask=torch.ones(1, 8, 8))])
        assert made.words is words.words
        assert masked.mask.shape == (1, 12, 12)
        assert report["model_evaluations"] == 0
        assert [row["carries"] for row in report["directions"]] == [NOT_MEASURED, NOT_MEASURED]
        assert torch.isfinite(edit(test_model, larger, masked, 1.0)).all()

    def test_steps_that_words_have_set_are_kept(self, case):
        """Of HSDS, whose latent and words move together, and of T-LOCO, whose step is that of its words."""
        test_model, encoded, _ = case
        other = invert(test_model, picture(test_model, seed=8))
        for method in ("HSDS", "T-LOCO"):
            (direction,), _ = find(test_model, encoded.inversion, method, count=1)
            (made,), report = transfer(test_model, other, [direction])
            assert made.step == pytest.approx(direction.step)
            assert made.words is direction.words
            assert "effect_kept" not in report["directions"][0]

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("LOCO", {"mask": MASK}),
            ("LOCO", {"preset": "LOCO, animals (AFHQ, P2)"}),
            ("explore", {"count": 16}),
            ("explore", {"mask": MASK}),
            ("pullback", {"path": "x-space guidance", "path_steps": 2}),
        ],
        ids=["LOCO in a mask", "LOCO as published", "explore", "explore in a mask", "pullback along a path"],
    )
    def test_at_its_own_picture_the_step_stays(self, case, method, options):
        test_model, encoded, _ = case
        directions, _ = find(test_model, encoded.inversion, method, clip=None, **{"count": 2, **options})
        made, report = transfer(test_model, encoded, directions, move=AS_IT_IS)
        for before, after, row in zip(directions, made, report["directions"], strict=True):
            assert after.step == pytest.approx(before.step, rel=2e-2)
            assert row["effect_kept"] == pytest.approx(1.0, rel=2e-2)
            assert after.notes["change"] == pytest.approx(row["change"], abs=1e-4)

    def test_a_step_whose_effect_is_not_known_is_kept(self, case):
        """Of a guided search, whose effects are those of another prediction; and of an older file."""
        test_model, encoded, (direction, *_) = case
        guided = {"guided": True, "guidance": 3.0, "negative": test_model.negative}
        (found,), _ = find(test_model, encoded.inversion, "LOCO", count=1, clip=None, **guided)
        older = replace(direction, notes={})
        for made, before in zip(transfer(test_model, encoded, [found, older])[0], (found, older), strict=True):
            assert made.step == before.step
            assert "change" not in made.notes

    @pytest.mark.parametrize("amount", [1.0, 3.0])
    def test_a_sum_keeps_its_length(self, case, amount):
        test_model, encoded, directions = case
        with torch.inference_mode():
            (added,) = CombineDirections.execute(directions, 0, directions, "add", amount).args[0]
        (made,), _ = transfer(test_model, encoded, [added])
        assert made.step == pytest.approx(added.step)

    def test_what_belongs_to_the_other_picture_is_left_out(self, case):
        test_model, encoded, (direction, *_) = case
        prepared = replace(direction, distilled=Distilled(direction.latent, direction.latent, "0" * 64, 0.0))
        (made,), _ = transfer(test_model, encoded, [prepared])
        assert made.distilled is None

    def test_what_does_not_fit(self, case):
        test_model, encoded, (direction, *_) = case
        with pytest.raises(InputError, match="found on a model of the family Flux"):
            transfer(test_model, encoded, [replace(direction, family="Flux")])
        with pytest.raises(InputError, match="moves a latent of 4 x 8 x 8, .* differ in more than rows and columns"):
            transfer(test_model, encoded, [replace(direction, latent=torch.ones(4, 8, 8))])
        edge = torch.zeros(1, 8, 8)
        edge[:, 0] = 1
        wide = invert(test_model, picture(test_model, size=(4, 16)))
        with pytest.raises(InputError, match="acts in a part of the picture that is cut off"):
            transfer(test_model, wide, [replace(direction, mask=edge)])
        two = invert(test_model, picture(test_model, batch=2))
        with pytest.raises(InputError, match="'inversion' holds 2 pictures"):
            transfer(test_model, two, [direction])
        with pytest.raises(InputError, match="'model' is of the family SD15"):
            transfer(loaded(CORE[0]), encoded, [direction])

    def test_a_feature_of_an_unknown_layer_or_another_size(self, case):
        """The move is taken as it is, and the report says why."""
        test_model, encoded, (direction, *_) = case
        for feature, said in (
            (Feature(torch.ones(3) / 3**0.5, "a layer"), "has no layer 'a layer'"),
            (Feature(torch.ones(3) / 3**0.5, "joint_blocks 1 of 2"), "was not carried over by what it changes"),
        ):
            (made,), report = transfer(test_model, encoded, [replace(direction, feature=feature)])
            assert torch.equal(made.latent, direction.latent)
            assert said in report["directions"][0]["sentence"]


@pytest.mark.parametrize("family", [Family("sd1", sd1), Family("sd3", sd3)], ids=str)
def test_pullback_directions_are_carried_over_by_what_they_change_inside_the_network(family):
    """At their own picture they come back; at another one the move is another, and makes the change better."""
    from latent_directions.core.pullback import pullback
    from latent_directions.core.search import Search, Settings
    from latent_directions.nodes.features import find_layer
    from latent_directions.nodes.search_at_picture import at_picture

    test_model = loaded(family)
    encoded, other = invert(test_model), invert(test_model, picture(test_model, seed=8))
    layer = find_layer(test_model.model.get_model_object("diffusion_model"), 1).name

    def body(search: Search):
        return pullback(replace(search, settings=Settings(count=2)))

    with torch.inference_mode():
        (first, _), _ = at_picture(test_model.model, encoded.inversion, body, expected=100, block=1)
    (like, *_), _ = find(test_model, encoded.inversion, "LOCO", count=1)
    direction = replace(
        like,
        method="pullback",
        latent=first.vector[0],
        step=first.step,
        feature=Feature(first.feature[0], layer),
    )
    (back,), report = transfer(test_model, encoded, [direction])
    assert abs(float((back.latent * direction.latent).sum())) > 0.99
    assert back.step == pytest.approx(direction.step, rel=0.05)
    assert report["directions"][0]["cosine_inside_the_network"] > 0.99
    (carried,), report = transfer(test_model, other, [direction])
    cosine = report["directions"][0]["cosine_inside_the_network"]
    assert 0 < cosine <= 1 + 1e-5
    assert carried.feature.layer == layer
    assert float((carried.feature.change * direction.feature.change).sum()) == pytest.approx(cosine, abs=1e-3)
    assert not torch.allclose(carried.latent, direction.latent, atol=1e-3)
    assert torch.isfinite(edit(test_model, other, carried, 1.0)).all()
    (same,), report = transfer(test_model, other, [direction], move=AS_IT_IS)
    assert torch.equal(same.latent, direction.latent)
    assert report["model_evaluations"] == 10


def test_latents_with_an_axis_of_time():
    test_model = loaded(Family("wan", wan))
    encoded = invert(test_model)
    (direction, *_), _ = find(test_model, encoded.inversion, "LOCO", count=1)
    larger = invert(test_model, picture(test_model, size=(12, 8)))
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1
    (made,), report = transfer(test_model, larger, [replace(direction, mask=mask)])
    assert made.latent.shape == (*direction.latent.shape[:-2], 12, 8)
    assert 0 < report["directions"][0]["share_inside_mask"] < 1
    assert torch.isfinite(edit(test_model, larger, made, 1.0)).all()
