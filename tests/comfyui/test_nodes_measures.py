"""The nodes that measure: along words by CLIP, the demo model's attributes, and the disentanglement score."""

import json
import sys
from dataclasses import replace

import comfy.model_management
import numpy as np
import pytest
import torch
from clip_pairs import SIDE, NoClip, picture_by_hand, text_by_hand, text_clip, text_encoder, vision_model
from comfy_extras.nodes_easycache import EasyCacheNode
from node_runs import HashingClip, state_of

from latent_directions.core.errors import EmbeddingError, MissingPackageError, NoChangeError
from latent_directions.core.metrics import distance
from latent_directions.demo import architecture, world
from latent_directions.demo.world import ATTRIBUTES, Portrait
from latent_directions.nodes.demo_model import DemoPortrait, LoadDemoModel
from latent_directions.nodes.encode import InvertImage
from latent_directions.nodes.errors import InputError, UnsupportedModelError
from latent_directions.nodes.host import first_noise
from latent_directions.nodes.measure_demo import MeasureDemo
from latent_directions.nodes.measure_disentanglement import MeasureDisentanglement
from latent_directions.nodes.measure_reports import MOST_PLOTTED
from latent_directions.nodes.measure_words import AT_ONCE, USUAL_COSINE, MeasureWords
from latent_directions.nodes.sampling import sample_euler

WIDTH = 32
PAIRS = "a person with glasses | a person without glasses\n\n  smiling person|sad person  "
CANCELLED = comfy.model_management.InterruptProcessingException


@pytest.fixture(autouse=True)
def not_interrupted():
    yield
    comfy.model_management.interrupt_current_processing(False)


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    """Random IMAGEs of whole 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *size, 3), generator=generator) / 255.0


def is_plot(image: torch.Tensor) -> bool:
    """Whether an IMAGE is a chart: one picture with values 0 to 1, white and not only white."""
    return image.shape[0] == 1 and image.shape[2:] == (768, 3) and image.max() == 1 and image.mean() < 0.999


@pytest.fixture(scope="module")
def pair():
    """A CLIP with an encoder of another width beside the one that fits, which gives its vector unprojected."""
    clip = text_clip(clip_g=text_encoder(20, 2, True), clip_l=text_encoder(WIDTH, 3, False))
    return clip, vision_model(WIDTH)


def measure(pair, image=None, edited=None, pairs=PAIRS, crop="center"):
    clip, vision = pair
    image = pictures(1) if image is None else image
    edited = pictures(2, 7) if edited is None else edited
    with torch.inference_mode():
        plot, report = MeasureWords.execute(image, edited, vision, clip, pairs, crop).args
    return plot, json.loads(report)


class TestWords:
    def test_against_the_models_computed_by_hand(self, pair):
        clip, vision = pair
        plot, report = measure(pair)
        assert is_plot(plot)
        assert (report["text_encoder"], report["width"], report["pictures"]) == ("clip_l", WIDTH, 2)
        encoder = clip.cond_stage_model.clip_l

        def unit(v):
            return v / v.norm()

        seen = [unit(picture_by_hand(vision, picture)) for picture in torch.cat([pictures(1), pictures(2, 7)])]
        for entry in report["pairs"]:
            present, absent = (unit(text_by_hand(encoder, entry[side])) for side in ("with", "without"))
            differences = [float(v @ (present - absent)) for v in seen]
            assert max(map(abs, differences)) > 0.01
            assert entry["cosine_difference_before"] == pytest.approx(differences[0], abs=2e-6)
            assert entry["cosine_difference_after"] == pytest.approx(differences[1:], abs=2e-6)
            changes = [d - differences[0] for d in differences[1:]]
            assert entry["cosine_change"] == pytest.approx(changes, abs=2e-6)
            chances = [1 / (1 + np.exp(-100 * d)) for d in differences]
            assert entry["probability_before"] == pytest.approx(chances[0], abs=1e-4)
            assert entry["change"] == pytest.approx([c - chances[0] for c in chances[1:]], abs=1e-4)
            along = [float(unit(v - seen[0]) @ unit(present - absent)) for v in seen[1:]]
            assert entry["directional_similarity"] == pytest.approx(along, abs=1e-4)
        similar = [float(v @ seen[0]) for v in seen[1:]]
        assert report["similarity_to_the_picture_before"] == pytest.approx(similar, abs=2e-6)
        assert [(entry["with"], entry["without"]) for entry in report["pairs"]] == [
            ("a person with glasses", "a person without glasses"),
            ("smiling person", "sad person"),
        ]

    def test_without_matplotlib_nothing_is_measured(self, pair, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingPackageError, match="pip install --upgrade matplotlib"):
            measure(pair)

    def test_the_clip_answers_as_before(self, pair):
        clip, _ = pair

        def state():
            with torch.inference_mode():
                inner = clip.cond_stage_model.clip_l.encode_token_weights(clip.tokenize("a smiling person")["l"])
                return [*clip.encode_from_tokens(clip.tokenize("a smiling person"), return_pooled=True), *inner]

        before = state()
        measure(pair)
        after = state()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert clip.cond_stage_model.clip_l.return_projected_pooled is False

    def test_a_batch_gives_what_single_pictures_give(self, pair):
        many = pictures(AT_ONCE + MOST_PLOTTED, 3)
        plot, report = measure(pair, edited=many)
        assert is_plot(plot)
        for k in (0, AT_ONCE, len(many) - 1):
            _, single = measure(pair, edited=many[k : k + 1])
            for entry, alone in zip(report["pairs"], single["pairs"], strict=True):
                assert [entry["cosine_change"][k]] == pytest.approx(alone["cosine_change"], abs=1e-5)

    def test_the_same_picture_has_not_changed(self, pair):
        _, report = measure(pair, edited=pictures(1))
        for entry in report["pairs"]:
            assert entry["change"] == entry["cosine_change"] == [0]
            assert entry["directional_similarity"] == [None]

    def test_pictures_of_other_sizes_and_with_alpha(self, pair):
        wide = torch.cat([pictures(1, 4, (40, 90)), torch.ones(1, 40, 90, 1)], dim=-1)
        reports = [measure(pair, edited=wide, crop=crop)[1] for crop in ("center", "none")]
        assert reports[0]["pairs"][0]["cosine_change"] != reports[1]["pairs"][0]["cosine_change"]
        _, alike = measure(pair, edited=wide[:, :, 25:65, :3])
        middle, whole = (report["pairs"][0]["cosine_change"] for report in (reports[0], alike))
        assert middle == pytest.approx(whole, abs=0.02)

    def test_only_the_first_part_of_a_long_text_counts(self, pair):
        long = (
            "a smiling person with glasses, blond hair, blue background, with hat, open-mouthed, big-eyed, calm, angry"
        )
        _, report = measure(pair, pairs=f"{long} | a person")
        assert any("Only the first 16 tokens count of the text 'a smiling person" in r for r in report["remarks"])

    def test_small_cosines_are_remarked_on(self, pair):
        said = {}
        for seed in range(12):
            _, report = measure((pair[0], vision_model(WIDTH, seed)))
            remarked = any("may be of different models" in remark for remark in report.get("remarks", []))
            said[remarked] = abs(report["mean_cosine"])
            assert remarked == (abs(report["mean_cosine"]) < USUAL_COSINE)
        assert len(said) == 2

    def test_another_width_is_refused(self, pair):
        with pytest.raises(InputError, match="do not belong together: .* clip_g of width 20, clip_l of width 32, but"):
            measure((pair[0], vision_model(28)))

    @pytest.mark.parametrize("kind", ["siglip_vision_model", "clip_vision_model"])
    def test_vision_models_without_a_projection_are_refused(self, pair, kind):
        """DINO's vectors are as wide as some CLIP's, but mean nothing to it."""
        vision = vision_model(WIDTH, model_type=kind, projection_dim=None, hidden_size=WIDTH)
        with pytest.raises(InputError, match=f"'clip_vision' is of the kind {kind}, which has no projection"):
            measure((pair[0], vision))

    def test_text_encoders_of_other_kinds_are_refused(self, pair):
        for clip in (text_clip(t5xxl=text_encoder(WIDTH, 1, False, NoClip)), object_with_tokenize()):
            with pytest.raises(InputError, match="'clip' has no text encoder of the CLIP kind"):
                measure((clip, pair[1]))

    @pytest.mark.parametrize("value", [0.0, float("nan"), "one row"])
    def test_a_projection_that_was_not_loaded_is_refused(self, pair, value):
        encoder = text_encoder(WIDTH, 3, False)
        weight = encoder.transformer.text_projection.weight
        weight[: 1 if value == "one row" else None] = 0.0 if value == "one row" else value
        with pytest.raises(InputError, match="the file of clip_l lacks it"):
            measure((text_clip(clip_l=encoder), pair[1]))

    def test_of_two_that_fit_the_whole_one_is_taken(self, pair):
        empty = text_encoder(WIDTH, 4, True)
        empty.transformer.text_projection.weight.zero_()
        _, report = measure((text_clip(clip_l=empty, clip_g=text_encoder(WIDTH, 3, True)), pair[1]))
        assert report["text_encoder"] == "clip_g"
        _, same = measure(pair)
        assert report["pairs"] == same["pairs"]

    def test_vectors_that_are_no_numbers(self, pair):
        vision = vision_model(WIDTH)
        vision.model.visual_projection.weight.fill_(torch.nan)
        with pytest.raises(EmbeddingError, match="not numbers .* --fp32-text-enc"):
            measure((pair[0], vision))

    @pytest.mark.parametrize(
        ("pairs", "says"),
        [
            ("", "'pairs' is empty"),
            (" \n ", "'pairs' is empty"),
            (
                "glasses",
                "Line 1 of 'pairs' is 'glasses'. Write two different prompts .* one with what is to be measured",
            ),
            ("a | b\nhat | hat", "Line 2 of 'pairs'"),
            ("\n".join(f"a {k} | b" for k in range(51)), "'pairs' holds 51 pairs. Write at most 50"),
        ],
    )
    def test_pairs_that_cannot_be_measured(self, pair, pairs, says):
        with pytest.raises(InputError, match=says):
            measure(pair, pairs=pairs)

    def test_several_pictures_before_the_edit_are_refused(self, pair):
        with pytest.raises(InputError, match="'image' is a batch of 2 pictures"):
            measure(pair, image=pictures(2))

    def test_cancel(self, pair):
        comfy.model_management.interrupt_current_processing(True)
        with pytest.raises(CANCELLED):
            measure(pair)
        measure(pair)


def object_with_tokenize():
    """A text encoder of another node pack."""
    return HashingClip.__new__(HashingClip)


def drawn(*portraits: Portrait) -> torch.Tensor:
    return torch.from_numpy(np.stack([world.draw(portrait) for portrait in portraits])).float() / 255


def read(image, edited) -> tuple[torch.Tensor, dict]:
    with torch.inference_mode():
        plot, report = MeasureDemo.execute(image, edited).args
    return plot, json.loads(report)


class TestDemo:
    before = Portrait(smile=-0.5, hair_colour="brown")

    def test_drawn_changes_are_read(self):
        edits = [{"smile": 0.5}, {"glasses": True}, {"hair_colour": "red"}, {"hair_length": 0.9}]
        plot, report = read(drawn(self.before), drawn(*(replace(self.before, **edit) for edit in edits)))
        assert is_plot(plot)
        found = report["attributes"]
        assert set(found) == set(ATTRIBUTES)
        assert found["smile"]["change"][0] == pytest.approx(1 / (2 / 12**0.5), abs=0.3)
        assert found["hair_length"]["change"][3] == pytest.approx(0.4 * 12**0.5, abs=0.4)
        assert found["glasses"]["change"][1] > 0.8
        assert found["hair_colour"]["change"][2] < -0.8
        assert (found["hair_colour"]["before"], found["hair_colour"]["after"][2]) == ("brown", "red")
        assert found["smile"]["unit"] == "standard deviations"
        assert found["glasses"]["unit"] == found["background"]["unit"] == "probability"
        for name, entry in found.items():
            for k, edit in enumerate(edits):
                if name not in edit:
                    assert abs(entry["change"][k]) < 0.4, (name, edit)
        assert report["summary"].startswith("Changed most in the last picture: hair length +")
        assert "remarks" not in report

    def test_the_same_portrait_has_not_changed(self):
        _, report = read(drawn(self.before), drawn(self.before))
        assert all(entry["change"] == [0] for entry in report["attributes"].values())

    def test_other_sizes_are_resized_and_remarked_on(self):
        large = drawn(replace(self.before, glasses=True)).repeat_interleave(2, 1).repeat_interleave(2, 2)
        _, report = read(drawn(self.before), large)
        assert "resized" in report["remarks"][0]
        assert report["attributes"]["glasses"]["change"][0] > 0.8

    def test_several_portraits_before_the_edit_are_refused(self):
        with pytest.raises(InputError, match="'image' is a batch of 2 pictures"):
            read(drawn(self.before, self.before), drawn(self.before))

    def test_damaged_weights(self, tmp_path, monkeypatch):
        monkeypatch.setattr(architecture, "WEIGHTS", tmp_path)
        with pytest.raises(InputError, match="The demo model's weights cannot be read"):
            read(drawn(self.before), drawn(self.before))


@pytest.fixture(scope="module")
def demo():
    """Model, VAE, a portrait and its prompts before and after."""
    with torch.inference_mode():
        model, clip, vae = LoadDemoModel.execute().args
        image, *_, caption = DemoPortrait.execute(3).args
        target = caption.replace("brown hair", "red hair")
        assert target != caption
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (caption, target)]
    return model, vae, image, *prompts


def score(demo, level=0.6, steps=6, **changes):
    given = dict(zip(("model", "vae", "image", "positive", "target"), demo, strict=True))
    with torch.inference_mode():
        plot, images, report = MeasureDisentanglement.execute(
            **{**given, "level": level, "steps": steps, **changes}
        ).args
    return plot, images, json.loads(report)


class TestDisentanglement:
    def test_the_parts_are_those_of_the_pictures(self, demo):
        plot, images, report = score(demo)
        assert is_plot(plot)
        assert torch.equal(images[:1], demo[2])
        x, same, other, back = images
        parts = [distance(x, same), distance(x, back), distance(other, same)]
        assert [report[name] for name in ("unedited", "edited_back", "change")] == pytest.approx(parts, rel=1e-5)
        assert report["score"] == pytest.approx((parts[0] + parts[1]) / parts[2], rel=1e-5)
        assert report["vae_alone"] <= report["unedited"]
        assert 0.1 < report["score"] < 2
        assert report["model_evaluations"] == 5 * 6 + 2
        assert "remarks" not in report

    def test_the_words_change_what_they_say(self, demo):
        _, images, _ = score(demo, steps=10)
        _, found = read(images[:1], images[1:])
        assert found["attributes"]["hair_colour"]["after"] == ["brown", "red", "brown"]

    def test_the_route_is_that_of_invert_image_without_its_anchor(self, demo):
        """Each picture again from Encode Picture's noise, sampled by the plain model."""
        model, vae, image, positive, target = demo
        _, images, _ = score(demo)

        def noise_of(picture, prompt):
            latent = {"samples": vae.encode(picture)}
            options = {"level": 0.6, "steps": 6, "method": "backward euler"}
            _, noise, sigmas, *_ = InvertImage.execute(model, prompt, latent, **options).args
            return first_noise(noise.noise, model.get_model_object("model_sampling"), sigmas[0]), sigmas, latent

        def sampled(start, prompt):
            noise, sigmas, latent = start
            return vae.decode(sample_euler(model, noise, sigmas, prompt, latent)).clamp(0, 1)

        with torch.inference_mode():
            start = noise_of(image, positive)
            same, other = sampled(start, positive), sampled(start, target)
            back = sampled(noise_of(other, target), positive)
        for found, expected in zip(images[1:], (same, other, back), strict=True):
            assert (found - expected[0]).abs().max() < 1e-4

    def test_an_anchored_model_is_taken_without_its_anchor(self, demo):
        model, vae, image, positive, _ = demo
        with torch.inference_mode():
            anchored = InvertImage.execute(model, positive, {"samples": vae.encode(image)}, steps=2).args[3]
        assert score(demo, steps=2, model=anchored)[2]["score"] == pytest.approx(score(demo, steps=2)[2]["score"])

    def test_step_caches_are_left_out(self, demo):
        with torch.inference_mode():
            (cached,) = EasyCacheNode.execute(demo[0], 0.5, 0.0, 1.0, False).args
        _, _, report = score(demo, model=cached)
        assert report["score"] == pytest.approx(score(demo)[2]["score"])
        assert len(report["remarks"]) == 1
        assert "EasyCache on the MODEL was left out" in report["remarks"][0]

    def test_the_model_is_unchanged(self, demo):
        score(demo, steps=2)
        before = state_of(demo[0])
        score(demo, steps=2)
        assert state_of(demo[0]) == before
        comfy.model_management.interrupt_current_processing(True)
        with pytest.raises(CANCELLED):
            score(demo, steps=2)
        assert state_of(demo[0]) == before

    def test_a_picture_of_another_size_is_cropped_as_the_vae_does(self, demo):
        large = torch.nn.functional.pad(demo[2].movedim(-1, 1), (3, 4, 1, 1), "replicate").movedim(1, -1)
        _, images, report = score(demo, steps=2, image=torch.cat([large, torch.ones(1, 66, 71, 1)], dim=-1))
        assert images.shape == (4, 64, 64, 3)
        assert torch.equal(images[:1], demo[2])

    def test_equal_prompts_are_refused_before_anything_runs(self, demo):
        model, _, _, positive, _ = demo
        runs = []
        hook = model.model.diffusion_model.register_forward_pre_hook(lambda *_: runs.append(None))
        same = [
            [tokens.clone(), {**extra, "pooled_output": extra["pooled_output"].clone()}] for tokens, extra in positive
        ]
        try:
            with pytest.raises(NoChangeError, match="'positive' and 'target' are the same prompt. Write 'target' so"):
                score(demo, target=same)
        finally:
            hook.remove()
        assert not runs

    def test_prompts_that_change_nothing(self, demo):
        """Told apart by an entry that the model ignores."""
        same = [[tokens, {**extra, "unused": torch.ones(1)}] for tokens, extra in demo[3]]
        with pytest.raises(NoChangeError, match="Both prompts give the same picture, .* or raise 'level'"):
            score(demo, steps=1, target=same)

    def test_a_batch_is_refused(self, demo):
        with pytest.raises(InputError, match="'image' is a batch of 2 pictures"):
            score(demo, image=demo[2].repeat(2, 1, 1, 1))

    def test_another_vae_is_refused(self, demo):
        with pytest.raises(InputError, match="'vae' makes latents of 4 channels, but 'model' works with 16"):
            score(demo, vae=Vae(demo[1], lambda latent: latent[:, :4]))

    def test_a_vae_that_fails_is_named(self, demo):
        with pytest.raises(InputError, match="'vae' encodes the picture as values that are not numbers"):
            score(demo, vae=Vae(demo[1], lambda latent: latent * torch.nan))

    def test_a_vae_that_gives_another_size_back(self, demo):
        with pytest.raises(InputError, match="'vae' gives a picture of 64 x 64 pixels back as one of 64 x 32"):
            score(demo, steps=1, vae=Vae(demo[1], lambda latent: latent[:, :, :4]))

    @pytest.mark.parametrize("level", [0.0, 1.0])
    def test_levels_at_the_ends(self, demo, level):
        with pytest.raises((InputError, UnsupportedModelError), match="'level'"):
            score(demo, level=level)


class Vae:
    """A VAE whose latents are changed."""

    def __init__(self, vae, change):
        self.vae, self.change = vae, change

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def encode(self, pixels):
        return self.change(self.vae.encode(pixels))
