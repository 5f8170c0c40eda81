"""Models that answer from a cache, under the self-check as a search runs it."""

import pytest
import torch
from analytic import SCALES, analytic

from latent_directions.core.denoiser import Denoiser, EvaluationCounter
from latent_directions.core.operators import prediction_jacobian
from latent_directions.core.self_check import self_check
from latent_directions.nodes.caches import CacheDetector
from latent_directions.nodes.errors import CachedModelError


@pytest.fixture(params=SCALES)
def model(request):
    return analytic(request.param)


def watched(model, first: int, every: int, inside: bool) -> Denoiser:
    """A model that runs the first calls and every so many after them, and adds what the last run changed in between.

    With `inside` its network is called every time, and leaves its own layers out.
    """
    network, counter = torch.nn.Sequential(torch.nn.Identity()), EvaluationCounter()
    outer = torch.nn.Sequential(network)
    detector, stored, calls = CacheDetector(outer, counter), [], [0]

    def run(x, sigma):
        calls[0] += 1
        runs = calls[0] <= first or calls[0] % every == 0 or not stored
        if runs or inside:
            counter.forward(len(x))
        if not runs:
            return x + stored[0]
        outer(x)
        value = model.denoiser(x, sigma)
        stored[:] = [value.detach() - x.detach()]
        return value

    def predict(x, sigma):
        with detector.watch(sigma):
            return run(x, sigma)

    return Denoiser(predict, model.denoiser.scale, counter)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("first", "every"), [(1, 99), (0, 2), (2, 4), (7, 3), (10, 2)])
def test_a_model_that_answers_from_a_cache_is_refused(model, first, every, inside):
    """Such a model is repeatable, and its products agree with its own differences."""
    candidate = prediction_jacobian(watched(model, first, every, inside), model.x, model.sigma)
    with pytest.raises(CachedModelError, match="answered without running its network"):
        check = self_check(candidate)
        for _ in range(10):
            check.jacobian.matvec(model.x)


def test_a_model_that_runs_every_time_is_not(model):
    candidate = prediction_jacobian(watched(model, 99, 1, False), model.x, model.sigma)
    assert self_check(candidate, backward=False).evaluations == 7


class TestExperts:
    """Other inputs run other experts of the same network, which is no cache."""

    @staticmethod
    def network():
        """HiDream's layer of experts, by the branch of its code that runs those alone that are asked for."""
        from comfy.ldm.hidream.model import MOEFeedForwardSwiGLU

        class Chosen(MOEFeedForwardSwiGLU):
            def forward(self, x):
                chosen, weights, _ = self.gate(x)
                flat = x.view(-1, x.shape[-1])
                return x + self.moe_infer(flat, chosen.view(-1), weights.view(-1, 1)).view(x.shape)

        layer = Chosen(4, 64, num_routed_experts=8, num_activated_experts=1, operations=torch.nn)
        generator = torch.Generator().manual_seed(3)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        return torch.nn.Sequential(layer)

    def test_other_experts_are_no_cache(self):
        network, counter = self.network(), EvaluationCounter()
        detector, ran, kinds = CacheDetector(network, counter), set(), set()
        for expert in network[0].experts:
            expert.register_forward_pre_hook(lambda module, _inputs: ran.add(id(module)))
        for seed in range(12):
            tokens = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad(), detector.watch("all"):
                counter.forward(1)
                network(tokens)
            kinds.add(frozenset(ran))
            ran.clear()
        assert len(kinds) > 3

    def test_a_skipped_layer_beside_them_is_one(self):
        network, counter = self.network(), EvaluationCounter()
        detector, tokens = CacheDetector(network, counter), torch.randn(1, 2, 4)
        with torch.no_grad():
            with detector.watch("all"):
                counter.forward(1)
                network(tokens)
            with pytest.raises(CachedModelError), detector.watch("all"):
                counter.forward(1)
                network[0].experts[0](tokens)
