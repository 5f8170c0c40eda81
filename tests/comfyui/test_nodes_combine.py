"""Combine Directions: a sum is a chain of sliders, and a direction without what the others change."""

import json
from dataclasses import replace

import pytest
import torch
from families import CORE, Family, sd3
from more_families import wan
from node_runs import edit, find, invert, loaded, picture, sample

from latent_directions.core.direction import Direction
from latent_directions.core.errors import NothingLeftError
from latent_directions.nodes.combine import ADD, HOLD, CombineDirections
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider


def combine(directions, index=0, others=None, **options) -> tuple[Direction, dict]:
    with torch.inference_mode():
        found, report = CombineDirections.execute(directions, index, others, **options).args[:2]
    (direction,) = found
    return direction, json.loads(report)


class TestCombine:
    @pytest.fixture(scope="class")
    def case(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model)
        directions, _ = find(test_model, encoded.inversion, "LOCO", count=3)
        return test_model, encoded, directions

    def cells(self, case, columns: slice) -> torch.Tensor:
        mask = torch.zeros(1, *case[1].latent["samples"].shape[-2:])
        mask[..., columns] = 1
        return mask

    def test_a_sum_is_a_chain_of_sliders(self, case):
        """Moves, masks and keeps of all."""
        test_model, encoded, directions = case
        (words,), _ = find(test_model, encoded.inversion, "text", keep="a hat | a cap\nglasses | no glasses")
        a = replace(directions[0], mask=self.cells(case, slice(0, 3)), keep=words.keep[:1])
        b = replace(directions[1], mask=self.cells(case, slice(2, 6)), keep=words.keep)
        both, report = combine([a], 0, [b], how=ADD, amount=-0.5)
        assert report["name"] == both.name == f"{a.name} and -0.5 of {b.name}"
        assert torch.equal(both.mask, torch.maximum(a.mask, b.mask))
        assert both.keep == words.keep
        inversion = encoded.inversion
        for direction, strength in ((a, 0.8), (b, -0.4)):
            model, positive, noise, inversion = DirectionSlider.execute(inversion, [direction], 0, strength).args
        chain = sample(test_model, encoded, model=model, positive=positive, noise=noise)
        assert torch.allclose(edit(test_model, encoded, both, 0.8), chain, atol=1e-4 * float(chain.abs().max()))

    def test_a_sum_acts_everywhere_where_one_does(self, case):
        a, b = case[2][:2]
        assert combine([a], 0, [replace(b, mask=self.cells(case, slice(2, 6)))], how=ADD)[0].mask is None
        alone, _ = combine([a], 0, [replace(b, mask=None)], how=ADD, amount=0.0)
        assert torch.equal(alone.latent, a.latent)
        assert alone.step == a.step

    def test_a_sum_of_opposites(self, case):
        a = case[2][0]
        with pytest.raises(NothingLeftError, match="cancel each other"):
            combine([a], 0, [replace(a)], how=ADD, amount=-1.0)

    def test_what_the_others_change_is_held(self, case):
        """Measured anew: the effect at strength 1 is as large as before, and orthogonal to the others'."""
        test_model, encoded, directions = case
        a, b, c = directions
        mixed = replace(a, latent=(a.latent + 0.5 * b.latent + 0.3 * c.latent) / 1.34**0.5)
        found, report = combine([mixed], 0, [b, c], model=test_model.model, inversion=encoded.inversion)
        assert found.name == f"{a.name} without {b.name}, {c.name}"
        assert float(found.latent.norm()) == pytest.approx(1.0, abs=1e-5)
        assert report["model_evaluations"] == 7 + 2 * 3
        assert report["self_check"]["sentence"]
        for cosine in report["cosines"]:
            assert abs(cosine["before"]) > 0.05
            assert abs(cosine["after"]) < 1e-3
        again, second = combine([found], 0, [b, c], model=test_model.model, inversion=encoded.inversion)
        assert torch.allclose(again.latent, found.latent, atol=1e-3)
        assert second["effect_left"] == pytest.approx(1.0, abs=1e-3)
        assert again.step == pytest.approx(found.step, rel=1e-3)

    def test_without_a_model_the_moves_are_made_orthogonal_and_the_report_says_so(self, case):
        a, b, _ = case[2]
        mixed = replace(a, latent=(a.latent + b.latent) / 2**0.5)
        found, report = combine([mixed], 0, [b])
        assert abs(float((found.latent * b.latent).sum())) < 1e-4
        assert found.step == pytest.approx(mixed.step, rel=1e-5)
        assert report["model_evaluations"] == 0
        assert any("does not hold what the others change" in remark for remark in report["remarks"])

    def test_the_others_of_one_list(self, case):
        directions = case[2]
        found, report = combine(directions, 1, directions)
        assert report["others"] == [directions[0].name, directions[2].name]
        assert found.name.startswith(f"{directions[1].name} without")
        with pytest.raises(InputError, match="'others' holds no other direction than the one at 'index'"):
            combine(directions[:1], 0, directions[:1])

    def test_little_that_is_left_is_said(self, case):
        test_model, encoded, (a, b, _) = case
        mixed = replace(a, latent=(0.2 * a.latent + b.latent) / 1.04**0.5)
        _, report = combine([mixed], 0, [b], model=test_model.model, inversion=encoded.inversion)
        assert report["effect_left"] < 0.5
        assert any("times as long as before" in remark for remark in report["remarks"])
        with pytest.raises(NothingLeftError, match="all that it changes is what the others change too"):
            combine([replace(b)], 0, [b], model=test_model.model, inversion=encoded.inversion)

    def test_a_mask_and_the_rest_stay_those_of_the_direction(self, case):
        test_model, encoded, (a, b, _) = case
        mask = self.cells(case, slice(0, 4))
        found, report = combine(
            [replace(a, mask=mask)], 0, [replace(b, mask=1 - mask)], model=test_model.model, inversion=encoded.inversion
        )
        assert torch.equal(found.mask, mask)
        assert (found.family, found.sigma, found.model) == (a.family, a.sigma, a.model)
        assert abs(report["cosines"][0]["after"]) < 1e-3

    @pytest.mark.parametrize("how", [ADD, HOLD])
    def test_another_noise_level(self, case, how):
        """Both are brought to one level, as sliders do it; without a model that cannot be done."""
        test_model, encoded, (a, b, _) = case
        higher = replace(b, sigma=0.9, step=b.step * 0.9 / a.sigma)
        measured = {"model": test_model.model, "inversion": encoded.inversion}
        same, other = (combine([a], 0, [one], how=how, **measured)[0] for one in (b, higher))
        assert torch.allclose(same.latent, other.latent, atol=1e-4)
        assert same.step == pytest.approx(other.step, rel=1e-4)
        with pytest.raises(InputError, match=r"different noise levels .*Connect 'model' and 'inversion'"):
            combine([a], 0, [higher], how=how)

    @pytest.mark.parametrize("how", [ADD, HOLD])
    def test_what_does_not_fit(self, case, how):
        test_model, encoded, (a, b, _) = case
        with pytest.raises(InputError, match="was found on a model of the family SD3, but 'direction 2' on Flux"):
            combine([a], 0, [replace(b, family="Flux")], how=how)
        with pytest.raises(InputError, match="moves a latent of 16 x 8 x 8, but .* 16 x 8 x 9. Put Transfer Direction"):
            combine([a], 0, [replace(b, latent=torch.ones(16, 8, 9))], how=how)
        (words,), _ = find(test_model, encoded.inversion, "text")
        advice = "Chain Direction Sliders" if how == ADD else "'keep' of Find Directions"
        for pair in ((a, words), (words, a)):
            with pytest.raises(InputError, match=f"moves by words, which cannot be made into one move.*{advice}"):
                combine([pair[0]], 0, [pair[1]], how=how)
        with pytest.raises(InputError, match="holds no move of the latent"):
            combine([replace(a, latent=None)], 0, [b], how=how)
        with pytest.raises(InputError, match="'index' is 3, but there are 1 directions"):
            combine([a], 3, [b], how=how)

    def test_the_model_and_the_picture_must_fit(self, case):
        test_model, encoded, (a, b, _) = case
        with pytest.raises(InputError, match="'inversion' is missing: 'model' and 'inversion' are used together"):
            combine([a], 0, [b], model=test_model.model)
        with pytest.raises(InputError, match="'model' is missing"):
            combine([a], 0, [b], inversion=encoded.inversion)
        with pytest.raises(InputError, match="'model' is of the family SD15, but the picture was inverted with SD3"):
            combine([a], 0, [b], model=loaded(CORE[0]).model, inversion=encoded.inversion)
        two = invert(test_model, picture(test_model, batch=2))
        with pytest.raises(InputError, match="'inversion' holds 2 pictures"):
            combine([a], 0, [b], model=test_model.model, inversion=two.inversion)
        wide = invert(test_model, picture(test_model, size=(8, 12)))
        with pytest.raises(InputError, match="this picture's is 16 x 8 x 12. Put Transfer Direction before this node"):
            combine([a], 0, [b], model=test_model.model, inversion=wide.inversion)


def test_latents_with_an_axis_of_time():
    """Pictures of video models, whose directions have a fourth axis."""
    test_model = loaded(Family("wan", wan))
    encoded = invert(test_model)
    (a, b), _ = find(test_model, encoded.inversion, "LOCO", count=2)
    mask = torch.zeros(1, *a.latent.shape[-2:])
    mask[..., :4] = 1
    found, report = combine([replace(a, mask=mask)], 0, [b], model=test_model.model, inversion=encoded.inversion)
    assert found.latent.shape == a.latent.shape
    assert abs(report["cosines"][0]["after"]) < 1e-3
    assert torch.isfinite(edit(test_model, encoded, found, 1.0)).all()
