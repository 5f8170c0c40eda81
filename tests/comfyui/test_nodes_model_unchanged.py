"""The artist's MODEL is as it was after any node and any sampling run, also after an error and after a cancel."""

from collections import Counter

import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from families import CORE, Family, sd3
from node_runs import anchored, deviation, edit, find, invert, ksample, loaded, picture, sample, state_of

from latent_directions.core.denoiser import EvaluationCounter


@pytest.fixture(params=CORE, ids=str)
def family(request) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def not_interrupted():
    yield
    comfy.model_management.interrupt_current_processing(False)


def always() -> bool:
    """Of any kind."""
    return True


def at_forward(model, number: int, action, where=always):
    """A clone of a MODEL on which `action` is called at the n-th forward of the network, counted from 1.

    Only forwards at which `where()` holds are counted. Returns the clone and a list with an entry for every forward
    of any kind since the action.
    """
    counted, after = [], []

    def wrapper(executor, *args, **kwargs):
        if len(counted) >= number:
            after.append(None)
        elif where():
            counted.append(None)
            if len(counted) == number:
                action()
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return clone, after


def in_forward_ad() -> bool:
    """Whether a derivative is being taken without a graph."""
    return comfy.model_management.in_training and not torch.is_grad_enabled()


def in_backward_graph() -> bool:
    """Whether a graph for backward passes is being built."""
    return comfy.model_management.in_training and torch.is_grad_enabled()


def everything_of(model) -> dict:
    """The MODEL's state, and what torch and ComfyUI keep for the whole process."""
    return {
        **state_of(model),
        "module hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
        "function modes": len(torch.overrides._get_current_function_mode_stack()),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
    }


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


class PlantedError(Exception):
    """Of no class that a fall-back catches."""


def fail():
    raise PlantedError


def test_unchanged_by_all_three_stages(family):
    test_model = used(family)
    before = everything_of(test_model.model)
    latent = picture(test_model)
    samples = latent["samples"].clone()
    encoded = invert(test_model, latent)
    assert everything_of(test_model.model) == before
    for method in ("HSDS", "T-LOCO", "DDS"):  # the others take the same products
        directions, _ = find(test_model, encoded.inversion, method, keep="hat | nothing", count=1, hold_outside=1)
        assert everything_of(test_model.model) == before, method
        edit(test_model, encoded, directions[0], cfg=2.0)
        assert everything_of(test_model.model) == before, method
    ksample(test_model, encoded, denoise=0.7)
    assert everything_of(test_model.model) == before
    assert torch.equal(latent["samples"], samples)


def test_every_cast_weight_is_given_back(family, monkeypatch):
    """ComfyUI keeps weights on the graphics card for as long as a cast is not undone."""
    test_model = used(family)
    encoded = invert(test_model)
    cast, uncast, pending = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight, Counter()

    def noted_cast(layer, *args, **options):
        pending[layer] += bool(options.get("offloadable"))
        return cast(layer, *args, **options)

    def noted_uncast(layer, *args):
        pending[layer] = max(0, pending[layer] - 1)  # norms without weights undo a cast that was none
        return uncast(layer, *args)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", noted_cast)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", noted_uncast)
    find(test_model, encoded.inversion, "T-LOCO", hold_outside=1)
    assert pending
    assert not +pending


def test_the_anchored_model_is_a_clone_of_its_own(family):
    test_model = loaded(family)
    encoded = invert(test_model)
    again = invert(test_model, model=encoded.model)  # an anchored MODEL is detached first
    for model in (encoded.model, again.model):
        assert model is not test_model.model
        assert all(len(model.get_wrappers(kind, "latent_directions")) == 1 for kind in (
            WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.SAMPLER_SAMPLE,
            WrappersMP.PREDICT_NOISE))  # fmt: skip
    assert not test_model.model.get_wrappers(WrappersMP.PREDICT_NOISE, "latent_directions")
    assert torch.equal(again.noise.noise, encoded.noise.noise)


def stages(test_model):
    """Each stage as (name, number and kind of a forward in its middle, run with a model)."""
    encoded = invert(test_model)

    def search(method):
        return lambda model: find(test_model, encoded.inversion, method, model=model, hold_outside=1)

    yield "invert", 3, always, lambda model: invert(test_model, model=model)
    yield "plain forward", 1, always, search("HSDS")
    yield "forward AD of the self-check", 1, in_forward_ad, search("HSDS")
    yield "backward graph of the self-check", 1, in_backward_graph, search("HSDS")
    yield "forward AD of the method", 2, in_forward_ad, search("HSDS")
    yield "backward graph of the method", 2, in_backward_graph, search("T-LOCO")
    push = torch.ones_like(encoded.noise.noise)  # where nothing is moved, nothing is asked
    for number in (1, 4):
        yield (
            f"sampling, forward {number}",
            number,
            always,
            lambda model: sample(test_model, encoded, model=anchored(encoded, model, push), cfg=2.0),
        )


def test_unchanged_after_an_error(family):
    test_model = used(family)
    clean = invert(test_model).noise.noise
    before = everything_of(test_model.model)
    for name, number, where, run in stages(test_model):
        model, after = at_forward(test_model.model, number, fail, where)
        with pytest.raises(PlantedError):
            run(model)
        assert not after, name
        assert everything_of(test_model.model) == before, name
    assert torch.equal(invert(test_model).noise.noise, clean)


def test_unchanged_after_a_cancel(family):
    test_model = used(family)
    clean = invert(test_model).noise.noise
    before = everything_of(test_model.model)
    for name, number, where, run in stages(test_model):
        model, after = at_forward(test_model.model, number, comfy.model_management.interrupt_current_processing, where)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(model)
        assert not after, name  # it ends within the evaluation in which it was asked to
        assert everything_of(test_model.model) == before, name
        encoded = invert(test_model)  # the next queued prompt works
        assert torch.equal(encoded.noise.noise, clean), name
        assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= 1e-5, name


@pytest.mark.parametrize(("method", "derivatives"), [("LOCO", "double backward"), ("T-LOCO", "automatic")])
def test_a_cancel_ends_backward_passes_too(monkeypatch, method, derivatives):
    """On a kept graph no layer is called, so nothing of ComfyUI's own would ask for it."""
    test_model = loaded(Family("sd3", sd3))
    encoded, counted, passes = invert(test_model), EvaluationCounter.backward, []

    def backward(counter, evaluations):
        passes.append(evaluations)
        if len(passes) == 5:
            comfy.model_management.interrupt_current_processing()
        counted(counter, evaluations)

    monkeypatch.setattr(EvaluationCounter, "backward", backward)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 8:32] = 1
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        find(test_model, encoded.inversion, method, mask=mask, derivatives=derivatives)
    assert len(passes) == 5


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
        a, b = (edit(test_model, e, directions[0], cfg=2.0) for e in (plain, cached))
        assert torch.equal(a, b)


def test_the_next_run_after_a_refused_sampler_works():
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model)
    with pytest.raises(ValueError, match="deterministic"):
        sample(test_model, encoded, sampler="euler_ancestral")
    assert deviation(sample(test_model, encoded), encoded.latent["samples"]) <= 1e-5
