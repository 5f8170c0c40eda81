"""The denoiser as a function, its noise scale and the count of its evaluations."""

import pytest
import torch
from analytic import SCALES, SHAPE

from latent_directions.core.denoiser import Denoiser, EvaluationCounter
from latent_directions.core.errors import UnknownPromptError
from latent_directions.core.inversion import seeded_noise


def points(count: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestPlainFunction:
    """A function of x and sigma alone."""

    def denoiser(self) -> Denoiser:
        return Denoiser(lambda x, sigma: x / (1 + sigma**2), SCALES["eps"])

    def test_prediction(self):
        assert torch.equal(self.denoiser()(points(2), 3.0), points(2) / 10)
        assert torch.equal(self.denoiser()(points(2), 3.0, "source", 1.0), points(2) / 10)

    def test_every_call_counts_its_batch(self):
        denoiser = self.denoiser()
        denoiser(points(3), 1.0)
        denoiser(points(1), 1.0)
        assert (denoiser.counter.evaluations, denoiser.counter.forwards) == (4, 2)

    @pytest.mark.parametrize(("prompt", "guidance"), [("target", 1.0), ("source", 2.0), ("target", 2.0)])
    def test_has_no_prompts(self, prompt, guidance):
        denoiser = self.denoiser()
        with pytest.raises(UnknownPromptError, match=f"no prompts, .* '{prompt}' at guidance {guidance}"):
            denoiser(points(1), 1.0, prompt, guidance)
        assert denoiser.counter.evaluations == 0

    def test_a_function_with_one_more_option_has_no_prompts(self):
        denoiser = Denoiser(lambda x, sigma, offset=0.0: x + offset, SCALES["eps"])
        assert torch.equal(denoiser(points(1), 1.0), points(1))
        with pytest.raises(UnknownPromptError):
            denoiser(points(1), 1.0, "target")


class TestPrompts:
    def test_predictions_under_several_prompts(self, model):
        names = ["source", "target", "free", "target"]
        found = model.denoiser.predictions(model.x, model.sigma, names)
        assert len(found) == 4
        for name, prediction in zip(names, found, strict=True):
            assert torch.allclose(prediction, model.exact(name), atol=1e-12)

    def test_guidance(self, model):
        exact = model.exact("negative") + 3 * (model.exact("target") - model.exact("negative"))
        assert torch.allclose(model.denoiser(model.x, model.sigma, "target", 3.0), exact, atol=1e-12)

    def test_without_a_counter_every_call_counts_its_batch_once(self):
        def predict(x, sigma, prompt="source", guidance=1.0):
            return {"source": x, "target": -guidance * x}[prompt]

        denoiser = Denoiser(predict, SCALES["flow"])
        assert torch.equal(denoiser(points(2), 0.5, "target", 2.0), -2 * points(2))
        denoiser(points(2), 0.5)
        assert (denoiser.counter.evaluations, denoiser.counter.forwards) == (4, 2)


class TestCounter:
    def test_one_that_is_handed_in_is_left_to_the_function(self):
        counter = EvaluationCounter()

        def predict(x, sigma):
            counter.forward(2 * len(x))  # a prompt of two parts, say
            return x

        denoiser = Denoiser(predict, SCALES["eps"], counter)
        denoiser(points(3), 1.0)
        assert denoiser.counter is counter
        assert (counter.evaluations, counter.forwards) == (6, 1)

    def test_of_the_analytic_model(self, model):
        """Two evaluations a latent with guidance."""
        model.denoiser(model.x.repeat(3, 1, 1, 1), model.sigma, "target", 3.0)
        assert (model.denoiser.counter.evaluations, model.denoiser.counter.forwards) == (6, 1)

    def test_products_count_twice(self):
        counter = EvaluationCounter()
        with counter.forward_ad():
            counter.forward(3)
        assert counter.evaluations == 6
        counter.forward(3)
        assert counter.evaluations == 9
        counter.backward(3)
        assert counter.evaluations == 15
        assert counter.forwards == 2

    def test_the_weight_is_reset_after_a_failure(self):
        counter = EvaluationCounter()
        with pytest.raises(KeyError), counter.forward_ad():
            raise KeyError
        assert counter.cost_per_forward == 1

    def test_changes_are_reported(self):
        seen = []
        counter = EvaluationCounter(on_change=seen.append)
        counter.forward(2)
        counter.backward(2)
        assert seen == [2, 6]

    def test_a_counting_function_keeps_its_signature(self):
        counter = EvaluationCounter()

        def function(x, first, second):
            return x + first * second

        counted = counter.counting(function)
        assert torch.equal(counted(points(2), 2, 3), points(2) + 6)
        assert counter.evaluations == 2
        assert counted.__wrapped__ is function


class TestScale:
    def test_noise_of_undoes_noised(self, model):
        x0 = points(2)
        noise = seeded_noise(x0, 5)
        noised = model.denoiser.noised(x0, noise, 0.6)
        a, b = model.denoiser.scale(0.6)
        assert torch.allclose(noised, a * x0 + b * noise)
        assert torch.allclose(model.denoiser.noise_of(noised, x0, 0.6), noise)
