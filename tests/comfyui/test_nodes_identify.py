"""Find Directions and the Direction Slider on every family: all methods run, repeat, and refuse in sentences."""

import dataclasses
import json

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, set_torch_compile_wrapper
from families import CORE, Family, flux, sd1, sd3
from node_runs import HashingClip, deviation, find, invert, loaded, picture, sample

from latent_directions.core.errors import EverythingKeptError, ShapeError
from latent_directions.core.methods import METHODS
from latent_directions.nodes.derivatives import COMPILED
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider

LEFT = torch.zeros(1, 64, 64)
LEFT[:, 16:48, 8:32] = 1


@pytest.fixture(params=CORE, ids=str)
def family(request) -> Family:
    return request.param


@pytest.fixture
def small():
    """The quickest model, for what does not depend on the family."""
    test_model = loaded(Family("sd3", sd3))
    return test_model, invert(test_model)


def slide(encoded, directions, strength, index=0, **options):
    with torch.inference_mode():
        return DirectionSlider.execute(encoded.inversion, directions, index, strength, **options).args[:3]


def edited(test_model, encoded, directions, strength, **options):
    model, positive, noise = slide(encoded, directions, strength)
    return sample(test_model, encoded, model=model, positive=positive, noise=noise, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_moves_the_picture(family, method):
    test_model = loaded(family)
    encoded = invert(test_model)
    directions, report = find(
        test_model, encoded.inversion, method, mask=LEFT, keep="a person with hat | a person without cap"
    )
    report = json.loads(report)
    assert len(directions) == (2 if METHODS[method].finds_several else 1)
    for direction in directions:
        assert direction.family == encoded.inversion.family
        if method == "text":
            assert direction.latent is None
        else:
            assert direction.latent.shape == encoded.latent["samples"].shape[1:]
            assert float(direction.latent.norm()) == pytest.approx(1, rel=1e-4)
            assert direction.step > 0
            assert report["model_evaluations"] > 0
            assert report["self_check"]["mode"] == "forward AD"
            assert report["self_check"]["difference"] < 1e-2
        assert (direction.words is None) == (not METHODS[method].moves_words)
        assert len(direction.keep) == METHODS[method].compares_words
    result = edited(test_model, encoded, directions, 1.0, cfg=2.0)
    assert torch.isfinite(result).all()
    assert deviation(result, encoded.latent["samples"]) > 1e-3


@pytest.mark.parametrize("method", ["LOCO", "DDS"])
def test_plus_and_minus_are_mirror_images_in_the_latent(family, method):
    test_model = loaded(family)
    encoded = invert(test_model)
    directions, _ = find(test_model, encoded.inversion, method)
    base = encoded.noise.noise
    (_, up, plus), (_, down, minus) = (slide(encoded, directions, s) for s in (1.5, -1.5))
    assert torch.allclose(plus.noise - base, base - minus.noise, atol=2e-6)
    assert up is down is encoded.inversion.positive  # words move the prediction, not the prompt
    # strength 1 moves the latent by `step`, so the noise by step / b
    _, _, one = slide(encoded, directions, 1.0)
    moved = float((one.noise - base).norm()) * encoded.inversion.scale[1]
    assert moved == pytest.approx(directions[0].step, rel=1e-3)


@pytest.mark.parametrize("method", ["HSDS", "LOCO", "T-LOCO"])
def test_same_seed_same_result(small, method):
    test_model, encoded = small
    (first, *_), report = find(test_model, encoded.inversion, method, mask=LEFT, seed=4)
    (again, *_), _ = find(test_model, encoded.inversion, method, mask=LEFT, seed=4)
    assert torch.equal(first.latent, again.latent)
    assert first.step == again.step
    a, b = (edited(test_model, encoded, [first], 1.0) for _ in range(2))
    assert torch.equal(a, b)


def test_the_seed_of_the_solver_hardly_matters(small):
    test_model, encoded = small
    (first, *_), (other, *_) = (
        find(test_model, encoded.inversion, "LOCO", mask=LEFT, seed=seed, count=1)[0] for seed in (1, 2)
    )
    cosine = float(torch.cosine_similarity(first.latent.flatten(), other.latent.flatten(), dim=0))
    assert abs(cosine) > 0.99


def test_moves_of_the_unmasked_outside_stay_small(small):
    """T-LOCO with directions held outside changes the denoised outside less than without."""
    test_model, encoded = small
    outside = (1 - LEFT)[:, 4::8, 4::8].bool().expand(16, 8, 8)
    leaks = []
    for null_rank in (0, 12):
        (direction,), report = find(test_model, encoded.inversion, "T-LOCO", mask=LEFT, hold_outside=null_rank)
        share = json.loads(report)["found"][0]["share_left_by_null_space"]
        assert (share == pytest.approx(1, abs=1e-5)) == (null_rank == 0)
        change = edited(test_model, encoded, [direction], 0.2)[0] - encoded.latent["samples"][0]
        leaks.append(float(change[outside].norm() / change[~outside].norm()))
    assert leaks[1] < leaks[0]


def test_keep_prompts_are_projected_off(small):
    """What keep prompts tell apart is taken off the signal: all of it where they tell apart the same as the target."""
    test_model, _ = small
    test_model.positive = HashingClip(test_model).encode_from_tokens_scheduled(["sad", "person"])
    encoded = invert(test_model)
    pair = "the happy person | the sad person"
    (free,), _ = find(test_model, encoded.inversion, "DDS", target="a happy person", image_share=1.0, text_share=0.0)
    (kept,), report = find(
        test_model, encoded.inversion, "DDS", target="a happy man", keep=pair, image_share=1.0, text_share=0.0
    )
    cosine = json.loads(report)["keep_cosines"][0]
    assert 0.05 < abs(cosine) < 1
    assert abs(float((free.latent * kept.latent).sum())) < 1e-4  # free is the keep difference itself
    assert [k.name for k in kept.keep] == ["the happy person"]
    with pytest.raises(EverythingKeptError, match="covers all .* Name in 'keep' only"):
        find(test_model, encoded.inversion, "DDS", target="a happy person", keep=pair)


def test_keep_prompts_hold_at_every_sampling_step(small):
    """Keeping the very difference that the words make leaves nothing to happen while sampling."""
    test_model, _ = small
    test_model.positive = HashingClip(test_model).encode_from_tokens_scheduled(["sad", "person"])
    encoded = invert(test_model)
    free, held = (
        find(test_model, encoded.inversion, "text", target="a happy person", keep=keep)[0]
        for keep in ("", "the happy person | the sad person")
    )
    latent = encoded.latent["samples"]
    assert deviation(edited(test_model, encoded, free, 1.0, cfg=2.0), latent) > 0.02
    assert deviation(edited(test_model, encoded, held, 1.0, cfg=2.0), latent) < 1e-4


def test_guidance_is_applied_to_the_difference_of_prompts(small):
    test_model, encoded = small
    (plain,), one = find(test_model, encoded.inversion, "DDS")
    (guided,), two = find(test_model, encoded.inversion, "DDS", guidance=3.0, negative=test_model.negative)
    # q_g = q_uncond + g (q_cond - q_uncond), and the negative is the same for both prompts: three times as large
    assert guided.step == pytest.approx(3 * plain.step, rel=1e-2)
    assert json.loads(two)["model_evaluations"] > json.loads(one)["model_evaluations"]


class TestSentences:
    """Every wrong input gets a sentence that names it."""

    @pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.compares_words])
    @pytest.mark.parametrize("empty", ["source", "target"])
    def test_empty_prompt(self, small, method, empty):
        with pytest.raises(InputError, match=f"'{empty}' is empty"):
            find(*_inversion(small), method, **{empty: "  "})

    @pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.compares_words])
    def test_no_clip(self, small, method):
        with pytest.raises(InputError, match="needs 'clip'"):
            find(*_inversion(small), method, clip=None)

    def test_loco_needs_no_words(self, small):
        directions, _ = find(*_inversion(small), "LOCO", source="", target="", clip=None, count=1)
        assert [d.name for d in directions] == ["direction 1"]

    def test_equal_prompts(self, small):
        with pytest.raises(InputError, match="'source' and 'target' are the same"):
            find(*_inversion(small), "text", source="a person", target=" a person ")

    def test_prompts_that_mean_the_same(self, small):
        with pytest.raises(InputError, match="the same meaning"):
            find(*_inversion(small), "text", source="a person", target="the person")

    def test_mask_of_another_shape(self, small):
        with pytest.raises(InputError, match=r"'mask' is 64 x 32 pixels.*another shape"):
            find(*_inversion(small), "LOCO", mask=torch.ones(1, 32, 64))

    @pytest.mark.parametrize("painted", [0, 3])
    def test_mask_that_selects_no_cell(self, small, painted):
        mask = torch.zeros(1, 64, 64)
        mask[:, :painted, :painted] = 1  # 9 of a cell's 64 pixels
        with pytest.raises(InputError, match="'mask' selects nothing"):
            find(*_inversion(small), "LOCO", mask=mask)

    @pytest.mark.parametrize("keep", ["hat", "hat | ", " | hat", "hat | hat", "a | b | c", "hat | cap\n\nhat, cap"])
    def test_keep_that_is_no_pair(self, small, keep):
        with pytest.raises(InputError, match=r"Line \d of 'keep' is .* Write two different prompts"):
            find(*_inversion(small), "text", keep=keep)

    def test_guidance_without_negative(self, small):
        with pytest.raises(InputError, match="needs a 'negative' prompt"):
            find(*_inversion(small), "DDS", guidance=2.0)

    def test_batch(self, small):
        test_model, _ = small
        encoded = invert(test_model, picture(test_model, batch=2))
        with pytest.raises(InputError, match="several pictures"):
            find(test_model, encoded.inversion, "LOCO")

    def test_model_of_another_family(self, small):
        other = loaded(Family("flux", flux))
        with pytest.raises(InputError, match="'model' is of the family Flux, but the picture was inverted with SD3"):
            find(other, small[1].inversion, "LOCO")

    @pytest.mark.parametrize("index", [-1, 1, 7])
    def test_index_out_of_range(self, small, index):
        directions, _ = find(*_inversion(small), "text")
        said = "It must be 0 to 1000" if index < 0 else "but there are 1 directions"
        with pytest.raises(InputError, match=rf"'index' is {index}.* {said}"):
            slide(small[1], directions, 1.0, index)

    def test_direction_of_another_family(self, small):
        other = loaded(Family("sd1", sd1))
        directions, _ = find(other, invert(other).inversion, "text")
        for strength in (0.0, 1.0):
            with pytest.raises(InputError, match="found on a model of the family SD15.*inverted with SD3"):
                slide(small[1], directions, strength)

    def test_direction_of_another_size(self, small):
        test_model, encoded = small
        directions, _ = find(test_model, encoded.inversion, "DDS")
        larger = invert(test_model, picture(test_model, size=(8, 16)))
        with pytest.raises(ShapeError, match="found on a latent of 16 x 8 x 8, but this picture's is 16 x 8 x 16"):
            slide(larger, directions, 1.0)


def test_words_of_another_length_than_the_picture_s_prompt(small):
    test_model, encoded = small
    clip = HashingClip(test_model)
    clip.slots = 9
    for method in ("text", "DDS"):
        directions, _ = find(test_model, encoded.inversion, method, clip=clip)
        assert directions[0].words.target.tokens.shape[1] == 9
        assert deviation(edited(test_model, encoded, directions, 1.0), encoded.latent["samples"]) > 1e-3


def _inversion(small):
    return small[0], small[1].inversion


def test_a_compiled_model_is_taken_plain(small):
    test_model, _ = small
    compiled = test_model.model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    encoded = invert(dataclasses.replace(test_model, model=compiled))
    _, report = find(test_model, encoded.inversion, "LOCO", model=compiled, count=1)
    for said in (json.loads(encoded.report), json.loads(report)):
        assert said["remarks"] == [COMPILED]
    assert compiled.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY)
