"""Edit models: prompts with reference latents, the number of guidance-distilled models, encoders that are nodes."""

from types import SimpleNamespace

import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxGuidance, FluxKontextMultiReferenceLatentMethod
from families import CORE, Family, TestModel, assemble, conditioning, flux, sd3, sdxl
from more_families import TEXT, flux2, hunyuan_dit, qwen_image
from node_runs import HashingClip, deviation, edit, find, invert, loaded
from words_formula import euler_by_hand

from latent_directions.nodes.errors import InputError
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.prompts import encode_text, prompt_name, prompt_of, with_prompt
from latent_directions.nodes.wiring import Graph, problems
from nodes import ConditioningCombine, ConditioningSetArea, ConditioningSetMask

ROUNDING = 1e-4  # of float32 through a run that is written in another way, relative
WORDS = {"source": "leave it as it is", "target": "make her smile"}


def omnigen2() -> TestModel:
    """OmniGen2: Lumina's blocks, reference latents among the tokens, a count of text tokens beside them."""
    config = comfy.supported_models.Omnigen2(
        {
            "image_model": "omnigen2",
            "hidden_size": 96,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 32,
            "axes_dim_rope": (8, 8, 8),
            "axes_lens": (300, 512, 512),
            "text_feat_dim": 24,
            "timestep_scale": 1000.0,
        }
    )
    return assemble("omnigen2", config, (1, 16, 8, 8), {**TEXT, "attention_mask": torch.ones(1, 7, dtype=torch.long)})


class Unpadded(HashingClip):
    """A text encoder that gives every word a token and says so by a mask."""

    def encode_from_tokens_scheduled(self, words):
        ((tokens, extra),) = super().encode_from_tokens_scheduled(words)
        return [[tokens[:, : len(words)], {**extra, "attention_mask": torch.ones(1, len(words), dtype=torch.long)}]]


KINDS = [
    (flux, None),
    (flux, "offset"),
    (flux, "index"),
    (flux, "uxo/uno"),
    (flux2, None),
    (flux2, "index_timestep_zero"),
    (qwen_image, None),
    (qwen_image, "index_timestep_zero"),
    (omnigen2, None),
]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0].__name__} {kind[1] or ''}".strip())
def case(request) -> SimpleNamespace:
    """A model whose positive prompt has two reference latents, and these in the model's space."""
    build, method = request.param
    test_model = loaded(Family(build.__name__, build))
    generator, shape = torch.Generator().manual_seed(7), test_model.latent_shape
    references = [torch.randn(*shape[:-2], *size, generator=generator) for size in ((6, 4), (4, 8))]
    without = test_model.positive
    with torch.inference_mode():
        for reference in references:
            (test_model.positive,) = ReferenceLatent.execute(test_model.positive, {"samples": reference}).args
        if method is not None:
            (test_model.positive,) = FluxKontextMultiReferenceLatentMethod.execute(test_model.positive, method).args
    inside = [test_model.model.model.process_latent_in(reference) for reference in references]
    clip = Unpadded(test_model) if build is omnigen2 else HashingClip(test_model)
    words = {**WORDS, "clip": clip}
    return SimpleNamespace(test_model=test_model, references=inside, method=method, without=without, words=words)


class Inputs(list):
    """What a network is given by name, for every picture and prompt of every call."""

    def __init__(self, test_model):
        def note(_module, inputs, options):
            self.extend([(len(inputs[0]), options)])

        self.hook = test_model.model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


class TestReferenceLatents:
    def test_they_reach_the_network_for_every_prompt(self, case):
        with Inputs(case.test_model) as inputs:
            encoded = invert(case.test_model, steps=3)
            (direction,), _ = find(case.test_model, encoded.inversion, "text", keep="hat | cap", **case.words)
            edit(case.test_model, encoded, direction)
        assert sum(batch for batch, _ in inputs) == 4 + (2 + 2) + 2 * (3 + 1 + 2)
        for batch, options in inputs:
            for given, reference in zip(options["ref_latents"], case.references, strict=True):
                assert torch.equal(given, torch.cat([reference] * batch))
            method = None if case.method is None else "uxo" if "uxo" in case.method else case.method
            assert options.get("ref_latents_method") == method

    @pytest.mark.parametrize("cfg", [1.0, 3.0])
    def test_a_slider_is_the_formula(self, case, cfg):
        encoded = invert(case.test_model, steps=3)
        (direction,), _ = find(case.test_model, encoded.inversion, "text", **case.words)
        for recorded in (False, True):
            expected = euler_by_hand(case.test_model, encoded, direction, 1.0, recorded=recorded, cfg=cfg)
            found = edit(case.test_model, encoded, direction, slider={"recorded": recorded}, cfg=cfg)
            assert deviation(found, expected) <= ROUNDING
            assert deviation(found, encoded.latent["samples"]) > 1e-3
        assert torch.equal(edit(case.test_model, encoded, direction, 0.0, cfg=cfg), encoded.latent["samples"])

    def test_they_matter(self, case):
        """To what a slider does, and to the noise that Encode Picture finds."""
        encoded = invert(case.test_model, steps=3)
        (direction,), _ = find(case.test_model, encoded.inversion, "text", **case.words)
        changed = edit(case.test_model, encoded, direction)
        case.test_model.positive = case.without
        plain = invert(case.test_model, steps=3)
        assert deviation(plain.noise.noise, encoded.noise.noise) > 1e-3
        assert deviation(edit(case.test_model, plain, direction), changed) > 1e-3

    def test_searches_work_with_them(self, case):
        encoded = invert(case.test_model, steps=3)
        (direction,), _ = find(case.test_model, encoded.inversion, "DDS", **case.words)
        changed = edit(case.test_model, encoded, direction)
        assert deviation(changed, encoded.latent["samples"]) > 1e-3
        assert torch.equal(edit(case.test_model, encoded, direction, 0.0), encoded.latent["samples"])


@pytest.mark.parametrize("build", [flux, flux2])
def test_the_number_of_a_guidance_distilled_model_is_that_of_the_picture_s_prompt(build):
    test_model = loaded(Family(build.__name__, build))
    with torch.inference_mode():
        (test_model.positive,) = FluxGuidance.execute(test_model.positive, 2.5).args
    encoded, numbers = invert(test_model, steps=3), set()
    (direction,), _ = find(test_model, encoded.inversion, "text", keep="hat | cap", **WORDS)
    with Inputs(test_model) as inputs:
        found = edit(test_model, encoded, direction)
    for batch, options in inputs:
        assert options["guidance"].shape == (batch,)
        numbers |= set(options["guidance"].tolist())
    assert numbers == {2.5}
    assert sum(batch for batch, _ in inputs) > 3
    assert deviation(found, euler_by_hand(test_model, encoded, direction, 1.0)) <= ROUNDING


@pytest.mark.parametrize("method", ["text", "HSDS"])
@pytest.mark.parametrize("build", [flux, flux2])
def test_a_search_takes_that_number_too(build, method):
    """Also for prompts that come with another one; 3.5 is what ComfyUI takes where there is none."""
    test_model = loaded(Family(build.__name__, build))
    for number, prompt in ((2.5, FluxGuidance.execute(test_model.positive, 2.5).args[0]), (3.5, test_model.positive)):
        test_model.positive, numbers = prompt, set()
        encoded, words = invert(test_model, steps=3, method="fresh noise"), given(test_model)
        with torch.inference_mode():
            for name in ("source_conditioning", "target_conditioning"):
                (words[name],) = FluxGuidance.execute(words[name], 9.0).args
        options = words | {"clip": HashingClip(test_model), "keep": "hat | cap", "where": "found"}
        with Inputs(test_model) as inputs:
            find(test_model, encoded.inversion, method, **options)
        for _, asked in inputs:
            numbers |= set(asked["guidance"].tolist())
        assert numbers == {number}


@pytest.mark.parametrize("build", [flux, flux2])
def test_another_number_after_the_slider_is_another_prompt(build):
    test_model = loaded(Family(build.__name__, build))
    encoded = invert(test_model, steps=3)
    (direction,), _ = find(test_model, encoded.inversion, "text", **WORDS)
    with torch.inference_mode():
        (same,), (other,) = (FluxGuidance.execute(test_model.positive, number).args for number in (3.5, 9.0))
    picture = encoded.latent["samples"]
    assert torch.equal(edit(test_model, encoded, direction, 0.0), picture)
    assert deviation(edit(test_model, encoded, direction, 0.0, positive=other), picture) > 1e-3
    assert deviation(edit(test_model, encoded, direction, 0.0, positive=same), picture) <= ROUNDING


def given(test_model, clip=None) -> dict:
    """Source and target as conditionings, and no text."""
    clip = HashingClip(test_model) if clip is None else clip
    encoded = {f"{name}_conditioning": clip.encode_from_tokens_scheduled(clip.tokenize(WORDS[name])) for name in WORDS}
    return {"source": "", "target": "", "clip": None, **encoded}


class SecondEncoder(HashingClip):
    """An encoder that gives a second text beside the first, as HunyuanDiT's."""

    def encode_from_tokens_scheduled(self, words):
        ((tokens, extra),) = super().encode_from_tokens_scheduled(words)
        generator = torch.Generator().manual_seed(len(words))
        second = torch.randn(1, 9, 32, generator=generator)
        masks = {"attention_mask": torch.ones(1, 7), "attention_mask_mt5xl": torch.ones(1, 9)}
        return [[tokens, {**extra, "conditioning_mt5xl": second, **masks}]]


class TestConditioningsInPlaceOfTexts:
    @pytest.mark.parametrize("family", [*CORE, Family("qwen_image", qwen_image)], ids=str)
    @pytest.mark.parametrize("method", ["text", "DDS", "T-LOCO"])
    def test_they_are_as_the_texts(self, family, method):
        test_model = loaded(family)
        encoded = invert(test_model, steps=3)
        (typed,), _ = find(test_model, encoded.inversion, method, **WORDS)
        (connected,), _ = find(test_model, encoded.inversion, method, **given(test_model))
        assert [prompt_name(p) for p in connected.prompts()] == [prompt_name(p) for p in typed.prompts()]
        expected, found = (edit(test_model, encoded, direction) for direction in (typed, connected))
        assert torch.equal(found, expected)
        assert deviation(found, encoded.latent["samples"]) > 1e-3

    def test_all_that_an_encoder_gives_is_taken(self):
        test_model = loaded(Family("hunyuan_dit", hunyuan_dit))
        clip = SecondEncoder(test_model)
        encoded = invert(test_model, steps=3)
        (typed,), _ = find(test_model, encoded.inversion, "text", **{**WORDS, "clip": clip})
        (connected,), _ = find(test_model, encoded.inversion, "text", **given(test_model, clip))
        assert set(connected.words.target.extra) == {"conditioning_mt5xl", "attention_mask", "attention_mask_mt5xl"}
        assert torch.equal(edit(test_model, encoded, connected), edit(test_model, encoded, typed))

    def test_nothing_else_is(self):
        """What nodes have set on them is that of the picture's prompt."""
        test_model = loaded(Family("flux", flux))
        encoded = invert(test_model, steps=3)
        connected = given(test_model)
        (plain,), _ = find(test_model, encoded.inversion, "text", **connected)
        target = connected["target_conditioning"]
        with torch.inference_mode():
            (target,) = ReferenceLatent.execute(target, {"samples": torch.ones(1, 16, 4, 4)}).args
            (target,) = FluxGuidance.execute(target, 9.0).args
        (target,) = ConditioningSetMask().append(target, torch.ones(1, 8, 8), "default", 0.3)
        (target,) = ConditioningSetArea().append(target, 32, 32, 0, 0, 1.0)
        (found,), _ = find(test_model, encoded.inversion, "text", **{**connected, "target_conditioning": target})
        assert torch.equal(edit(test_model, encoded, found), edit(test_model, encoded, plain))

    def test_the_picture_s_own_prompt_as_source_costs_nothing_more(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, steps=3)
        connected = given(test_model) | {"source_conditioning": test_model.positive}
        (direction,), _ = find(test_model, encoded.inversion, "text", **connected)
        assert direction.words.source is None

    def test_one_of_them_beside_a_text(self):
        test_model = loaded(Family("sd3", sd3))
        encoded, clip = invert(test_model, steps=3), HashingClip(test_model)
        connected = given(test_model) | {"source_conditioning": None, "source": WORDS["source"], "clip": clip}
        (direction,), _ = find(test_model, encoded.inversion, "text", keep="hat | cap", **connected)
        assert prompt_name(direction.words.source) == prompt_name(encode_text(clip, WORDS["source"]))
        assert len(direction.keep) == 1

    def test_a_text_beside_one_names_the_slider(self):
        test_model = loaded(Family("sd3", sd3))
        encoded, connected = invert(test_model, steps=3), given(test_model)
        assert find(test_model, encoded.inversion, "text", **connected)[0][0].name == "words"
        (named,), _ = find(test_model, encoded.inversion, "text", **{**connected, "target": "smile"})
        assert named.name == "smile"

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (
                lambda c, _: {"target_conditioning": c["target_conditioning"] * 2},
                "'target_conditioning' holds 2 prompts",
            ),
            (
                lambda c, _: {"source_conditioning": ConditioningCombine().combine(*list(c.values())[-2:])[0]},
                "'source_conditioning' holds 2 prompts .* Connect one text encoder's output",
            ),
            (lambda c, _: {"source_conditioning": c["target_conditioning"]}, "are the same prompt. Connect two"),
            (
                lambda *_: {"target_conditioning": conditioning(1, 7, 20)},
                "'target_conditioning' comes from another text encoder .*: a token has 20 numbers, in that prompt 24",
            ),
            (
                lambda *_: {"target_conditioning": conditioning(1, 7, 24, 20)},
                "'target_conditioning' comes from another .*: the pooled vector has 20 numbers, in that prompt 32",
            ),
            (lambda *_: {"target_conditioning": []}, "'target_conditioning' holds no text"),
            (lambda *_: {"target_conditioning": None}, "needs 'clip' for 'target'"),
            (lambda *_: {"keep": "hat | cap"}, "needs 'clip' for 'keep'"),
            (lambda *_: {"keep": "hat | cap", "source_conditioning": None}, "needs 'clip' for 'source' and 'keep'"),
            (lambda _, clip: {"target_conditioning": None, "clip": clip}, "'target' is empty"),
        ],
    )
    def test_refused(self, change, sentence):
        test_model = loaded(Family("sd3", sd3))
        encoded, connected = invert(test_model, steps=3), given(test_model)
        connected |= change(connected, HashingClip(test_model))
        with pytest.raises(InputError, match=sentence):
            find(test_model, encoded.inversion, "text", **connected)

    def test_methods_without_words_ignore_them(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, steps=3)
        directions, _ = find(test_model, encoded.inversion, "LOCO", **given(test_model))
        assert all(direction.words is None for direction in directions)

    def test_of_a_pooled_model_reach_the_network_whole(self):
        test_model = loaded(Family("sdxl", sdxl))
        prompt = prompt_of(given(test_model)["target_conditioning"], "target_conditioning", test_model.positive)
        ((_, entry),) = with_prompt(test_model.positive, prompt)
        assert entry["pooled_output"] is prompt.pooled is not None


class TestWiring:
    """Empty texts are right where a conditioning is connected in their place."""

    def found(self, **inputs) -> list[str]:
        prompt = {"find": {"class_type": "LatentDirections_FindDirections", "inputs": {"method": "text", **inputs}}}
        return [problem.input for problem in problems(Graph(prompt, ["find"]))]

    def test_before_queueing(self):
        linked = {"source_conditioning": ["a", 0], "target_conditioning": ["b", 0]}
        assert self.found(source="", target="", **linked) == []
        assert self.found(source="a", target="a", source_conditioning=["a", 0]) == []
        assert self.found(source="", target="", source_conditioning=["a", 0]) == ["target"]
        assert self.found(source="", target="") == ["source"]

    def test_of_comfyui(self):
        check = FindDirections.validate_inputs
        assert check("text", "", "", None, None) is True  # links arrive as None
        assert check("text", "", "b", source_conditioning=None) is True
        assert "'target' is empty" in check("text", "", "", source_conditioning=None)
        assert "'source' is empty" in check("text", "", "")
