"""Quick Slider and what prepares it, and Slider Strip: against true runs, what they cost, and what they refuse."""

import json
from dataclasses import replace

import comfy.cli_args
import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SplitSigmas
from families import CORE, Family, sd1, sd3
from node_runs import find, invert, loaded, picture, state_of

from latent_directions.core import direction_files
from latent_directions.core.direction import Words
from latent_directions.core.linalg import relative_error
from latent_directions.core.methods import METHODS
from latent_directions.nodes import quick
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider, outputs, sampled, schedule_of, with_slider
from latent_directions.nodes.prompts import digest
from latent_directions.nodes.quick import PrepareQuickSlider, QuickSlider, SliderStrip

STEPS = 4
TWO = [Family("sd1", sd1), Family("sd3", sd3)]


def prepare(encoded, directions, index=0, **options):
    """Run Prepare Quick Slider; directions and report."""
    with torch.inference_mode():
        prepared, report = PrepareQuickSlider.execute(
            encoded.inversion, directions, index, **{"steps": STEPS, **options}
        ).args
    return prepared, json.loads(report)


def slide(inversion, directions, strength, index=0, latent=None) -> dict:
    with torch.inference_mode():
        return QuickSlider.execute(inversion, directions, index, strength, latent).args[0]


def strip(inversion, directions, *, index=0, start=-1.0, end=1.0, keyframes=3, frames=5, **options):
    """Run Slider Strip; latents and report."""
    with torch.inference_mode():
        latent, report = SliderStrip.execute(
            inversion, directions, index, start, end, keyframes, frames, **{"steps": STEPS, **options}
        ).args
    return latent, json.loads(report)


def true_run(inversion, direction, strength, sigmas=None) -> torch.Tensor:
    with torch.inference_mode():
        sigmas = schedule_of(inversion, STEPS) if sigmas is None else sigmas
        return sampled(with_slider(inversion, direction, strength), sigmas)


def words(test_model, encoded, target="a smiling person", **options):
    return find(test_model, encoded.inversion, "text", target=target, **options)[0]


@pytest.fixture(params=TWO, ids=str, scope="module")
def case(request):
    """A model, its encoded picture, and two directions by words, the first prepared."""
    test_model = loaded(request.param)
    encoded = invert(test_model, method="fresh noise")
    directions = [*words(test_model, encoded), *words(test_model, encoded, "a sad cat", keep="a hat | a cap")]
    return test_model, encoded, directions, *prepare(encoded, directions)


class TestPrepare:
    def test_the_moves_lead_to_two_true_runs(self, case):
        _, encoded, directions, prepared, report = case
        ends = {s: true_run(encoded.inversion, directions[0], s) for s in (-1.0, 1.0)}
        made, x0 = prepared[0].distilled, encoded.latent["samples"]
        for strength in (-1.0, 1.0):
            shown = slide(encoded.inversion, prepared, strength)["samples"]
            assert torch.allclose(shown, ends[strength], atol=1e-6 * float(x0.abs().max()))
        assert made.picture == digest(x0)
        off = x0 - (ends[-1.0] + ends[1.0]) / 2
        assert made.bend == pytest.approx(float(off.norm() / (ends[1.0] - ends[-1.0]).norm()), rel=1e-4)
        assert 0 < made.bend < 1
        assert report["bend"] == pytest.approx(made.bend, abs=1e-4)

    def test_all_else_is_handed_on_as_it_was(self, case):
        _, _, directions, prepared, _ = case
        assert prepared[1] is directions[1]
        assert replace(prepared[0], distilled=None) == directions[0]
        assert directions[0].distilled is None

    def test_what_it_costs(self, case):
        test_model, _, directions, _, _ = case
        encoded = invert(test_model, method="fresh noise")
        _, report = prepare(encoded, directions)
        assert encoded.inversion.statistics.runs == 0  # those are of the sampler, for Edit Report
        # words and response at every step, the reference once; at the first step nothing has moved
        assert report["model_evaluations"] == 2 * (STEPS - 1) * 3 + 2 + (STEPS - 1) * 1
        assert (report["steps"], report["strengths"]) == (STEPS, [-1.0, 1.0])
        again = prepare(encoded, directions)[1]
        assert again["model_evaluations"] == 2 * (STEPS - 1) * 3

    def test_the_second_of_several_and_sigmas_of_the_artist(self, case):
        _, encoded, directions, _, _ = case
        prepared, report = prepare(encoded, directions, 1, sigmas=encoded.sigmas)
        assert prepared[0] is directions[0]
        assert report["steps"] == len(encoded.sigmas) - 1 != STEPS
        ends = [true_run(encoded.inversion, directions[1], s, encoded.sigmas) for s in (-1.0, 1.0)]
        made, x0 = prepared[1].distilled, encoded.latent["samples"]
        for move, expected in ((made.above, ends[1] - x0), (made.below, x0 - ends[0])):
            assert torch.allclose(move[None], expected, atol=1e-5 * float(expected.abs().max()))

    def test_sliders_that_the_inversion_has_passed_do_not_count(self, case):
        _, encoded, directions, prepared, _ = case
        moved = DirectionSlider.execute(encoded.inversion, directions, 1, 1.0).args[3]
        with torch.inference_mode():
            again = PrepareQuickSlider.execute(moved, directions, 0, STEPS).args[0]
        assert torch.equal(again[0].distilled.above, prepared[0].distilled.above)
        assert torch.equal(again[0].distilled.below, prepared[0].distilled.below)
        assert torch.equal(slide(moved, again, 0.0)["samples"], encoded.latent["samples"])

    def test_a_file_keeps_it(self, case, tmp_path):
        _, encoded, _, prepared, _ = case
        direction_files.save(prepared[0], tmp_path / "one.safetensors")
        read = [direction_files.load(tmp_path / "one.safetensors")]
        for strength in (-0.7, 0.7):
            found = [slide(encoded.inversion, made, strength)["samples"] for made in (prepared, read)]
            assert torch.equal(*found)

    @pytest.mark.parametrize(("bend", "ghosts"), [(quick.LARGE_BEND - 0.01, False), (quick.LARGE_BEND, True)])
    def test_the_summary_says_when_not_to_trust_it(self, bend, ghosts):
        summary = quick._summary("smile", bend)
        assert "At strengths -1, 0 and 1 the preview of 'smile' is exactly a sampled picture" in summary
        assert ("two pictures may show over each other" in summary) is ghosts

    def test_a_direction_that_moves_nothing(self, case):
        _, encoded, directions, _, _ = case
        same = directions[0].words.source
        still = replace(directions[0], words=Words(same, same))
        with pytest.raises(InputError, match="moves nothing in this picture"):
            prepare(encoded, [still])

    def test_sigmas_that_do_not_end_at_the_picture(self, case):
        _, encoded, directions, _, _ = case
        high, _ = SplitSigmas.execute(encoded.sigmas, 2).args
        for wrong in (high, encoded.sigmas[:1], encoded.sigmas.flip(0), encoded.sigmas * torch.nan, [1.0, 0.0]):
            with pytest.raises(InputError, match="'sigmas' (must be|holds no) noise levels"):
                prepare(encoded, directions, sigmas=wrong)


class TestQuickSlider:
    def test_it_asks_no_model(self, case):
        _, encoded, _, prepared, _ = case
        before = (encoded.inversion.statistics.runs, encoded.inversion.statistics.evaluations)

        def fail(*_):
            raise AssertionError

        hook = encoded.inversion.source_model.model.diffusion_model.register_forward_pre_hook(fail)
        try:
            slide(encoded.inversion, prepared, -0.4)
        finally:
            hook.remove()
        assert (encoded.inversion.statistics.runs, encoded.inversion.statistics.evaluations) == before

    def test_at_0_it_is_the_latent_of_invert_image(self, case):
        _, encoded, _, prepared, _ = case
        latent = slide(encoded.inversion, prepared, 0.0)
        assert latent["samples"] is encoded.latent["samples"]
        assert latent == encoded.latent
        assert latent is not encoded.latent

    @pytest.mark.parametrize("strength", [-2.5, 0.3, 1])
    def test_it_adds_the_move_of_its_sign(self, case, strength):
        _, encoded, _, prepared, _ = case
        before, made = encoded.latent["samples"].clone(), prepared[0].distilled
        moved = slide(encoded.inversion, prepared, strength)["samples"]
        assert torch.equal(moved, before + float(strength) * (made.above if strength > 0 else made.below))
        assert not torch.allclose(made.above, made.below, rtol=0.01)
        assert torch.equal(encoded.latent["samples"], before)

    def test_two_add_up_in_either_order(self, case):
        _, encoded, _, prepared, _ = case
        both, _ = prepare(encoded, prepared, 1)
        assert both[0] is prepared[0]
        one, other = (slide(encoded.inversion, both, s, k) for k, s in ((0, 0.7), (1, -1.2)))
        ends = [
            slide(encoded.inversion, both, -1.2, 1, one)["samples"],
            slide(encoded.inversion, both, 0.7, 0, other)["samples"],
        ]
        x0 = encoded.latent["samples"]
        expected = x0 + 0.7 * both[0].distilled.above - 1.2 * both[1].distilled.below
        for end in ends:
            assert torch.allclose(end, expected, atol=1e-6 * float(x0.abs().max()))
        assert torch.equal(slide(encoded.inversion, both, 0.0, 0, other)["samples"], other["samples"])

    def test_one_that_was_not_prepared(self, case):
        _, encoded, _, prepared, _ = case
        with pytest.raises(InputError, match="has not been prepared for Quick Slider. Put Prepare Quick Slider before"):
            slide(encoded.inversion, prepared, 0.0, 1)

    def test_another_picture(self, case):
        test_model, _, _, prepared, _ = case
        other = invert(test_model, picture(test_model, seed=6), method="fresh noise")
        with pytest.raises(InputError, match="was prepared for another picture.*Prepare it again for this one"):
            slide(other.inversion, prepared, 1.0)
        same = invert(test_model, method="backward euler", level=0.4)  # the picture alone counts
        slide(same.inversion, prepared, 1.0)

    def test_a_file_that_lies(self, case):
        _, encoded, _, prepared, _ = case
        made = replace(prepared[0].distilled, above=torch.zeros(3, 5, 7), below=torch.zeros(3, 5, 7))
        with pytest.raises(InputError, match="was prepared for another picture"):
            slide(encoded.inversion, [replace(prepared[0], distilled=made)], 1.0)

    def test_a_latent_that_does_not_fit(self, case):
        _, encoded, _, prepared, _ = case
        x0 = encoded.latent["samples"]
        for samples, said in ((x0[..., :4], "has shape"), (x0 * torch.nan, "not numbers"), (x0[0], "holds no picture")):
            with pytest.raises(InputError, match=f"'latent' {'.*' if said == 'not numbers' else ''}{said}"):
                slide(encoded.inversion, prepared, 1.0, 0, {"samples": samples})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", TWO, ids=str)
def test_every_method(family, method):
    test_model = loaded(family)
    encoded = invert(test_model)
    directions, _ = find(test_model, encoded.inversion, method)
    prepared, report = prepare(encoded, directions)
    assert report["model_evaluations"] > 0
    end = true_run(encoded.inversion, directions[0], 1.0)
    quick_end, x0 = slide(encoded.inversion, prepared, 1.0)["samples"], encoded.latent["samples"]
    assert relative_error(quick_end - x0, end - x0) < 1e-4
    latent, _ = strip(encoded.inversion, directions)
    assert torch.equal(latent["samples"][-1:], end)
    assert torch.equal(latent["samples"][2:3], x0)


@pytest.mark.parametrize("family", CORE, ids=str)
def test_a_batch_of_pictures(family):
    test_model = loaded(family)
    both = picture(test_model, batch=2)
    encoded = invert(test_model, both, method="fresh noise")
    directions = words(test_model, encoded)
    prepared, report = prepare(encoded, directions)
    made = prepared[0].distilled
    assert made.above.shape == made.below.shape == both["samples"].shape
    for strength in (-1.0, 1.0):
        end = true_run(encoded.inversion, directions[0], strength)
        moved = slide(encoded.inversion, prepared, strength)["samples"]
        assert all(relative_error(moved[k] - x0, end[k] - x0) < 1e-4 for k, x0 in enumerate(both["samples"]))
    latent, _ = strip(encoded.inversion, directions)
    ends = [true_run(encoded.inversion, directions[0], s) for s in (-1.0, 0.0, 1.0)]
    assert latent["samples"].shape[0] == 10
    for k in (0, 1):  # the frames of one picture, then those of the other
        assert torch.equal(latent["samples"][5 * k : 5 * k + 5 : 2], torch.stack([end[k] for end in ends]))
    alone = invert(test_model, {"samples": both["samples"][:1]}, method="fresh noise")
    with pytest.raises(InputError, match="another picture"):
        slide(alone.inversion, prepared, 1.0)


def test_a_picture_of_a_video_model_and_its_file(tmp_path):
    from more_families import MORE

    family = next(family for family in MORE if len(family.build().latent_shape) == 5)
    test_model = loaded(family)
    encoded = invert(test_model, method="fresh noise")
    x0 = encoded.latent["samples"]
    prepared, _ = prepare(encoded, words(test_model, encoded))
    assert prepared[0].distilled.above.shape == (x0.shape[1], *x0.shape[-2:])
    moved = slide(encoded.inversion, prepared, 0.5)["samples"]
    assert torch.equal(moved, x0 + 0.5 * prepared[0].distilled.above.view(x0.shape))
    direction_files.save(prepared[0], tmp_path / "one.safetensors")
    read = [direction_files.load(tmp_path / "one.safetensors")]
    assert torch.equal(slide(encoded.inversion, read, 0.5)["samples"], moved)
    assert strip(encoded.inversion, prepared)[0]["samples"].shape == (5, *x0.shape[1:])


class TestMasks:
    def test_nothing_moves_outside_the_mask_of_the_direction(self, case):
        _, encoded, directions, _, _ = case
        height, width = encoded.latent["samples"].shape[-2:]
        mask = torch.zeros(1, height, width)
        mask[..., : width // 2] = 1
        prepared, _ = prepare(encoded, [replace(directions[0], mask=mask)])
        for move in (prepared[0].distilled.above.abs(), prepared[0].distilled.below.abs()):
            assert move[..., width // 2 :].max() < 1e-5 * move.max()
            assert move[..., : width // 2].max() > 0

    def test_nor_outside_the_noise_mask_of_the_latent(self, case):
        test_model, _, directions, _, _ = case
        latent = picture(test_model)
        height, width = latent["samples"].shape[-2:]
        latent["noise_mask"] = torch.zeros(1, 8 * height, 8 * width)
        latent["noise_mask"][..., : 4 * width] = 1
        encoded = invert(test_model, latent, method="fresh noise")
        prepared, _ = prepare(encoded, directions)
        for move in (prepared[0].distilled.above.abs(), prepared[0].distilled.below.abs()):
            assert move[..., width // 2 :].max() < 1e-5 * move.max()
            assert move[..., : width // 2].max() > 0
        moved = slide(encoded.inversion, prepared, 1.0)
        assert moved["noise_mask"] is latent["noise_mask"]


class TestStrip:
    def test_keyframes_are_true_runs_and_the_others_lie_between(self, case):
        _, encoded, directions, _, _ = case
        latent, report = strip(encoded.inversion, directions, keyframes=3, frames=7, start=-0.5, end=1.0)
        frames = latent["samples"]
        ends = [true_run(encoded.inversion, directions[0], s) for s in (-0.5, 0.25, 1.0)]
        assert torch.equal(frames[::3], torch.cat(ends))
        for k in (1, 2, 4, 5):
            before, after = ends[k // 3], ends[k // 3 + 1]
            expected = before + (k % 3) / 3 * (after - before)
            assert torch.allclose(frames[k], expected[0], atol=1e-6 * float(frames.abs().max()))
        assert report["strengths"] == [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]
        assert report["keyframes"] == [-0.5, 0.25, 1.0]
        bend = float((ends[1] - (ends[0] + ends[2]) / 2).norm() / (ends[2] - ends[0]).norm())
        assert report["bends"] == [pytest.approx(bend, abs=1e-4)]

    def test_strength_0_is_the_picture_and_costs_nothing(self, case):
        test_model, _, directions, _, _ = case
        encoded = invert(test_model, method="fresh noise")
        latent, report = strip(encoded.inversion, directions, keyframes=5, frames=9)
        assert torch.equal(latent["samples"][4:5], encoded.latent["samples"])
        assert encoded.inversion.statistics.runs == 0  # those are of the sampler, for Edit Report
        assert report["model_evaluations"] == 4 * (STEPS - 1) * 3 + 2 + (STEPS - 1)

    def test_sliders_before_it_stay_applied(self, case):
        _, encoded, directions, _, _ = case
        moved = DirectionSlider.execute(encoded.inversion, directions, 1, 0.8).args[3]
        latent, _ = strip(moved, directions)
        assert torch.equal(latent["samples"][2:3], true_run(moved, directions[0], 0.0))
        assert torch.equal(latent["samples"][2:3], true_run(encoded.inversion, directions[1], 0.8))
        assert torch.equal(latent["samples"][-1:], true_run(moved, directions[0], 1.0))

    def test_a_slider_of_the_same_direction_before_it_is_moved_with_its_other_settings(self, case):
        _, encoded, (moved, other), _, _ = case
        mask = torch.zeros(1, 8, 8)
        mask[..., :4] = 1.0

        def chain(strength: float):
            first = with_slider(encoded.inversion, moved, 0.4)
            return with_slider(with_slider(first, moved, strength, weight=0.5, mask=mask), other, 0.8)

        latent, _ = strip(chain(1.5), [moved])
        assert torch.equal(latent["samples"][-1:], sampled(chain(1.0), schedule_of(encoded.inversion, STEPS)))
        assert not torch.equal(latent["samples"][-1:], true_run(with_slider(encoded.inversion, other, 0.8), moved, 1.0))

    def test_sigmas_of_the_artist(self, case):
        _, encoded, directions, _, _ = case
        latent, report = strip(encoded.inversion, directions, sigmas=encoded.sigmas)
        assert torch.equal(latent["samples"][-1:], true_run(encoded.inversion, directions[0], 1.0, encoded.sigmas))
        assert report["steps"] == len(encoded.sigmas) - 1

    def test_the_model_is_unchanged(self, case):
        test_model, encoded, directions, _, _ = case
        before = state_of(test_model.model)
        strip(encoded.inversion, directions)
        prepare(encoded, directions)
        assert state_of(test_model.model) == before

    def test_the_bar_and_its_pictures(self, case, monkeypatch):
        _, encoded, directions, _, _ = case
        seen = []
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: seen.append(args))
        monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
        monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
        strip(encoded.inversion, directions)
        ours = [(done, preview[1].size) for done, total, preview in seen if total == 3 and preview is not None]
        assert ours == [(1, (8, 8)), (2, (8, 8)), (3, (8, 8))]

    def test_it_can_be_cancelled(self, case, monkeypatch):
        _, encoded, directions, _, _ = case
        runs = []

        def cancelled(inversion, sigmas):
            runs.append(1)
            comfy.model_management.interrupt_current_processing(len(runs) > 1)
            return sampled(inversion, sigmas)

        monkeypatch.setattr(quick, "sampled", cancelled)
        try:
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                strip(encoded.inversion, directions)
        finally:
            comfy.model_management.interrupt_current_processing(False)
        assert len(runs) == 3  # the second, at strength 0, asks the model for nothing

    def test_keys_of_the_latent(self, case):
        test_model, _, directions, _, _ = case
        encoded = invert(test_model, picture(test_model) | {"batch_index": [3], "more": 1}, method="fresh noise")
        latent, _ = strip(encoded.inversion, directions)
        assert (set(latent), latent["more"]) == ({"samples", "more"}, 1)

    def test_what_is_refused(self, case):
        _, encoded, directions, _, _ = case
        with pytest.raises(InputError, match="'start' and 'end' are both 0.5"):
            strip(encoded.inversion, directions, start=0.5, end=0.5)
        with pytest.raises(InputError, match="'keyframes' is 6, more than the 5 'frames'"):
            strip(encoded.inversion, directions, keyframes=6)

    def test_the_summary_says_where_to_look(self):
        said = quick._strip_summary(5, 9, {-0.5: 0.1, 0.0: quick.LARGE_BEND, 0.5: 0.45})
        assert "Near strength 0, 0.5 the slider does not move evenly" in said
        assert "Raise 'keyframes'" in said
        assert quick._strip_summary(5, 9, {0.0: 0.1}) == (
            "5 of 9 pictures were sampled, the others mixed from their neighbours."
        )
        assert quick._strip_summary(5, 5, {0.0: 0.9}) == "All 5 pictures were sampled."


def test_the_runs_are_those_of_the_direction_slider(case):
    """The MODEL, prompt and noise that an artist's own euler gets."""
    _, encoded, directions, _, _ = case
    with torch.inference_mode():
        slider = DirectionSlider.execute(encoded.inversion, directions, 0, 1.0).args[3]
        assert torch.equal(outputs(slider)[2].noise, encoded.inversion.paths.base)
        assert torch.equal(sampled(slider, schedule_of(slider, STEPS)), true_run(encoded.inversion, directions[0], 1.0))
