"""The artist's MODEL is as it was after any node and any sampling run, also after an error and after a cancel."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from families import CORE, Family, sd3
from node_runs import deviation, find, invert, ksample, loaded, picture, sample, state_of

from latent_directions.nodes.manipulate import DirectionSlider


@pytest.fixture(params=CORE, ids=str)
def family(request) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def not_interrupted():
    yield
    comfy.model_management.interrupt_current_processing(False)


def at_forward(model, number: int, action):
    """A clone of a MODEL on which `action` is called at the n-th forward of the network, counted from 1."""
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(None)
        if len(seen) == number:
            action()
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return clone


def used(family: Family):
    """A model that has sampled once, so that ComfyUI's own bookkeeping on its layers is there already."""
    test_model = loaded(family)
    noise = torch.randn(test_model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        comfy.sample.sample_custom(
            test_model.model, noise, 1.0, euler, torch.tensor([test_model.sigma, 0.0]), test_model.positive,
            test_model.negative, torch.zeros_like(noise), disable_pbar=True,
        )  # fmt: skip
    return test_model


def fail():
    msg = "planted"
    raise RuntimeError(msg)


def edit(test_model, encoded, directions, strength=1.0, **options):
    with torch.inference_mode():
        model, positive, noise = DirectionSlider.execute(encoded.inversion, directions, 0, strength).args
    return sample(test_model, encoded, model=model, positive=positive, noise=noise, **options)


def test_unchanged_by_all_three_stages(family):
    test_model = used(family)
    before = state_of(test_model.model)
    latent = picture(test_model)
    samples = latent["samples"].clone()
    encoded = invert(test_model, latent)
    assert state_of(test_model.model) == before
    for method in ("HSDS", "T-LOCO", "DDS"):  # the others take the same products
        directions, _ = find(test_model, encoded.inversion, method, keep="hat | nothing", count=1, hold_outside=1)
        assert state_of(test_model.model) == before, method
        edit(test_model, encoded, directions, cfg=2.0)
        assert state_of(test_model.model) == before, method
    ksample(test_model, encoded, denoise=0.7)
    assert state_of(test_model.model) == before
    assert torch.equal(latent["samples"], samples)


def test_the_anchored_model_is_a_clone_of_its_own(family):
    test_model = loaded(family)
    encoded = invert(test_model)
    again = invert(test_model, model=encoded.model)  # an anchored MODEL is detached first
    for model in (encoded.model, again.model):
        assert model is not test_model.model
        assert all(len(model.get_wrappers(kind, "latent_directions")) == 1 for kind in (
            WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE))  # fmt: skip
    assert not test_model.model.get_wrappers(WrappersMP.PREDICT_NOISE, "latent_directions")
    assert torch.equal(again.noise.noise, encoded.noise.noise)


def stages(test_model):
    """Each stage as (name, number of a forward in its middle, run with a model)."""
    encoded = invert(test_model)
    yield "invert", 3, lambda model: invert(test_model, model=model)
    # plain forwards, forward AD, reverse mode and what comes after
    for method, number in (("HSDS", 1), ("HSDS", 4), ("T-LOCO", 5), ("T-LOCO", 8)):
        yield (
            f"{method} {number}",
            number,
            lambda model, method=method: find(test_model, encoded.inversion, method, model=model, hold_outside=1),
        )
    for number in (1, 4):
        yield (
            f"sample {number}",
            number,
            lambda model: sample(test_model, encoded, model=encoded.inversion.anchor.attach(model), cfg=2.0),
        )


def test_unchanged_after_an_error(family):
    test_model = used(family)
    clean = invert(test_model).noise.noise
    before = state_of(test_model.model)
    for name, number, run in stages(test_model):
        with pytest.raises(RuntimeError, match="planted"):
            run(at_forward(test_model.model, number, fail))
        assert state_of(test_model.model) == before, name
        assert not torch.is_grad_enabled() or not torch.is_inference_mode_enabled(), name
    assert torch.equal(invert(test_model).noise.noise, clean)


def test_unchanged_after_a_cancel(family):
    test_model = used(family)
    clean = invert(test_model).noise.noise
    before = state_of(test_model.model)
    for name, number, run in stages(test_model):
        model = at_forward(test_model.model, number, comfy.model_management.interrupt_current_processing)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(model)
        assert state_of(test_model.model) == before, name
        encoded = invert(test_model)  # the next queued prompt works
        assert torch.equal(encoded.noise.noise, clean), name
        assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= 1e-5, name


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode], ids=["EasyCache", "LazyCache"])
class TestStepCaches:
    """They answer without the network: wrong derivatives, and no return, unless they are taken off the clone."""

    def cached(self, test_model, node):
        with torch.inference_mode():
            return node.execute(test_model.model, 3.0, 0.0, 1.0, False).args[0]

    def test_inversion_is_the_same(self, family, node):
        test_model = loaded(family)
        plain = invert(test_model, steps=8)
        cached = invert(test_model, steps=8, model=self.cached(test_model, node))
        assert torch.equal(cached.noise.noise, plain.noise.noise)

    def test_directions_are_the_same(self, family, node):
        test_model = loaded(family)
        encoded = invert(test_model)
        (plain,), _ = find(test_model, encoded.inversion, "DDS")
        (cached,), _ = find(test_model, encoded.inversion, "DDS", model=self.cached(test_model, node))
        assert torch.equal(cached.latent, plain.latent)

    def test_the_latent_returns(self, family, node):
        test_model = loaded(family)
        encoded = invert(test_model, steps=8, model=self.cached(test_model, node))
        result = sample(test_model, encoded, cfg=2.0)
        assert deviation(result, encoded.latent["samples"]) <= 1e-5

    def test_edits_are_the_same(self, family, node):
        test_model = loaded(family)
        plain = invert(test_model, steps=8)
        cached = invert(test_model, steps=8, model=self.cached(test_model, node))
        directions, _ = find(test_model, plain.inversion, "text")
        a, b = (edit(test_model, e, directions, cfg=2.0) for e in (plain, cached))
        assert torch.equal(a, b)


def test_the_next_run_after_a_refused_sampler_works():
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model)
    with pytest.raises(ValueError, match="deterministic"):
        sample(test_model, encoded, sampler="euler_ancestral")
    assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= 1e-5
