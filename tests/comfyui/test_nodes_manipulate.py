"""Direction Sliders, alone and in a chain: the picture at 0, sums, masks, batches, and what a position costs."""

import json
from dataclasses import replace

import pytest
import torch
from families import CORE, Family, sd3
from node_runs import find, invert, loaded, picture, sample

from latent_directions.core.anchor import ReferenceCache
from latent_directions.core.direction import Prompt
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import ApplySliders, DirectionSlider


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("method", ["HSDS", "text", "LOCO"])
@pytest.mark.parametrize("family", CORE, ids=str)
def test_zero_with_keep_and_weight(family, method, cfg):
    test_model = loaded(family)
    encoded = invert(test_model)
    keep = "a person with glasses | a person hat" if method != "LOCO" else ""
    directions, _ = find(test_model, encoded.inversion, method, keep=keep)
    model, positive, noise = DirectionSlider.execute(encoded.inversion, directions, 0, 0.0, 0.7).args[:3]
    assert model is not encoded.model
    samples = sample(test_model, encoded, cfg=cfg, model=model, positive=positive, noise=noise)
    assert torch.equal(samples, encoded.latent["samples"])
    assert encoded.inversion.statistics.last_evaluations == 0
    model, positive, noise = DirectionSlider.execute(encoded.inversion, directions, 0, 1.0, 0.7).args[:3]
    moved = sample(test_model, encoded, cfg=cfg, model=model, positive=positive, noise=noise)
    assert not torch.allclose(moved, samples, atol=1e-3)
    assert encoded.inversion.statistics.last_evaluations > 0


class TestAnotherLevel:
    """A direction found at one noise level and used at another."""

    @pytest.mark.parametrize("level", [0.3, 0.8])
    def test_the_noise_moves_by_as_much_and_the_report_says_so(self, level):
        test_model = loaded(CORE[0])
        found, used = invert(test_model), invert(test_model, level=level)
        (direction, *_), _ = find(test_model, found.inversion, "LOCO")
        moves = []
        for encoded in (found, used):
            model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
            moves.append(noise.noise - encoded.inversion.paths.base)
            sample(test_model, encoded, model=model, positive=positive, noise=noise)
        assert torch.allclose(*moves, rtol=1e-4, atol=1e-6)
        assert found.inversion.statistics.last_remarks == []
        (remark,) = used.inversion.statistics.last_remarks
        assert f"was found at noise level sigma {direction.sigma:.4g} and is used at" in remark

    def test_a_level_that_the_model_does_not_have(self):
        test_model = loaded(CORE[0])
        encoded = invert(test_model)
        (direction, *_), _ = find(test_model, encoded.inversion, "LOCO")
        with pytest.raises(InputError, match="says that it was found at noise level sigma 1e[+]06"):
            DirectionSlider.execute(encoded.inversion, [replace(direction, sigma=1e6)], 0, 1.0)
        (words,), _ = find(test_model, encoded.inversion, "text")
        DirectionSlider.execute(encoded.inversion, [replace(words, sigma=1e6)], 0, 1.0)  # words have no noise level


class TestChain:
    """Sliders that pass the inversion on."""

    STEPS = 5

    @pytest.fixture(scope="class", params=["backward euler", "fresh noise"])
    def case(self, request):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, steps=self.STEPS, method=request.param)
        found = [
            find(test_model, encoded.inversion, "text", target=target, text_share=1.0)[0][0]
            for target in ("a smiling person", "a sad cat")
        ]
        (found_by_loco, *_), _ = find(test_model, encoded.inversion, "LOCO")
        return test_model, encoded, [*found, found_by_loco]

    def chain(self, inversion, *sliders, **options):
        """The inversion behind sliders, each (direction, strength)."""
        for direction, strength in sliders:
            inversion = DirectionSlider.execute(inversion, [direction], 0, strength, **options).args[3]
        return inversion

    def end(self, case, inversion, **options) -> tuple[torch.Tensor, int]:
        """The sampled latent behind Apply Sliders, and the evaluations that it took."""
        test_model, encoded, _ = case
        model, positive, noise = ApplySliders.execute(inversion).args
        samples = sample(test_model, encoded, model=model, positive=positive, noise=noise, **options)
        return samples, inversion.statistics.last_evaluations

    def test_apply_sliders_gives_what_the_last_slider_gives(self, case):
        test_model, encoded, (a, b, _) = case
        first = self.chain(encoded.inversion, (a, 1.0))
        model, positive, noise, second = DirectionSlider.execute(first, [b], 0, -0.5).args
        by_slider = sample(test_model, encoded, model=model, positive=positive, noise=noise)
        assert torch.equal(by_slider, self.end(case, second)[0])
        assert not torch.allclose(by_slider, self.end(case, first)[0], atol=1e-3)

    def test_without_a_slider_it_is_the_picture(self, case):
        samples, evaluations = self.end(case, case[1].inversion, cfg=4.0)
        assert torch.equal(samples, case[1].latent["samples"])
        assert evaluations == 0

    def test_all_at_zero_it_is_the_picture(self, case):
        _, encoded, (a, b, c) = case
        samples, evaluations = self.end(case, self.chain(encoded.inversion, (a, 0.0), (b, 0.0), (c, 0.0)), cfg=4.0)
        assert torch.equal(samples, encoded.latent["samples"])
        assert evaluations == 0

    def test_a_slider_at_zero_is_as_if_it_were_bypassed(self, case):
        _, encoded, (a, b, c) = case
        with_it, _ = self.end(case, self.chain(encoded.inversion, (a, 1.0), (b, 0.0), (c, 0.7)))
        bypassed, _ = self.end(case, self.chain(encoded.inversion, (a, 1.0), (c, 0.7)))
        assert torch.equal(with_it, bypassed)

    @pytest.mark.parametrize("number", [0, 2])
    def test_the_same_direction_twice_is_the_sum(self, case, number):
        _, encoded, directions = case
        twice, _ = self.end(case, self.chain(encoded.inversion, (directions[number], 0.5), (directions[number], 0.75)))
        once, _ = self.end(case, self.chain(encoded.inversion, (directions[number], 1.25)))
        assert torch.allclose(twice, once, atol=1e-4 * float(once.abs().max()))

    def test_weights_multiply(self, case):
        _, encoded, (a, *_) = case
        both = encoded.inversion
        for weight in (0.5, 0.6):
            both = DirectionSlider.execute(both, [a], 0, 0.5, weight).args[3]
        once = DirectionSlider.execute(encoded.inversion, [a], 0, 1.0, 0.3).args[3]
        ends = [self.end(case, inversion)[0] for inversion in (both, once)]
        assert torch.allclose(*ends, atol=1e-4 * float(ends[0].abs().max()))

    @pytest.mark.parametrize(
        ("words", "own_source", "a_step"), [("live", False, 3), ("live", True, 4), ("recorded", True, 1)]
    )
    def test_what_a_position_costs(self, case, words, own_source, a_step):
        """Live, one evaluation a step and one more for each slider; recorded, one; the first step is all known.

        A source that is not the prompt of Encode Picture is a prompt more, which both sliders share.
        """
        _, encoded, (a, b, _) = case
        if not own_source:
            a, b = (replace(found, words=replace(found.words, source=None)) for found in (a, b))
        inversion = replace(encoded.inversion, cache=ReferenceCache())
        costs = [
            self.end(case, self.chain(inversion, (a, strength), (b, -strength), words=words))[1]
            for strength in (1.0, 0.5, -1.5)
        ]
        assert costs[1] == costs[2] == (self.STEPS - 1) * a_step
        assert costs[0] > costs[1]

    def test_recorded_words_move_nearly_as_live_ones_for_a_small_strength(self, case):
        _, encoded, (a, *_) = case
        moved = [
            self.end(case, self.chain(encoded.inversion, (a, 0.02), words=words))[0] - encoded.latent["samples"]
            for words in ("live", "recorded")
        ]
        assert torch.cosine_similarity(*(m.flatten() for m in moved), dim=0) > 0.999

    @pytest.mark.parametrize("number", [0, 2])
    def test_nothing_changes_outside_the_masks(self, case, number):
        _, encoded, directions = case
        height, width = encoded.latent["samples"].shape[-2:]
        masks = torch.zeros(2, height, width)
        masks[0, :, : width // 4] = 1
        masks[1, : height // 4] = 0.5
        inversion = encoded.inversion
        for direction, mask in ((directions[number], masks[0]), (directions[1], masks[1])):
            inversion = DirectionSlider.execute(inversion, [direction], 0, 1.0, mask=mask[None]).args[3]
        change = (self.end(case, inversion)[0] - encoded.latent["samples"]).abs().amax((0, 1))
        union = masks.amax(0)
        assert change[union == 0].max() < 1e-5 * encoded.latent["samples"].abs().max()
        assert (change[union > 0] > 1e-3).float().mean() > 0.9

    def test_words_act_at_their_share_of_the_steps(self, case):
        """Which steps those are is seen by what is asked; the parts of a run add up to the whole, near the path."""
        _, encoded, (a, *_) = case
        a = replace(a, words=replace(a.words, source=None))

        def end(strength, *ranges, **options):
            inversion = replace(encoded.inversion, cache=ReferenceCache())
            for start, finish in ranges:
                inversion = self.chain(inversion, (a, strength), start=start, end=finish, words="recorded")
            return self.end(case, inversion, **options)

        changes = {}
        for ranges in (((0, 1),), ((0, 0.4),), ((0.4, 1),), ((0, 0.4), (0.4, 1))):
            samples, _ = end(0.02, *ranges)
            changes[ranges] = samples - encoded.latent["samples"]
        whole, early, late, both = changes.values()
        assert torch.allclose(both, whole, atol=1e-3 * float(whole.abs().max()))
        assert torch.allclose(early + late, whole, atol=0.05 * float(whole.abs().max()))
        assert min(float(part.abs().max()) for part in (early, late)) > 0.02 * float(whole.abs().max())

    @pytest.mark.parametrize(
        ("start", "end", "before", "inside", "after"), [(0.0, 0.4, 0, 2, 3), (0.4, 0.8, 2, 2, 1), (0.8, 1.0, 4, 1, 0)]
    )
    def test_outside_of_their_steps_words_are_not_asked_for(self, case, start, end, before, inside, after):
        """Before them nothing is; at their first step two, at the others one more for the response; after them two."""
        _, encoded, (a, *_) = case
        a = replace(a, words=replace(a.words, source=None))
        inversion = replace(encoded.inversion, cache=ReferenceCache())
        _, evaluations = self.end(case, self.chain(inversion, (a, 1.0), start=start, end=end))
        assert before + inside + after == self.STEPS
        assert evaluations == 2 + 3 * (inside - 1) + 2 * after
        samples, evaluations = self.end(case, self.chain(inversion, (a, 0.0), start=start, end=end), cfg=3.0)
        assert torch.equal(samples, encoded.latent["samples"])
        assert evaluations == 0

    @pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m", "lms", "deis", "res_multistep", "ddim"])
    def test_a_range_with_other_samplers(self, case, sampler):
        """Also those that predict between the levels of the schedule."""
        _, encoded, (a, *_) = case
        ends = [
            self.end(case, self.chain(encoded.inversion, (a, 1.0), start=start, end=end), sampler=sampler)[0]
            for start, end in ((0.0, 1.0), (0.0, 0.6), (0.6, 1.0))
        ]
        whole, early, late = (float((end - encoded.latent["samples"]).norm()) for end in ends)
        assert early > 0
        assert 0 < late < whole

    def test_a_range_without_a_step_or_turned_round(self, case):
        _, encoded, (a, *_) = case
        with pytest.raises(InputError, match="'start' is 0.6 and 'end' is 0.4, so the slider would act at no step"):
            self.chain(encoded.inversion, (a, 1.0), start=0.6, end=0.4)
        with pytest.raises(InputError, match="so the slider would act at no step. Set 'start' below 'end'"):
            self.chain(encoded.inversion, (a, 1.0), start=0.5, end=0.5)
        with pytest.raises(InputError, match="No sampling step begins between 0.5 and 0.55.*further"):
            self.end(case, self.chain(encoded.inversion, (a, 1.0), start=0.5, end=0.55))

    @pytest.mark.parametrize(("start", "end"), [(0.2, 1.0), (0.0, 0.8)])
    def test_a_move_of_the_latent_has_no_range(self, case, start, end):
        _, encoded, (_, _, moving) = case
        with pytest.raises(
            InputError, match="'start' and 'end' limit words alone, but the direction .* moves the latent"
        ):
            self.chain(encoded.inversion, (moving, 1.0), start=start, end=end)

    def test_a_range_in_a_part_of_a_run_is_of_that_part_and_the_report_says_so(self, case):
        _, encoded, (a, *_) = case
        inversion = self.chain(encoded.inversion, (a, 1.0), start=0.5)
        self.end(case, inversion, sigmas=encoded.sigmas[:3])
        assert any("count within that part" in remark for remark in inversion.statistics.last_remarks)
        self.end(case, inversion)
        assert not any("count within that part" in remark for remark in inversion.statistics.last_remarks)

    def test_searches_and_previews_are_about_the_unmoved_picture(self, case):
        test_model, encoded, (a, *_) = case
        moved = self.chain(encoded.inversion, (a, 1.0))
        found = [find(test_model, inversion, "DDS")[0][0].latent for inversion in (encoded.inversion, moved)]
        assert torch.equal(*found)

    def test_a_mask_of_another_shape_or_without_a_cell(self, case):
        _, encoded, (a, *_) = case
        with pytest.raises(InputError, match="'mask' selects nothing: it is black everywhere"):
            DirectionSlider.execute(encoded.inversion, [a], 0, 1.0, mask=torch.zeros(1, 64, 64))
        with pytest.raises(InputError, match="another shape than the picture's latent"):
            DirectionSlider.execute(encoded.inversion, [a], 0, 1.0, mask=torch.ones(1, 64, 640))
        other = replace(a, mask=torch.ones(1, 4, 4))
        with pytest.raises(
            InputError, match="has a mask of 4 x 4 cells, but this picture's latent is .*Transfer Direction"
        ):
            DirectionSlider.execute(encoded.inversion, [other], 0, 1.0)


@pytest.mark.parametrize("family", CORE, ids=str)
def test_words_move_each_picture_of_a_batch_as_if_it_were_alone(family):
    test_model = loaded(family)
    both = picture(test_model, batch=2)
    ends = []
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        encoded = invert(test_model, {"samples": both["samples"][part]})
        (direction,), report = find(test_model, encoded.inversion, "text", keep="a hat | a cap")
        assert json.loads(report)["model_evaluations"] == 0
        model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
        ends.append(sample(test_model, encoded, model=model, positive=positive, noise=noise))
    assert torch.allclose(ends[0], torch.cat(ends[1:]), atol=2e-4 * float(ends[0].abs().max()))
    assert not torch.allclose(ends[0], both["samples"], atol=1e-3)


def test_searches_refuse_a_batch_before_any_work():
    test_model = loaded(CORE[0])
    encoded = invert(test_model, picture(test_model, batch=2))
    with pytest.raises(InputError, match="what method 'HSDS' finds belongs to one"):
        find(test_model, encoded.inversion, "HSDS")


class TestWhatIsRefused:
    """Directions and masks that would do nothing, or something else, without a word."""

    @pytest.fixture(scope="class")
    def found(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, method="fresh noise")
        (direction,), _ = find(test_model, encoded.inversion, "text")
        return test_model, encoded, direction

    def test_words_of_another_text_encoder(self, found):
        _, encoded, direction = found
        tokens = direction.words.target.tokens
        wide = replace(direction, words=replace(direction.words, target=Prompt(tokens.repeat(1, 1, 2))))
        with pytest.raises(InputError, match="another text encoder than the prompt of Encode Picture: a token has"):
            DirectionSlider.execute(encoded.inversion, [wide], 0, 1.0)
        pooled = replace(direction.words.target, pooled=torch.zeros(1, 3))
        narrow = replace(direction, words=replace(direction.words, target=pooled))
        with pytest.raises(InputError, match="The words come .*: the pooled vector has 3 numbers"):
            DirectionSlider.execute(encoded.inversion, [narrow], 0, 1.0)

    def test_a_direction_of_nothing(self, found):
        _, encoded, direction = found
        with pytest.raises(InputError, match="holds neither a move of the latent nor words"):
            DirectionSlider.execute(encoded.inversion, [replace(direction, words=None)], 0, 1.0)

    def test_masks_that_do_not_overlap(self, found):
        _, encoded, direction = found
        left = torch.zeros(1, *encoded.latent["samples"].shape[-2:])
        left[..., : left.shape[-1] // 2] = 1
        with pytest.raises(InputError, match="do not overlap, so the slider would move nothing"):
            DirectionSlider.execute(encoded.inversion, [replace(direction, mask=left)], 0, 1.0, mask=1 - left)

    @pytest.mark.parametrize("name", ["control", "model_conds", "area", "start_percent", "mask", "reference_latents"])
    def test_a_tensor_of_a_file_that_is_no_part_of_a_text(self, found, name):
        """It is left out: in a conditioning such names mean other things."""
        test_model, encoded, direction = found
        ends = []
        for extra in ({}, {name: torch.full((1, 1), 0.5)}):
            target = replace(direction.words.target, extra=extra)
            made = replace(direction, words=replace(direction.words, target=target))
            model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [made], 0, 1.0).args
            ends.append(sample(test_model, encoded, model=model, positive=positive, noise=noise))
        assert torch.allclose(*ends, atol=1e-5 * float(ends[0].abs().max()))


def test_each_mask_of_a_batch_holds_for_its_picture():
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model, picture(test_model, batch=2), method="fresh noise")
    (direction,), _ = find(test_model, encoded.inversion, "text")
    masks = torch.zeros(2, *encoded.latent["samples"].shape[-2:])
    half = masks.shape[-1] // 2
    masks[0, :, :half], masks[1, :, half:] = 1, 1
    model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0, mask=masks).args
    change = sample(test_model, encoded, model=model, positive=positive, noise=noise) - encoded.latent["samples"]
    for one, mask in zip(change.abs().amax(1), masks, strict=True):
        assert one[mask == 0].max() < 1e-4 < 1e-3 < one[mask == 1].max()
    with pytest.raises(InputError, match="'mask' is a batch of 3 masks, but the number of pictures is 2"):
        DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0, mask=torch.ones(3, *masks.shape[1:]))


def test_a_slider_at_zero_fades_no_other():
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model, method="fresh noise")
    (direction,), _ = find(test_model, encoded.inversion, "text")
    one = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
    both = DirectionSlider.execute(one[3], [direction], 0, 0.0, 0.0).args
    ends = [sample(test_model, encoded, model=m, positive=p, noise=n) for m, p, n, _ in (one, both)]
    assert torch.equal(*ends)


def test_a_full_cache_changes_nothing_but_the_cost_and_is_reported():
    test_model = loaded(Family("sd3", sd3))
    ends, costs = [], []
    for size in (None, 3000):
        encoded = invert(test_model, method="fresh noise")
        if size is not None:
            encoded.inversion.cache.max_bytes = size
        (direction,), _ = find(test_model, encoded.inversion, "text", keep="a hat | a cap")
        for _ in range(2):
            model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
            ends.append(sample(test_model, encoded, model=model, positive=positive, noise=noise))
            costs.append(encoded.inversion.statistics.last_evaluations)
        said = [r for r in encoded.inversion.statistics.last_remarks if "cache of predictions" in r]
        assert len(said) == (size is not None)
    assert all(torch.equal(ends[0], end) for end in ends[1:])
    assert costs[1] < costs[3] <= costs[2] == costs[0]
