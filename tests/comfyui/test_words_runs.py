"""Sampling under sliders of words: prompts asked for in one call are as those asked for one by one."""

from copy import copy
from dataclasses import replace

import comfy.hooks
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.context_windows import ContextFuseMethods, ContextSchedules
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGNorm, CFGZeroStar
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider, DualModelGuider
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from comfy_extras.nodes_tcfg import TCFG
from comfy_extras.nodes_tomesd import TomePatchModel
from families import CORE, MANY, Family, conditioning, flux, randomise, sd1, sd3, sdxl
from model_variants import in_float64, lora_file, rebuilt, with_controlnet, with_hooks, with_lora
from more_families import MORE
from node_runs import deviation, edit, invert, loaded, picture, sample
from words_formula import euler_by_hand

from latent_directions.core.direction import Direction, KeepPair, Prompt, Words
from latent_directions.nodes import host
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import outputs, with_slider
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


def context_windows(model):
    """The picture in windows of half its width."""
    values = (model, 4, 2, ContextSchedules.STATIC_STANDARD, 1, False, ContextFuseMethods.RELATIVE, 3, False)
    return ContextWindowsManualNode.execute(*values).args[0]


def in_place(model):
    """A function of another pack that writes into the predictions it is given."""

    def function(args):
        for number, prediction in enumerate(args["conds_out"], 1):
            prediction.mul_(1 + 0.1 * number)
        return args["conds_out"]

    clone = model.clone()
    clone.set_model_sampler_pre_cfg_function(function)
    return clone


def with_options_of_its_own(model):
    """A function of another pack that asks the model again, with a patch for that call alone."""

    def function(args):
        options = args["model_options"] | {"sampler_post_cfg_function": []}
        options = set_model_options_patch_replace(options, skip, "dit", "double_block", 0)
        model, x, sigma = args["model"], args["input"], args["sigma"]
        again = comfy.samplers.sampling_function(model, x, sigma, args["uncond"], args["cond"], 2.0, options)
        return args["denoised"] + 0.5 * (args["denoised"] - again)

    def skip(args, _extra):
        return args

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(function)
    return clone


PATCHES = {
    "SelfAttentionGuidance": (sdxl, lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]),
    "PerturbedAttentionGuidance": (sdxl, lambda model: PerturbedAttentionGuidance.execute(model, 2.0).args[0]),
    "FreeU": (sd1, lambda model: FreeU.execute(model, 1.3, 1.4, 0.9, 0.2).args[0]),
    "NAGuidance": (flux, lambda model: NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]),
    "SkipLayerGuidanceDiT": (flux, lambda model: SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "0", "1").args[0]),
    "SkipLayerGuidanceDiTSimple": (
        flux,
        lambda model: SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "0", "1").args[0],
    ),
    "RescaleCFG": (sd3, lambda model: RescaleCFG().patch(model, 0.7)[0]),
    "CFGZeroStar": (sd3, lambda model: CFGZeroStar.execute(model).args[0]),
    "CFGNorm": (sd3, lambda model: CFGNorm.execute(model, 0.8).args[0]),
    "TCFG": (sd3, lambda model: TCFG.execute(model).args[0]),
    "Mahiro": (sd3, lambda model: Mahiro.execute(model).args[0]),
    "APG": (sd3, lambda model: APG.execute(model, 0.5, 1.0, 0.0).args[0]),
    "ContextWindowsManual": (sd1, context_windows),
    "writes in place": (sd3, in_place),
    "asks with options of its own": (flux, with_options_of_its_own),
}
SEPARATE = {"SelfAttentionGuidance", "FreeU", "NAGuidance", "SkipLayerGuidanceDiTSimple", "ContextWindowsManual"}
RANDOM = {
    "HyperTile": lambda model: HyperTile.execute(model, 32, 2, 0, False)[0],
    "TomePatchModel": lambda model: TomePatchModel.execute(model, 0.5).args[0],
}


class TestPatches:
    @pytest.mark.parametrize("name", PATCHES)
    def test_one_call_is_as_several(self, name, monkeypatch):
        build, patch = PATCHES[name]
        test_model = loaded(Family(build.__name__, build))
        if name == "SelfAttentionGuidance":
            test_model.latent_shape = (1, 4, 16, 16)
        encoded, direction = invert(test_model, steps=3), words(test_model, source=True)
        with torch.inference_mode():
            patched = patch(test_model.model)
        together, _ = compared(test_model, encoded, direction, monkeypatch, cfg=3.0, model=patched)
        assert (max(together) == 4) == (name not in SEPARATE)
        plain, changed = (edit(test_model, encoded, direction, cfg=3.0, model=model) for model in (None, patched))
        assert deviation(changed, plain) > VISIBLE
        for cfg in (1.0, 3.0):
            returned = edit(test_model, encoded, direction, 0.0, cfg=cfg, model=patched)
            assert torch.equal(returned, encoded.latent["samples"])

    @pytest.mark.parametrize("name", RANDOM)
    def test_that_draw_random_numbers(self, name):
        test_model = loaded(Family("sd1", sd1))
        encoded, direction = invert(test_model, steps=3), words(test_model, source=True)
        with torch.inference_mode():
            patched = RANDOM[name](test_model.model)
        with Calls(test_model) as calls:
            assert torch.isfinite(edit(test_model, encoded, direction, model=patched, cfg=3.0)).all()
        assert max(calls) == 2
        returned = edit(test_model, encoded, direction, 0.0, cfg=3.0, model=patched)
        assert torch.equal(returned, encoded.latent["samples"])

    def test_of_a_hook_on_a_prompt(self, monkeypatch):
        """A hook may bring a wrapper that looks at the batch, for its prompt alone."""
        seen, test_model = [], loaded(Family("sd1", sd1))

        def wrapper(executor, x, *args, **options):
            seen.append(len(x))
            return executor(x, *args, **options)

        group = comfy.hooks.HookGroup()
        options = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {"test": [wrapper]}}}
        group.add(comfy.hooks.TransformerOptionsHook(options, comfy.hooks.EnumHookScope.HookedOnly))
        hooked = with_hooks(test_model, group)
        encoded = invert(hooked, steps=3)
        compared(hooked, encoded, words(hooked, source=True), monkeypatch, cfg=3.0)
        assert set(seen) == {1}

    def test_of_a_lora_hook_on_a_prompt(self, monkeypatch):
        test_model = loaded(Family("sd3", sd3))
        with torch.inference_mode():
            hooked = with_hooks(test_model, comfy.hooks.create_hook_lora(lora_file(test_model), 1.0, 0.0))
            merged = comfy.sd.load_lora_for_models(test_model.model, None, lora_file(test_model), 1.0, 0.0)[0]
        encoded, direction = invert(hooked, steps=3), words(hooked, source=True)
        together, _ = compared(hooked, encoded, direction, monkeypatch, cfg=1.0)
        assert max(together) == 3
        unhooked = copy(encoded)
        unhooked.inversion = replace(invert_again(encoded).inversion, positive=test_model.positive)
        as_loaded = edit(test_model, unhooked, direction, model=merged)
        assert deviation(edit(hooked, encoded, direction), as_loaded) <= 1e-4
        assert deviation(edit(test_model, unhooked, direction), as_loaded) > VISIBLE
        assert torch.equal(edit(hooked, encoded, direction, 0.0, cfg=3.0), encoded.latent["samples"])


def guided_by(guider, encoded, noise) -> torch.Tensor:
    """What SamplerCustomAdvanced does with a guider."""
    samples = encoded.latent["samples"]
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        start = noise.generate_noise(encoded.latent)
        return guider.sample(start, samples, sampler, encoded.sigmas, disable_pbar=True, seed=1)


def dual_cfg(test_model, model, style):
    return DualCFGGuider.execute(
        model, test_model.positive, conditioning(36, 7, 24, 32), test_model.negative, 3.0, 2.0, style
    ).args[0]


def dual_model(test_model, model):
    other = loaded(Family("sd3", sd3))
    randomise(other.model.model.diffusion_model, 50)
    return DualModelGuider.execute(model, test_model.positive, 3.0, other.model, test_model.negative).args[0]


def perp_neg(test_model, model):
    empty = conditioning(37, 7, 24, 32)
    return PerpNegGuider.execute(model, test_model.positive, test_model.negative, empty, 3.0, 0.8).args[0]


GUIDERS = {
    "DualCFGGuider": lambda test_model, model: dual_cfg(test_model, model, "regular"),
    "DualCFGGuider nested": lambda test_model, model: dual_cfg(test_model, model, "nested"),
    "DualModelGuider": dual_model,
    "PerpNegGuider": perp_neg,
    "BasicGuider": lambda test_model, model: BasicGuider.execute(model, test_model.positive).args[0],
}


@pytest.mark.parametrize("name", GUIDERS)
def test_guiders(name, monkeypatch):
    test_model = loaded(Family("sd3", sd3))
    encoded, direction = invert(test_model, steps=3), words(test_model, source=True)

    def run(strength: float) -> torch.Tensor:
        fresh = invert_again(encoded)
        with torch.inference_mode():
            model, _, noise = outputs(with_slider(fresh.inversion, direction, strength))
            guider = GUIDERS[name](test_model, model)
        return guided_by(guider, fresh, noise)

    together = run(1.0)
    assert torch.equal(run(0.0), encoded.latent["samples"])
    one_by_one(monkeypatch)
    assert deviation(together, run(1.0)) <= ROUNDING
    assert deviation(together, encoded.latent["samples"]) > VISIBLE
    assert torch.equal(run(0.0), encoded.latent["samples"])


class TestTheSamplersOwnPrompt:
    def test_the_same_encoded_again(self):
        test_model = loaded(Family("sd3", sd3))
        encoded, direction = invert(test_model, steps=3), words(test_model)
        again = [[text.clone(), {k: v.clone() for k, v in extra.items()}] for text, extra in test_model.positive]
        with Calls(test_model) as calls:
            assert torch.equal(edit(test_model, encoded, direction, 0.0, positive=again), encoded.latent["samples"])
        assert calls == []
        expected = edit(test_model, invert_again(encoded), direction)
        assert torch.equal(edit(test_model, invert_again(encoded), direction, positive=again), expected)

    @pytest.mark.parametrize("cfg", [1.0, 4.0])
    def test_another_one(self, cfg, monkeypatch):
        """In one call with the words and one negative prompt."""
        test_model = loaded(Family("sd3", sd3))
        encoded, direction = invert(test_model, steps=3), words(test_model, source=True)
        options = {"positive": conditioning(38, 7, 24, 32), "cfg": cfg}
        together, _ = compared(test_model, encoded, direction, monkeypatch, **options)
        assert max(together) == 3 + (cfg > 1)

    @pytest.mark.parametrize("kind", ["areas", "masks", "control", "old control"])
    @pytest.mark.parametrize("cfg", [1.0, 4.0])
    def test_what_is_set_on_it_does_not_reach_ours(self, kind, cfg, monkeypatch):
        """ComfyUI gives areas and ControlNets of one prompt to the others: not to the picture's own."""
        test_model = loaded(Family("sdxl", sdxl))
        encoded, direction = invert(test_model, steps=3), words(test_model, source=True)
        if kind in PROMPTS:
            (other,) = [PROMPTS[kind](test_model).positive]
        else:
            with torch.inference_mode():
                other = with_controlnet(test_model).positive
            other = [[text, {**extra, "control_apply_to_uncond": kind == "old control"}] for text, extra in other]
        fresh = invert_again(encoded)
        expected = edit(test_model, fresh, direction, cfg=cfg)
        used = invert_again(encoded)
        changed = edit(test_model, used, direction, cfg=cfg, positive=other)
        assert torch.equal(edit(test_model, used, direction, cfg=cfg), expected)
        again = edit(test_model, fresh, direction, cfg=cfg, positive=other)
        assert torch.equal(again, changed)
        assert deviation(changed, expected) > VISIBLE
        compared(test_model, encoded, direction, monkeypatch, cfg=cfg, positive=other)

    def test_hooks_that_it_lacks(self):
        test_model = loaded(Family("sd3", sd3))
        with torch.inference_mode():
            hooked = with_hooks(test_model, comfy.hooks.create_hook_lora(lora_file(test_model), 1.0, 0.0))
        encoded, direction = invert(hooked, steps=3), words(hooked)
        with pytest.raises(InputError, match="has hooks .* that the sampler's prompt does not have"):
            edit(hooked, encoded, direction, positive=test_model.positive)


SLIDERS = {
    "live": {},
    "recorded": {"recorded": True},
    "weight": {"weight": 0.7},
    "mask": {"mask": True},
    "recorded, weight, mask": {"recorded": True, "weight": 0.7, "mask": True},
}


class TestFormula:
    """A run is Euler's method on the formula in core/anchor.py, computed in float64."""

    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("slider", SLIDERS)
    def test_of_a_slider(self, slider, keep):
        self.compare(Family("sd3", sd3), SLIDERS[slider], keep=keep, cfg=1.0)

    @pytest.mark.parametrize("slider", ["live", "recorded"])
    @pytest.mark.parametrize("family", LIKE_SD3, ids=str)  # Flux has no float64
    def test_of_a_family(self, family, slider):
        self.compare(family, SLIDERS[slider], keep=False, cfg=3.0)

    @pytest.mark.parametrize("slider", SLIDERS)
    def test_under_another_prompt_of_the_sampler(self, slider):
        self.compare(Family("sd3", sd3), SLIDERS[slider], keep=True, cfg=3.0, positive=conditioning(38, 7, 24, 32))

    def compare(self, family, slider, *, keep, **options):
        test_model = loaded(family)
        with torch.inference_mode():
            exact = in_float64(test_model)
        encoded, direction = invert(test_model, steps=4), words(test_model, source=True, keep=keep)
        by_hand, in_run = dict(slider), dict(slider)
        if "mask" in slider:
            height, width = encoded.latent["samples"].shape[-2:]
            by_hand["mask"] = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(9))
            in_run["mask"] = by_hand["mask"][0].repeat_interleave(8, 1).repeat_interleave(8, 2)
        expected = euler_by_hand(exact, encoded, direction, -0.8, **by_hand, **options)
        assert expected.dtype == torch.float64
        found = edit(test_model, encoded, direction, -0.8, slider=in_run, **options)
        assert deviation(found, expected) <= 1e-4
        assert deviation(expected, encoded.latent["samples"]) > 1e-2
        again = edit(test_model, encoded, direction, -0.8, slider=in_run, **options)
        assert deviation(again, expected) <= 1e-4  # from the cache


def test_another_schedule_and_guidance_after_recorded_words():
    """What is recorded belongs to the schedule and the guidance of its run."""
    test_model = loaded(Family("sd3", sd3))
    encoded, direction = invert(test_model, steps=4), words(test_model, source=True)
    runs = [{"cfg": 1.0}, {"cfg": 3.0}, {"cfg": 3.0, "sigmas": encoded.sigmas[[0, 2, 4]]}, {"sampler": "heun"}]
    slider = {"recorded": True}
    for options in [*runs, *runs]:
        fresh = edit(test_model, invert_again(encoded), direction, slider=slider, **options)
        assert torch.equal(edit(test_model, encoded, direction, slider=slider, **options), fresh)


def test_recorded_words_are_asked_for_once():
    test_model = loaded(Family("sd3", sd3))
    encoded, direction = invert(test_model, steps=4), words(test_model, source=True)
    counts = []
    for strength in (1.0, 0.5, -1.0):
        with Calls(test_model) as calls:
            edit(test_model, encoded, direction, strength, slider={"recorded": True}, cfg=3.0)
        counts.append(sum(calls))
    # target, source and negative at 4 levels, and from the second on the response and the way back
    assert counts == [4 * 3 + 3 * (2 + 2), 3 * 2, 3 * 2]


def test_an_old_controlnet_node_reaches_the_negative_in_invert_image_too():
    """It says so on the positive prompt alone; the noise is what a run of KSampler the other way would find."""
    with torch.inference_mode():
        test_model = with_controlnet(loaded(Family("sdxl", sdxl)))
    plain = loaded(Family("sdxl", sdxl)).negative
    old = [[text, {**extra, "control_apply_to_uncond": True}] for text, extra in test_model.positive]
    options = {"steps": 3, "guidance": 4.0}
    expected = invert(test_model, negative=test_model.negative, **options)
    without = invert(test_model, negative=plain, **options)
    found = invert(replace(test_model, positive=old), negative=plain, **options)
    assert torch.equal(found.noise.noise, expected.noise.noise)
    assert deviation(without.noise.noise, expected.noise.noise) > VISIBLE
