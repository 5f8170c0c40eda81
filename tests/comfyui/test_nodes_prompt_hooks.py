"""LoRA hooks on a prompt, which swap the model's weights while it runs, and patches that ask for a negative prompt."""

import json

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_sag import SelfAttentionGuidance
from derivative_errors import at_point, relative
from families import CORE, Family, sd3, sdxl
from model_variants import lora_file, with_hooks
from node_runs import deviation, find, invert, loaded, sample

from latent_directions.core.errors import DerivativeError
from latent_directions.core.operators import FORWARD_AD, prediction_jacobian
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.inspect import PreviewDirections


@pytest.fixture(params=CORE, ids=str)
def family(request) -> Family:
    return request.param


def with_lora_hook(test_model):
    """As Create Hook LoRA and Set CLIP or conditioning hooks leave it: the LoRA is on the positive prompt alone."""
    with torch.inference_mode():
        return with_hooks(test_model, comfy.hooks.create_hook_lora(lora_file(test_model), 1.0, 0.0))


class TestLoraHooks:
    """Backward passes are refused, for they would cast another prompt's weights; the other products are right."""

    def test_forward_products_are_those_of_the_loaded_lora(self, family):
        test_model = loaded(family)
        hooked = with_lora_hook(test_model)
        with torch.inference_mode():
            patched, _ = comfy.sd.load_lora_for_models(test_model.model, None, lora_file(test_model), 1.0, 0.0)

        def products(denoiser, x):
            jacobian = prediction_jacobian(denoiser, x, test_model.sigma)
            v = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
            denoiser(x, test_model.sigma, "negative")  # the weights are now those without the LoRA
            forward = jacobian.matvec(v)
            denoiser(x, test_model.sigma, "negative")
            return forward, jacobian.central_difference(v)

        without, _ = at_point(test_model, products)
        forward, difference = at_point(hooked, products)
        test_model.model = patched
        exact, _ = at_point(test_model, products)
        assert relative(without, exact) > 0.05
        assert relative(forward, exact) < 1e-4
        assert relative(difference, exact) < 1e-2

    def test_no_backward_pass(self, family):
        def backward(denoiser, x):
            prediction_jacobian(denoiser, x, 0.5).rmatvec(x)

        with pytest.raises(DerivativeError, match="A LoRA hook on a prompt changes the model's weights"):
            at_point(with_lora_hook(loaded(family)), backward)

    @pytest.mark.parametrize("method", ["HSDS", "LOCO"])
    def test_searches_do_without(self, method):
        hooked = with_lora_hook(loaded(Family("sd3", sd3)))
        encoded = invert(hooked)
        options = {} if method == "LOCO" else {"guidance": 3.0, "negative": hooked.negative}
        (found, *_), report = find(hooked, encoded.inversion, method, **options)
        check = json.loads(report)["self_check"]
        assert (check["mode"], check["backward"]) == (FORWARD_AD, False)
        assert "(A LoRA hook on a prompt changes the model's weights from call to call" in check["sentence"]
        (forward, *_), _ = find(hooked, encoded.inversion, method, derivatives="forward only", **options)
        assert torch.equal(found.latent, forward.latent)

    def test_t_loco_is_refused(self):
        hooked = with_lora_hook(loaded(Family("sd3", sd3)))
        said = "T-LOCO needs a backward pass.*A LoRA hook on a prompt.*Use the method 'HSDS'"
        with pytest.raises(DerivativeError, match=said):
            find(hooked, invert(hooked).inversion, "T-LOCO")

    def test_hooks_that_change_no_weights_change_nothing(self):
        test_model = loaded(Family("sd3", sd3))
        group = comfy.hooks.HookGroup()
        group.add(comfy.hooks.TransformerOptionsHook({"callbacks": {}}))
        hooked = with_hooks(test_model, group)
        (plain, *_), _ = find(test_model, invert(test_model).inversion, "LOCO")
        (found, *_), report = find(hooked, invert(hooked).inversion, "LOCO")
        assert json.loads(report)["self_check"]["backward"]
        assert torch.equal(found.latent, plain.latent)


class PlainVae:
    """Shows the first three channels of a latent."""

    def decode(self, samples):
        return samples[:, :3].movedim(1, -1)

    def spacial_compression_decode(self):
        return 8


class TestSelfAttentionGuidance:
    """It looks at the negative prompt at any guidance, also at 1."""

    @pytest.fixture
    def guided(self):
        test_model = loaded(Family("sdxl", sdxl))
        test_model.latent_shape = (1, 4, 16, 16)
        with torch.inference_mode():
            (test_model.model,) = SelfAttentionGuidance.execute(test_model.model, 0.5, 2.0).args
        return test_model

    def test_all_nodes_work_with_a_negative_prompt(self, guided):
        negative = guided.negative
        encoded = invert(guided, negative=negative, vae=PlainVae())
        report = json.loads(encoded.report)
        assert report["model_evaluations"] == 3 * 6  # the picture under both prompts, and blurred under the negative
        assert report["zero_strength_max_abs_diff"] == 0
        assert deviation(sample(guided, encoded), encoded.latent["samples"]) == 0
        directions, report = find(guided, encoded.inversion, "LOCO", count=1, hold_outside=0, negative=negative)
        assert json.loads(report)["self_check"]["difference"] < 1e-2
        with torch.inference_mode():
            _, report = PreviewDirections.execute(encoded.inversion, directions, PlainVae(), 1.0, 3, 4).args
        assert json.loads(report)["model_evaluations"] == 3 * (
            2 * 4 + 4
        )  # references of a schedule of its own; none at 0

    def test_a_sentence_without_one(self, guided):
        sentence = "A node on the MODEL .* asks for a 'negative' prompt at any guidance"
        with pytest.raises(InputError, match=sentence):
            invert(guided)
        encoded = invert(guided, negative=guided.negative)
        with pytest.raises(InputError, match=sentence):
            find(guided, encoded.inversion, "DDS")
        directions, _ = find(guided, encoded.inversion, "text")  # asks the model nothing
        assert len(directions) == 1
