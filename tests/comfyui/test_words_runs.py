"""Sampling under sliders of words: prompts asked for in one call are as those asked for one by one."""

from dataclasses import replace

import comfy.model_patcher
import pytest
import torch
from families import CORE, MANY, Family, conditioning, sd1, sd3, sdxl
from model_variants import rebuilt, with_controlnet, with_lora
from more_families import MORE
from node_runs import deviation, edit, invert, loaded, picture, sample

from latent_directions.core.direction import Direction, KeepPair, Prompt, Words
from latent_directions.nodes import host
from nodes import ConditioningCombine, ConditioningSetArea, ConditioningSetMask, ConditioningSetTimestepRange

ROUNDING = 2e-5  # of float32 through all steps, relative
VISIBLE = 1e-3
ALL = [*MANY, *MORE]


def prompt_like(conditioned: list, seed: int, tokens: int | None = None) -> Prompt:
    """Another prompt of the same kind, of another length where one is given."""
    generator, (text, extra) = torch.Generator().manual_seed(seed), conditioned[0]
    shape = (1, text.shape[1] if tokens is None else tokens, *text.shape[2:])
    pooled = extra.get("pooled_output")
    pooled = None if pooled is None else torch.randn(pooled.shape, generator=generator)
    kept = {name: part for name, part in extra.items() if isinstance(part, torch.Tensor) and name != "pooled_output"}
    return Prompt(torch.randn(shape, generator=generator), pooled, {n: p for n, p in kept.items() if n != "mask"})


def words(test_model, *, source: bool = False, keep: bool = False, tokens: int | None = None) -> Direction:
    """A direction of words from the picture's own prompt, or from another one, to a third."""
    target, other, *pair = (
        prompt_like(test_model.positive, seed, size)
        for seed, size in ((41, tokens), (42, tokens), (43, None), (44, None))
    )
    family = type(test_model.model.model.model_config).__name__
    kept = (KeepPair("kept", *pair),) if keep else ()
    return Direction(
        "words", "text", family, test_model.sigma, words=Words(target, other if source else None), keep=kept
    )


class Calls(list):
    """The batch sizes of all calls of a network."""

    def __init__(self, test_model):
        network = test_model.model.model.diffusion_model
        self.hook = network.register_forward_pre_hook(lambda _, inputs: self.append(inputs[0].shape[0]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


def one_by_one(monkeypatch) -> None:
    """Give every prompt a call of its own from here on."""
    monkeypatch.setattr(host, "_looks_at_batch", lambda _options: True)


def split(monkeypatch) -> None:
    """Give every entry of every prompt a call of its own, as where memory is short."""
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0)


def compared(test_model, encoded, direction, monkeypatch, *, visible=VISIBLE, **options) -> tuple[Calls, Calls]:
    """Sample in few calls and in many and compare; the calls of both, each with an Inversion of its own."""
    results, calls = [], []
    for separately in (False, True):
        fresh = invert_again(encoded)
        with monkeypatch.context() as patch, Calls(test_model) as made:
            if separately:
                one_by_one(patch)
            results.append(edit(test_model, fresh, direction, **options))
        calls.append(made)
    together, apart = results
    assert torch.isfinite(together).all()
    assert deviation(together, apart) <= ROUNDING
    assert deviation(together, encoded.latent["samples"]) > visible
    return tuple(calls)


def invert_again(encoded):
    """The same encoded picture without anything cached."""
    inversion = encoded.inversion
    fresh = replace(inversion, cache=type(inversion.cache)(), statistics=type(inversion.statistics)())
    return type(encoded)(**{**vars(encoded), "inversion": fresh})


class TestEveryFamily:
    @pytest.mark.parametrize("cfg", [1.0, 4.0])
    @pytest.mark.parametrize("family", ALL, ids=str)
    def test_one_call_is_as_several(self, family, cfg, monkeypatch):
        test_model = loaded(family)
        encoded = invert(test_model, steps=3)
        together, apart = compared(test_model, encoded, words(test_model), monkeypatch, cfg=cfg)
        # first the words where nothing has moved, then the picture's own prompt there and both at the sampled point
        guided = int(cfg > 1)
        assert together == [2 + guided, *[2 + guided, 1 + guided] * 2]
        assert apart == [1 + guided] * (2 + 2 * 3)

    @pytest.mark.parametrize("family", ALL, ids=str)
    def test_nothing_is_asked_at_strength_0(self, family):
        test_model = loaded(family)
        encoded = invert(test_model, steps=3)
        with Calls(test_model) as calls:
            result = edit(test_model, encoded, words(test_model, source=True, keep=True), 0.0, cfg=4.0)
        assert calls == []
        assert torch.equal(result, encoded.latent["samples"])


def left_and_right(test_model):
    """Two regional prompts, and one for the whole picture."""
    parts = [
        ConditioningSetArea().append(prompt, 32, 64, x, 0, 1.0)[0]
        for prompt, x in ((test_model.positive, 0), (conditioning(31, 7, 24, 32), 32))
    ]
    (both,) = ConditioningCombine().combine(*parts)
    return replace(test_model, positive=ConditioningCombine().combine(both, conditioning(32, 7, 24, 32))[0])


def masked(test_model):
    """A prompt under a mask, and one for the rest."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 8:40, 16:48] = 1.0
    (part,) = ConditioningSetMask().append(test_model.positive, mask, "default", 0.7)
    (bounds,) = ConditioningSetMask().append(conditioning(33, 7, 24, 32), mask, "mask bounds", 1.0)
    (rest,) = ConditioningSetMask().append(conditioning(34, 7, 24, 32), 1 - mask, "default", 1.0)
    return replace(test_model, positive=[*part, *bounds, *rest])


def in_turn(test_model):
    """A prompt for the first steps, another for the later ones, and a negative for the first alone."""
    (early,) = ConditioningSetTimestepRange().set_range(test_model.positive, 0.0, 0.7)
    (late,) = ConditioningSetTimestepRange().set_range(conditioning(35, 7, 24, 32), 0.7, 1.0)
    (negative,) = ConditioningSetTimestepRange().set_range(test_model.negative, 0.0, 0.8)
    return replace(test_model, positive=[*early, *late], negative=negative)


PROMPTS = {"areas": left_and_right, "masks": masked, "time ranges": in_turn}
LIKE_SD3 = [Family("sd1", sd1), Family("sdxl", sdxl), Family("sd3", sd3)]


class TestPromptsInParts:
    @pytest.mark.parametrize("short_of_memory", [False, True])
    @pytest.mark.parametrize("cfg", [1.0, 4.0])
    @pytest.mark.parametrize("kind", PROMPTS)
    @pytest.mark.parametrize("family", LIKE_SD3, ids=str)
    def test_one_call_is_as_several(self, family, kind, cfg, short_of_memory, monkeypatch):
        test_model = PROMPTS[kind](loaded(family))
        encoded = invert(test_model, steps=3)
        if short_of_memory:
            split(monkeypatch)
        direction = words(test_model, source=True, keep=True)
        together, apart = compared(test_model, encoded, direction, monkeypatch, cfg=cfg)
        assert len(together) <= len(apart)
        assert sum(together) <= sum(apart)
        assert set(together) == {1} if short_of_memory else max(together) > 2
        assert torch.equal(edit(test_model, encoded, direction, 0.0, cfg=cfg), encoded.latent["samples"])

    @pytest.mark.parametrize("tokens", [3, 14, 17])
    @pytest.mark.parametrize("family", CORE, ids=str)
    def test_of_other_lengths(self, family, tokens, monkeypatch):
        test_model = loaded(family)
        encoded = invert(test_model, steps=3)
        compared(test_model, encoded, words(test_model, tokens=tokens, source=True), monkeypatch, cfg=4.0)

    @pytest.mark.parametrize("cfg", [1.0, 4.0])
    def test_with_a_controlnet(self, cfg, monkeypatch):
        with torch.inference_mode():
            test_model = with_controlnet(loaded(Family("sdxl", sdxl)))
        encoded = invert(test_model, steps=3)
        together, _ = compared(test_model, encoded, words(test_model, source=True), monkeypatch, cfg=cfg)
        assert max(together) == 3 + (cfg > 1)
        assert torch.equal(edit(test_model, encoded, words(test_model), 0.0, cfg=cfg), encoded.latent["samples"])

    @pytest.mark.parametrize("cfg", [1.0, 4.0])
    @pytest.mark.parametrize("family", CORE, ids=str)
    def test_of_two_pictures_with_a_noise_mask(self, family, cfg, monkeypatch):
        test_model = loaded(family)
        encoded = invert(test_model, picture(test_model, batch=2), steps=3)
        mask = torch.zeros(1, *encoded.latent["samples"].shape[-2:])
        mask[..., : mask.shape[-1] // 2] = 1.0
        direction = words(test_model)
        together, _ = compared(test_model, encoded, direction, monkeypatch, cfg=cfg)
        assert max(together) == 2 * (2 + (cfg > 1))
        compared(test_model, encoded, direction, monkeypatch, cfg=cfg, noise_mask=mask)
        changed = edit(test_model, encoded, direction, cfg=cfg, noise_mask=mask) - encoded.latent["samples"]
        half = changed.shape[-1] // 2
        assert float(changed[..., half:].abs().max()) <= 1e-5 * float(encoded.latent["samples"].abs().max())
        assert (changed[..., :half].flatten(1).norm(dim=1) > 0.01).all()


class TestNumberFormats:
    @pytest.mark.parametrize("short_of_memory", [False, True])
    @pytest.mark.parametrize("formats", [(torch.bfloat16, None), (torch.bfloat16, torch.float32)], ids=str)
    @pytest.mark.parametrize("family", CORE, ids=str)
    def test_the_latent_returns_bit_for_bit(self, family, formats, short_of_memory, monkeypatch):
        with torch.inference_mode():
            test_model = rebuilt(loaded(family), *formats)
        if short_of_memory:
            split(monkeypatch)
        encoded = invert(test_model, steps=3)
        direction = words(test_model, source=True, keep=True)
        for cfg in (1.0, 4.0):
            changed = edit(test_model, encoded, direction, 1.0, cfg=cfg)
            assert deviation(changed, encoded.latent["samples"]) > VISIBLE
            assert torch.equal(edit(test_model, encoded, direction, 0.0, cfg=cfg), encoded.latent["samples"])

    def test_under_a_lora(self, monkeypatch):
        with torch.inference_mode():
            test_model = with_lora(loaded(Family("sd3", sd3)))
        encoded = invert(test_model, steps=3)
        together, _ = compared(test_model, encoded, words(test_model), monkeypatch, cfg=4.0)
        assert max(together) == 3
        assert torch.equal(sample(test_model, encoded, cfg=4.0), encoded.latent["samples"])
