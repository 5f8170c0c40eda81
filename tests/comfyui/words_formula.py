"""Euler's method on the anchored prediction, written down once more: one network call for every term."""

from types import SimpleNamespace

import comfy.samplers
import torch
from families import TestModel
from test_families import Recorder

from latent_directions.core.direction import Direction
from latent_directions.nodes.prompts import with_prompt


def predicted(test_model: TestModel, x: torch.Tensor, sigma: float, positive: list, cfg: float) -> torch.Tensor:
    """D(x, sigma) under a prompt as KSampler has it."""
    guider = comfy.samplers.CFGGuider(test_model.model)
    guider.set_conds(positive, test_model.negative)
    guider.set_cfg(cfg)
    recorder, zeros = Recorder([(x, sigma)]), torch.zeros(x.shape)
    with torch.inference_mode():
        guider.sample(zeros, zeros, recorder, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    return recorder.results[0]


def euler_by_hand(
    test_model: TestModel,
    encoded: SimpleNamespace,
    direction: Direction,
    strength: float,
    *,
    recorded: bool = False,
    weight: float = 1.0,
    mask: torch.Tensor | None = None,
    cfg: float = 1.0,
    positive: list | None = None,
) -> torch.Tensor:
    """The end of a run of one slider of words: with one kept pair or none, and a mask of the latent's cells or none.

    It is computed in the number format of `test_model`; `positive` is the sampler's own prompt where it is another one.
    """
    model, own = test_model.model.model, test_model.positive
    dtype = model.get_dtype_inference()
    x0 = model.process_latent_in(encoded.latent["samples"].to(dtype))
    noise, sampling = encoded.inversion.paths.base.to(dtype), model.model_sampling
    target = with_prompt(own, direction.words.target)
    source = own if direction.words.source is None else with_prompt(own, direction.words.source)
    inside = 1.0 if mask is None else mask.to(dtype)

    def at(point: torch.Tensor, prompt: list) -> torch.Tensor:
        return predicted(test_model, point, sigma, prompt, cfg)

    sigmas = [float(sigma) for sigma in encoded.sigmas]
    x = None
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        reference = sampling.noise_scaling(torch.tensor([sigma], dtype=dtype), noise.clone(), x0)
        x = reference if x is None else x
        point = reference if recorded else x
        change = at(point, target) - at(point, source)
        for pair in direction.keep:
            kept = at(reference, with_prompt(own, pair.present)) - at(reference, with_prompt(own, pair.absent))
            change = change - (change * kept).sum() / (kept * kept).sum() * kept
        response = at(x, own if positive is None else positive) - at(reference, own)
        response = response * (inside if positive is None else 1.0)
        anchored = x0 + weight * (response + strength * inside * change)
        x = x + (x - anchored) / sigma * (following - sigma)
    return model.process_latent_out(x)
