"""Plot Directions: its numbers against runs and predictions made by hand, what they cost, and what is refused."""

import json
import sys
from dataclasses import replace
from itertools import count

import comfy.model_management
import numpy as np
import pytest
import torch
from families import CORE, Family, sd1, sd3
from node_runs import edit, find, invert, loaded, picture, state_of

from latent_directions.core.denoiser import SOURCE
from latent_directions.core.direction import Direction, Feature
from latent_directions.core.direction_files import load, save
from latent_directions.core.errors import MissingPackageError
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.host import run
from latent_directions.nodes.manipulate import schedule_of, with_slider
from latent_directions.nodes.plots import (
    ALONE,
    LEVEL,
    SPECTRUM,
    STRENGTH,
    WHAT_ELSE,
    PlotDirections,
)
from latent_directions.nodes.predicted_changes import predicted_changes
from latent_directions.nodes.prompts import with_prompt

PLOTS = (SPECTRUM, WHAT_ELSE, STRENGTH, LEVEL)
HUGE = [{"candidate": "a", "likeness": 10**400}]  # a file may hold such a number, which no float can
CANDIDATES = "with a hat | with no hat\nat night | by day"
STRENGTH_LOOKED_AT, POINTS, STEPS = 1.5, 3, 2


class ChannelVae:
    """Shows the first three channels of a latent, squeezed into 0 to 1; an artist may cancel while it decodes."""

    def __init__(self, cancel_at=None):
        self.cancel_at, self.decoded = cancel_at, 0

    def decode(self, samples):
        self.decoded += 1
        if self.decoded == self.cancel_at:
            comfy.model_management.interrupt_current_processing()
        return samples[:, :3].movedim(1, -1).sigmoid()


@pytest.fixture(autouse=True)
def not_interrupted():
    yield
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture(scope="module")
def small():
    """A small model, a picture, and directions of one by its move, one by words, and several by exploring."""
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model)
    found = {method: find(test_model, encoded.inversion, method)[0] for method in ("LOCO", "text", "explore", "HSDS")}
    return test_model, encoded, found


def plot(encoded, directions, which, **changes) -> dict:
    """The report of a plot, once its picture has been looked at."""
    given = {"strength": STRENGTH_LOOKED_AT, "points": POINTS, "steps": STEPS, **changes}
    with torch.inference_mode():
        made = PlotDirections.execute(encoded.inversion, directions, which, **given)
    image, report = made.args
    assert image.shape[0] == 1 and image.shape[2:] == (768, 3)
    assert image.max() == 1 and image.mean() < 0.999
    assert made.ui.as_dict()["images"]
    report = json.loads(report)
    assert (report["stage"], report["plot"]) == ("plot", which)
    assert report["seconds"] >= 0
    return report


def chart_of(encoded, directions, which) -> np.ndarray:
    """The picture of a plot, (H, W, 3)."""
    with torch.inference_mode():
        return PlotDirections.execute(encoded.inversion, directions, which).args[0][0].numpy()


def by_hand(test_model, encoded, body, prompts=None):
    """What a body computes with the plain denoiser and the clean latent in the model's space."""
    conditionings = {SOURCE: encoded.inversion.positive} | (prompts or {})
    with torch.inference_mode():
        return run(test_model.model, conditionings, encoded.latent, encoded.inversion.sigma, body)[0]


def moved_by_hand(encoded, direction: Direction, sigma: float):
    """A body: the change of the prediction when the noise is moved along a direction."""
    inversion = encoded.inversion

    def body(denoiser, x0):
        noise = inversion.paths.base.to(x0)
        far = STRENGTH_LOOKED_AT * direction.step / inversion.scale[1]
        moved = noise + far * direction.latent.to(x0)
        ends = [denoiser(denoiser.noised(x0, one, sigma), sigma) for one in (moved, noise)]
        return (ends[0] - ends[1]) * (1 if direction.mask is None else direction.mask.to(x0))

    return body


def share_by_hand(change: torch.Tensor) -> float:
    """Of one picture's change (1, C, H, W), in the tenth of its cells that changes most, part of a cell in part."""
    energy = np.sort(change[0].double().square().sum(0).numpy().ravel())[::-1]
    whole, rest = divmod(len(energy) / 10, 1)
    return (energy[: int(whole)].sum() + rest * energy[int(whole)]) / energy.sum()


class TestSpectrum:
    def test_singular_values(self, small):
        _, encoded, found = small
        report = plot(encoded, found["LOCO"], SPECTRUM)
        values = [one["value"] for one in report["directions"]]
        assert values == pytest.approx([one.notes["singular_value"] for one in found["LOCO"]], rel=1e-5)
        assert "singular value" in report["values"]
        assert report["model_evaluations"] == 0

    def test_explored_directions_come_in_the_order_of_their_values(self, small):
        test_model, encoded, _ = small
        directions, _ = find(test_model, encoded.inversion, "explore", count=6)
        values = [one["value"] for one in plot(encoded, directions, SPECTRUM)["directions"]]
        notes = [one.notes for one in directions]
        # the norm of the effect in its mask, times the share of its energy there
        expected = [note["effect"] * note["share_inside"] ** 0.5 * note["share_inside"] for note in notes]
        assert values == pytest.approx(expected, rel=1e-5)
        assert values == sorted(values, reverse=True)
        assert len(set(values)) > 1

    def test_words_have_none(self, small):
        _, encoded, found = small
        report = plot(encoded, found["text"], SPECTRUM)
        assert report["values"] is None
        assert report["directions"] == [{"name": found["text"][0].name, "value": None}]

    def test_values_of_one_kind_are_shown(self, small):
        _, encoded, found = small
        report = plot(encoded, [*found["LOCO"], *found["text"], *found["explore"]], SPECTRUM)
        values = [one["value"] for one in report["directions"]]
        shown = len(found["LOCO"])
        assert None not in values[:shown]
        assert not any(values[shown:])
        assert "effect" in report["remarks"][0]

    @pytest.mark.parametrize(
        "note",
        ["1", None, True, float("nan"), float("inf"), 1.7e308, pytest.param(10**400, id="huge"), -1.0, [1.0], {}],
    )
    def test_a_file_may_hold_anything_in_place_of_a_value(self, small, note):
        _, encoded, found = small
        direction = replace(found["text"][0], notes={"singular_value": note, "effect": 1.0, "share_inside": note})
        assert plot(encoded, [direction], SPECTRUM)["values"] is None

    @pytest.mark.parametrize("share", [1.5, 1e300])
    def test_a_share_is_at_most_1(self, small, share):
        _, encoded, found = small
        direction = replace(found["text"][0], notes={"effect": 1.0, "share_inside": share})
        assert plot(encoded, [direction], SPECTRUM)["values"] is None


class TestWhatElse:
    def test_what_a_search_has_found_is_shown(self, small, tmp_path):
        test_model, encoded, _ = small
        directions, report = find(test_model, encoded.inversion, "text", candidates=CANDIDATES)
        rows = json.loads(report)["what_else_moves"]
        assert len(rows) == 2
        save(directions[0], tmp_path / "one.safetensors")
        for given in (directions, [load(tmp_path / "one.safetensors")]):
            shown = plot(encoded, given, WHAT_ELSE)
            assert shown["model_evaluations"] == 0
            assert shown["what_else_moves"] == [
                {name: row[name] for name in ("candidate", "likeness", "kept")} for row in rows
            ]
        assert "what_else_moves" not in json.loads(report)["found"][0]  # it is said once

    def test_of_several_directions(self, small):
        test_model, encoded, found = small
        one, _ = find(test_model, encoded.inversion, "text", candidates=CANDIDATES)
        other, _ = find(test_model, encoded.inversion, "text", target="a cat", candidates=CANDIDATES.splitlines()[0])
        report = plot(encoded, [*one, *found["LOCO"], *other], WHAT_ELSE)
        assert report["directions"] == [one[0].name, other[0].name]
        known = {row["candidate"]: row["likeness"] for row in report["what_else_moves"]}
        assert {len(values) for values in known.values()} == {2}
        assert known["at night | by day"][1] is None
        assert known["with a hat | with no hat"] == [
            next(
                row["likeness"] for row in each[0].notes["what_else_moves"] if row["candidate"].startswith("with a hat")
            )
            for each in (one, other)
        ]
        assert found["LOCO"][0].name in report["remarks"][0]

    @pytest.mark.parametrize(
        "note", [3, "rows", [3], [{}], [{"candidate": 3, "likeness": 0.5}], [{"candidate": "a"}], HUGE]
    )
    def test_a_file_may_hold_anything_in_its_place(self, small, note):
        _, encoded, found = small
        direction = replace(found["LOCO"][0], notes={"what_else_moves": note})
        assert plot(encoded, [direction], WHAT_ELSE)["likeness"] is None

    def test_without_words_the_changes_are_compared(self, small):
        test_model, encoded, found = small
        directions = [*found["LOCO"], *found["explore"]]
        report = plot(encoded, directions, WHAT_ELSE)
        changes = [
            by_hand(test_model, encoded, moved_by_hand(encoded, one, encoded.inversion.sigma)).flatten().double()
            for one in directions
        ]
        expected = [[abs(float(a @ b / (a.norm() * b.norm()))) for b in changes] for a in changes]
        for row, by_pairs in zip(report["likeness"], expected, strict=True):
            assert row == pytest.approx(by_pairs, abs=1e-4)
        assert report["model_evaluations"] == 1 + len(directions)

    def test_one_direction_has_nothing_to_be_compared_with(self, small):
        _, encoded, found = small
        report = plot(encoded, found["LOCO"][:1], WHAT_ELSE)
        assert report["likeness"] is None
        assert report["model_evaluations"] == 0
        assert "several" in ALONE

    def test_a_direction_that_changes_nothing_is_like_none(self, small):
        _, encoded, found = small
        still = replace(found["LOCO"][0], step=0.0)
        report = plot(encoded, [still, found["LOCO"][1]], WHAT_ELSE)
        assert report["likeness"] == [[None, None], [None, pytest.approx(1.0)]]
        assert plot(encoded, [still, still], WHAT_ELSE)["likeness"] == [[None, None], [None, None]]


class TestStrength:
    def test_against_sampling(self, small):
        test_model, encoded, found = small
        directions = [found["LOCO"][0], found["text"][0]]
        before = encoded.latent["samples"]
        report = plot(encoded, directions, STRENGTH)
        assert report["strengths"] == [-STRENGTH_LOOKED_AT, 0.0, STRENGTH_LOOKED_AT]
        sigmas = schedule_of(encoded.inversion, STEPS)
        for direction, told in zip(directions, report["directions"], strict=True):
            assert told["name"] == direction.name
            ends = [edit(test_model, encoded, direction, s, sigmas=sigmas) for s in report["strengths"]]
            expected = [float((end - before).square().mean().sqrt() / before.std()) for end in ends]
            assert told["change"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
            assert told["change"][1] == 0
            assert min(told["change"][0], told["change"][2]) > 0.01

    def test_of_decoded_pictures(self, small):
        test_model, encoded, found = small
        direction, vae = found["text"][0], ChannelVae()
        report = plot(encoded, [direction], STRENGTH, vae=vae, points=2)
        assert report["strengths"] == [-STRENGTH_LOOKED_AT, 0.0, STRENGTH_LOOKED_AT]  # 0 is always among them
        sigmas = schedule_of(encoded.inversion, STEPS)
        before = vae.decode(encoded.latent["samples"])
        ends = [vae.decode(edit(test_model, encoded, direction, s, sigmas=sigmas)) for s in report["strengths"]]
        expected = [float((end - before).square().mean().sqrt()) for end in ends]
        assert report["directions"][0]["change"] == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("vae", [None, ChannelVae()], ids=["latents", "pictures"])
    def test_of_a_batch_it_is_the_mean(self, small, vae):
        test_model, _, _ = small
        latent = picture(test_model, batch=2)
        latent["samples"][1] *= 3
        encoded = invert(test_model, latent, method="fresh noise")
        directions, _ = find(test_model, encoded.inversion, "text")
        report = plot(encoded, directions, STRENGTH, vae=vae, points=2)
        sigmas, before = schedule_of(encoded.inversion, STEPS), encoded.latent["samples"]
        for change, strength in zip(report["directions"][0]["change"], report["strengths"], strict=True):
            after = edit(test_model, encoded, directions[0], strength, sigmas=sigmas)
            if vae is None:
                each = [(a - b).square().mean().sqrt() / b.std() for a, b in zip(after, before, strict=True)]
            else:
                each = (vae.decode(after) - vae.decode(before)).square().flatten(1).mean(1).sqrt()
            assert change == pytest.approx(float(sum(each)) / 2, rel=1e-4, abs=1e-7)

    def test_the_evaluations_are_counted(self, small):
        test_model, _, found = small
        encoded = invert(test_model)
        report = plot(encoded, found["text"], STRENGTH)
        later = STEPS - 1  # at the first step nothing has moved yet
        # at both strengths words and response at every later step, and the reference once
        assert report["model_evaluations"] == 2 * later * 3 + 2 + later
        assert encoded.inversion.statistics.runs == 0  # those are of the sampler, for Edit Report
        # what is predicted on the unmoved path is known now
        assert plot(encoded, found["text"], STRENGTH)["model_evaluations"] < report["model_evaluations"]

    def test_sliders_earlier_in_the_chain_do_not_count(self, small):
        _, encoded, found = small
        moved = replace(encoded.inversion, sliders=with_slider(encoded.inversion, found["LOCO"][1], 3.0).sliders)
        chained = type(encoded)(**{**vars(encoded), "inversion": moved})
        changes = [plot(one, found["LOCO"][:1], STRENGTH)["directions"] for one in (encoded, chained)]
        assert changes[0] == changes[1]


class TestLevel:
    def test_against_predictions_of_moved_latents(self, small):
        test_model, encoded, found = small
        direction = found["LOCO"][0]
        report = plot(encoded, [direction], LEVEL)
        assert report["levels"] == pytest.approx([0.2, 0.4, 0.6])  # it was encoded at 0.6
        sampling = test_model.model.get_model_object("model_sampling")
        expected = [sampling.percent_to_sigma(1 - level) for level in report["levels"]]
        assert report["sigmas"] == pytest.approx(expected, rel=1e-4)
        assert report["sigmas"][-1] == encoded.inversion.sigma
        for share, sigma in zip(report["directions"][0]["share_in_a_tenth"], report["sigmas"], strict=True):
            change = by_hand(test_model, encoded, moved_by_hand(encoded, direction, sigma))
            assert share == pytest.approx(share_by_hand(change), rel=1e-3)
            assert 0.1 < share < 1

    @pytest.mark.parametrize("family", [Family("sd1", sd1), Family("sd3", sd3)], ids=str)
    @pytest.mark.parametrize("level", [0.0004, 0.0123, 0.5008])
    def test_no_level_is_beyond_the_picture_or_the_model_or_there_twice(self, family, level):
        test_model = loaded(family)
        sampling = test_model.model.get_model_object("model_sampling")
        encoded = invert(test_model, sigma=max(float(sampling.sigma_min), float(sampling.percent_to_sigma(1 - level))))
        directions, _ = find(test_model, encoded.inversion, "text")
        report = plot(encoded, directions, LEVEL, points=33)
        sigmas = report["sigmas"]
        assert sigmas == sorted(set(sigmas))
        assert sigmas[-1] == encoded.inversion.sigma
        assert all(float(sampling.sigma_min) < sigma for sigma in sigmas[:-1])
        assert len(sigmas) > 1 or level < 0.01

    def test_against_predictions_of_words(self, small):
        test_model, encoded, found = small
        direction = found["text"][0]
        prompts = {
            name: with_prompt(encoded.inversion.positive, prompt)
            for name, prompt in (("target", direction.words.target), ("own", direction.words.source))
        }
        report = plot(encoded, [direction], LEVEL)
        for share, sigma in zip(report["directions"][0]["share_in_a_tenth"], report["sigmas"], strict=True):

            def body(denoiser, x0, sigma=sigma):
                x = denoiser.noised(x0, encoded.inversion.paths.base.to(x0), sigma)
                return denoiser(x, sigma, "target") - denoiser(x, sigma, "own")

            assert share == pytest.approx(share_by_hand(by_hand(test_model, encoded, body, prompts)), rel=1e-3)

    def test_at_most_two_evaluations_a_level_and_direction(self, small):
        _, encoded, found = small
        moves, words = found["LOCO"][:2], found["text"]
        assert plot(encoded, moves[:1], LEVEL)["model_evaluations"] == 2 * POINTS
        assert plot(encoded, words, LEVEL)["model_evaluations"] == 2 * POINTS
        # the unmoved picture is predicted once for all directions
        assert plot(encoded, moves, LEVEL)["model_evaluations"] == 3 * POINTS
        assert plot(encoded, found["HSDS"], LEVEL)["model_evaluations"] <= 4 * POINTS

    def test_what_is_kept_takes_none(self, small):
        test_model, encoded, _ = small
        directions, _ = find(test_model, encoded.inversion, "text", keep="a hat | a cap")
        assert plot(encoded, directions, LEVEL)["model_evaluations"] == 2 * POINTS

    def test_of_decoded_pictures(self, small):
        test_model, encoded, found = small
        direction, vae = found["LOCO"][0], ChannelVae()
        report = plot(encoded, [direction], LEVEL, vae=vae, points=2)
        assert report["measured"] == "picture"
        change = by_hand(test_model, encoded, moved_by_hand(encoded, direction, encoded.inversion.sigma))
        latent_format, before = test_model.model.get_model_object("latent_format"), encoded.latent["samples"]
        ends = [latent_format.process_out(latent_format.process_in(before) + move) for move in (change, 0 * change)]
        seen = (vae.decode(ends[0]) - vae.decode(ends[1])).movedim(-1, 1)
        assert report["directions"][0]["share_in_a_tenth"][-1] == pytest.approx(share_by_hand(seen), rel=1e-3)

    def test_the_unmoved_picture_is_decoded_once(self, small):
        _, encoded, found = small
        vae = ChannelVae()
        plot(encoded, found["LOCO"], LEVEL, vae=vae)
        assert vae.decoded == 1 + POINTS * len(found["LOCO"])

    def test_a_cancel_while_decoding_ends_it(self, small):
        _, encoded, found = small
        vae = ChannelVae(cancel_at=2)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            plot(encoded, found["LOCO"], LEVEL, vae=vae)
        assert vae.decoded == 2

    def test_a_mask_makes_it_local(self, small):
        _, encoded, found = small
        mask = torch.zeros(1, 8, 8)
        mask[:, 2:4, 2:4] = 1  # 4 of 64 cells
        direction = replace(found["text"][0], mask=mask)
        report = plot(encoded, [direction], LEVEL)
        assert report["directions"][0]["share_in_a_tenth"] == pytest.approx([1.0] * POINTS)


def changes_at(encoded, directions, strength, sigma) -> tuple[list, dict]:
    return predicted_changes(encoded.inversion, directions, strength, sigma, lambda: None)


class TestPredictedChanges:
    @pytest.mark.parametrize("family", CORE, ids=str)
    def test_what_is_kept_is_left_alone(self, family):
        test_model = loaded(family)
        encoded = invert(test_model)
        (direction,), _ = find(test_model, encoded.inversion, "text", keep="a hat | a cap")
        sigma = encoded.inversion.sigma
        with torch.inference_mode():
            ((change,), cost) = changes_at(encoded, [direction], 1.0, sigma)
            ((free,), _) = changes_at(encoded, [replace(direction, keep=())], 1.0, sigma)
        (pair,) = direction.keep
        prompts = {
            name: with_prompt(encoded.inversion.positive, prompt)
            for name, prompt in (("with", pair.present), ("without", pair.absent))
        }

        def body(denoiser, x0):
            x = denoiser.noised(x0, encoded.inversion.paths.base.to(x0), sigma)
            return denoiser(x, sigma, "with") - denoiser(x, sigma, "without")

        held = by_hand(test_model, encoded, body, prompts).flatten()
        cosines = [abs(float(torch.cosine_similarity(one.flatten(), held, dim=0))) for one in (change, free)]
        assert cosines[0] < 1e-3 < cosines[1]
        assert cost["model_evaluations"] == 4

    def test_a_batch(self, small):
        test_model, _, _ = small
        encoded = invert(test_model, picture(test_model, batch=2), method="fresh noise")
        directions, _ = find(test_model, encoded.inversion, "text")
        report = plot(encoded, directions, LEVEL)
        assert report["model_evaluations"] == 2 * 2 * POINTS
        with torch.inference_mode():
            changes = [changes_at(encoded, directions, STRENGTH_LOOKED_AT, sigma)[0] for sigma in report["sigmas"]]
        expected = [np.mean([share_by_hand(one[k : k + 1]) for k in (0, 1)]) for (one,) in changes]
        assert report["directions"][0]["share_in_a_tenth"] == pytest.approx(expected, rel=1e-4)
        assert plot(encoded, directions * 2, WHAT_ELSE)["likeness"][0] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("which", [SPECTRUM, WHAT_ELSE])
def test_a_chart_of_many_directions_has_the_first_and_says_so(small, which):
    _, encoded, found = small
    known = {"singular_value": 1.0, "what_else_moves": [{"candidate": "a hat", "likeness": 0.5}]}
    direction = replace(found["LOCO"][0], notes=known)
    all_shown, *cut = (chart_of(encoded, count * [direction], which) for count in (64, 65, 66))
    assert all_shown.shape == cut[0].shape == cut[1].shape
    differing = [np.flatnonzero((one != all_shown).any(axis=(1, 2))) for one in cut]
    assert all(rows.min() > 0 and rows.max() < 40 for rows in differing)  # the title alone
    assert (cut[0] != cut[1]).any()
    assert len(plot(encoded, 65 * [direction], which)["directions"]) == 65


@pytest.mark.parametrize("which", PLOTS)
def test_the_model_is_unchanged(small, which):
    test_model, encoded, found = small
    directions = [*found["LOCO"], *found["HSDS"]]
    plot(encoded, directions, which)
    before = state_of(test_model.model)
    plot(encoded, directions, which)
    assert state_of(test_model.model) == before


@pytest.mark.parametrize("which", [WHAT_ELSE, STRENGTH, LEVEL])
def test_a_cancel_ends_it(small, which):
    test_model, encoded, found = small
    plot(encoded, found["LOCO"], which)
    before, calls = state_of(test_model.model), count(1)

    def cancel(*_):
        if next(calls) == 2:
            comfy.model_management.interrupt_current_processing()

    hook = test_model.model.model.diffusion_model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            plot(encoded, found["LOCO"], which, steps=5, points=5)
    finally:
        hook.remove()
    assert next(calls) <= 4
    comfy.model_management.interrupt_current_processing(False)
    assert state_of(test_model.model) == before


class TestRefusals:
    @pytest.mark.parametrize("which", [STRENGTH, LEVEL])
    def test_a_direction_of_another_family(self, small, which):
        _, encoded, found = small
        with pytest.raises(InputError, match="was found on a model of the family SDXL"):
            plot(encoded, [replace(found["LOCO"][0], family="SDXL")], which)

    @pytest.mark.parametrize("which", [STRENGTH, LEVEL])
    def test_a_direction_that_no_slider_can_run(self, small, which):
        _, encoded, found = small
        bare = replace(found["LOCO"][0], latent=None, feature=Feature(torch.ones(4), "layer"))
        with pytest.raises(InputError, match="Connect it to Transfer Direction first"):
            plot(encoded, [bare], which)

    def test_a_direction_of_another_size(self, small):
        _, encoded, found = small
        wide = replace(found["LOCO"][0], latent=torch.ones(16, 8, 12))
        with pytest.raises(ValueError, match="Put Transfer Direction before this node"):
            plot(encoded, [wide], LEVEL)

    @pytest.mark.parametrize(("name", "value"), [("points", 1), ("strength", 0.0), ("steps", 0), ("plot", "pie")])
    def test_inputs_out_of_range(self, small, name, value):
        _, encoded, found = small
        given = {"which": SPECTRUM, name: value} if name != "plot" else {"which": value}
        with pytest.raises(InputError, match=f"'{name}'"):
            plot(encoded, found["LOCO"], **given)

    def test_without_matplotlib_nothing_is_measured(self, small, monkeypatch):
        _, encoded, found = small
        monkeypatch.setitem(sys.modules, "matplotlib", None)

        def fail(*_):
            raise AssertionError

        hook = encoded.inversion.source_model.model.diffusion_model.register_forward_pre_hook(fail)
        try:
            with pytest.raises(MissingPackageError, match="pip install --upgrade matplotlib"):
                plot(encoded, found["LOCO"], STRENGTH)
        finally:
            hook.remove()
