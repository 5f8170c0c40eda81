"""The MODEL that leads every deterministic sampler back to the encoded picture (see core/anchor.py for the formula).

Three of ComfyUI's wrappers on a clone of the artist's MODEL, nothing else: OUTER_SAMPLE puts the stored noise, latent
and first noise level in place; SAMPLER_SAMPLE proves, without a model evaluation, that the sampler keeps to the
reference path; PREDICT_NOISE gives the anchored prediction.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.anchor import SNAP, NoisePaths, ReferenceCache, anchored_prediction, orthonormal_span, snap_to_reference
from ..core.denoiser import EvaluationCounter
from ..core.direction import KeepPair
from ..core.errors import InputError, UnsupportedSamplerError
from .derivatives import drop_step_caches
from .fingerprint import settings_of
from .host import counted
from .prompts import with_prompt

KEY = "latent_directions"
SOURCE = f"{KEY} source"
KINDS = (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE)
# A sampler is exact for a constant prediction when it stays this close to the reference path, relative.
PATH_TOLERANCE = 1e-4


@dataclass
class RunStatistics:
    """What the sampling runs on one inversion have cost so far; `last` is the latest run alone."""

    runs: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    last_evaluations: int = 0
    last_seconds: float = 0.0

    def add(self, evaluations: int, seconds: float) -> None:
        """Note one finished run."""
        self.runs += 1
        self.evaluations += evaluations
        self.seconds += seconds
        self.last_evaluations, self.last_seconds = evaluations, seconds


@dataclass
class _Run:
    """One sampling run: the picture and its noise on the device, and whether the sampler is only being proved."""

    guider: comfy.samplers.CFGGuider
    x0: Tensor
    noise: Tensor
    settings: tuple
    proving: bool = True
    deviation: float = 0.0


@dataclass
class Anchor:
    """What the wrappers need of an encoded picture, and where a direction has moved it.

    Attributes:
        latent: the encoded picture, ComfyUI's latent space, (B, C, H, W).
        paths: the noises of the reference paths, model space.
        start_noise: the noise that sampling starts from: `paths.base`, moved along a direction or not.
        sigma: noise level sigma* that sampling starts at, at the highest.
        source: conditioning that describes the encoded picture.
        keep: pairs of prompts whose difference no step may follow.
        weight: w, how much of the model's change is let through; 1 by default.
    """

    latent: Tensor
    paths: NoisePaths
    start_noise: Tensor
    sigma: float
    source: list
    cache: ReferenceCache
    statistics: RunStatistics
    keep: tuple[KeepPair, ...] = ()
    weight: float = 1.0
    _run: _Run | None = field(default=None, repr=False)

    def attach(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of `model` that samples back to the picture; an anchor that was there before is replaced."""
        clone = detach(model)
        for kind, wrapper in zip(KINDS, (self._outer_sample, self._sampler_sample, self._predict_noise), strict=True):
            clone.add_wrapper_with_key(kind, KEY, wrapper)
        return clone

    def moved(self, start_noise: Tensor, keep: tuple[KeepPair, ...], weight: float = 1.0) -> Anchor:
        """The same anchor, started elsewhere; the reference predictions stay shared."""
        return replace(self, start_noise=start_noise, keep=keep, weight=weight, _run=None)

    def _outer_sample(
        self,
        executor,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
        **options,
    ):
        guider = executor.class_obj
        if latent_image.shape != self.latent.shape:
            msg = (
                f"The sampler was given a latent of shape {tuple(latent_image.shape)}, but the encoded picture's is "
                f"{tuple(self.latent.shape)}. Connect the LATENT of Invert Image to the sampler."
            )
            raise InputError(msg)
        if "positive" not in guider.conds:
            msg = (
                "This guider has no positive prompt, which the slider needs. Use Basic Guider, CFG Guider or KSampler."
            )
            raise InputError(msg)
        continued = self._continues(noise, latent_image, sigmas)
        sigmas = self._from_start_level(sigmas)
        drop_step_caches(guider.model_options)
        guider.conds |= _converted(self.source, self.keep)
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        counter, started = EvaluationCounter(), time.perf_counter()
        try:
            with counted(guider.model_patcher, counter):
                return executor(
                    noise if continued else first_noise(self._start(denoise_mask), model_sampling, sigmas[0]),
                    latent_image if continued else self.latent,
                    sampler,
                    sigmas,
                    denoise_mask,
                    callback,
                    disable_pbar,
                    seed,
                    **options,
                )
        finally:
            self._run = None
            self.statistics.add(counter.evaluations, round(time.perf_counter() - started, 3))

    def _start(self, denoise_mask: Tensor | None) -> Tensor:
        """The noise to start from; outside a noise mask, where nothing may change, it is not moved."""
        if denoise_mask is None:
            return self.start_noise
        base = self.paths.base
        return base + denoise_mask.to(base) * (self.start_noise - base)

    def _continues(self, noise: Tensor, latent_image: Tensor, sigmas: Tensor) -> bool:
        """Whether the sampler goes on from where another one stopped: no noise of its own, and a latent on the way."""
        on_the_way = float(sigmas[0]) <= self.sigma * (1 + 1e-6)
        return on_the_way and not noise.any() and not torch.equal(latent_image.cpu(), self.latent.cpu())

    def _from_start_level(self, sigmas: Tensor) -> Tensor:
        """The schedule from sigma* down: points above it are cut, and sigma* itself is the first, never rounded."""
        if float(sigmas[0]) <= self.sigma * (1 + 1e-6):
            return sigmas
        below = sigmas[sigmas < self.sigma * (1 - 1e-4)]
        # multistep samplers magnify rounding by the ratio of a step to a much shorter one before it
        if len(below) > 1 and self.sigma - below[0] < 0.1 * (below[0] - below[1]):
            below = below[1:]
        return torch.cat([sigmas.new_tensor([self.sigma]), below])

    def _sampler_sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        x0 = guider.inner_model.process_latent_in(self.latent.to(latent_image))
        self._run = _Run(
            guider,
            x0,
            self.paths.base.to(latent_image),
            settings_of(guider, None if denoise_mask is None else _digest(denoise_mask), KEY),
        )
        # proved on the unmoved start, with the same sampler, schedule and code as the run itself
        unmoved = first_noise(self._run.noise, guider.inner_model.model_sampling, sigmas[0])
        self._prove(executor, guider, sigmas, extra_args, unmoved, x0, denoise_mask)
        self._run.proving = False
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _prove(self, executor, guider, sigmas, extra_args, noise, latent_image, denoise_mask) -> None:
        """Run the sampler with the constant prediction x0: it must stay on the reference path and end on it."""
        try:
            # some samplers write into the schedule they are given
            end = executor(guider, sigmas.clone(), dict(extra_args), None, noise, latent_image, denoise_mask, True)
            expected = guider.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], self._reference(sigmas[-1]))
            deviation = max(self._run.deviation, _distance(end, expected))
        except (comfy.model_management.InterruptProcessingException, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            msg = (
                "This sampler needs more of the model than its prediction, such as a guidance of its own, so it cannot"
                " return to the encoded picture. Use a deterministic one: euler, heun, dpm_2, dpmpp_2m, lms, deis,"
                " res_multistep or ddim."
            )
            raise UnsupportedSamplerError(msg) from error
        if not deviation <= PATH_TOLERANCE:
            msg = (
                "This sampler adds noise of its own or leaves the path back to the encoded picture (by"
                f" {deviation:.1e}), so the slider at 0 would not give the picture back. Use a deterministic one:"
                " euler, heun, dpm_2, dpmpp_2m, lms, deis, res_multistep or ddim."
            )
            raise UnsupportedSamplerError(msg)

    def _reference(self, sigma: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_ref = a x0 + b n, by default with the noise that sampling starts from."""
        noise = self._run.noise if noise is None else noise
        scaling = self._run.guider.inner_model.model_sampling.noise_scaling
        return scaling(sigma.reshape(1), noise.clone(), self._run.x0)

    def _predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        run, sigma = self._run, timestep.flatten()[0]
        x_ref = self._reference(sigma)
        if run.proving:
            run.deviation = max(run.deviation, _distance(x, x_ref))
            return run.x0.clone()
        # the sampler's own rounding, as far as the proof has shown it, is no move either
        moved = snap_to_reference(x, x_ref, max(SNAP, 2 * run.deviation)) - x_ref
        paths = [self._reference(sigma, noise.to(x)) for noise in self.paths.at(float(sigma))]

        def cached(name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
            return self.cache.get((name, self.paths.seeds, float(sigma), run.settings), compute)

        def on_paths(prompt: str) -> Tensor:
            """Mean of D on the reference paths under a prompt of ours, guidance and negative prompt as in the run."""
            with _as_positive(run.guider, prompt):
                return _mean(executor(path, timestep, model_options, seed) for path in paths)

        edited = _mean(executor(path + moved, timestep, model_options, seed) for path in paths)
        basis = None
        if self.keep:
            names = tuple(_keep_names(pair) for pair in self.keep)
            basis = cached(
                names, lambda: orthonormal_span([on_paths(present) - on_paths(absent) for present, absent in names])
            )
        return anchored_prediction(run.x0, edited, cached(SOURCE, lambda: on_paths(SOURCE)), self.weight, basis)


def detach(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` without an anchor."""
    clone = model.clone()
    for kind in KINDS:
        clone.remove_wrappers_with_key(kind, KEY)
    return clone


def _converted(source: list, keep: tuple[KeepPair, ...]) -> dict[str, list[dict]]:
    """The anchor's own prompts in the form that guiders hold."""
    prompts = {SOURCE: source}
    for pair in keep:
        present, absent = _keep_names(pair)
        prompts |= {present: with_prompt(source, pair.present), absent: with_prompt(source, pair.absent)}
    return {name: comfy.sampler_helpers.convert_cond(conds) for name, conds in prompts.items()}


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    first, *others = tensors
    return first if not others else sum(others, first) / (1 + len(others))


def _keep_names(pair: KeepPair) -> tuple[str, str]:
    return tuple(f"{KEY} keep {_digest(prompt.tokens)}" for prompt in (pair.present, pair.absent))


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


@contextmanager
def _as_positive(guider: comfy.samplers.CFGGuider, name: str) -> Iterator[None]:
    """Let the guider answer for one of our prompts in place of the artist's positive."""
    positive = guider.conds["positive"]
    guider.conds["positive"] = guider.conds[name]
    try:
        yield
    finally:
        guider.conds["positive"] = positive


def first_noise(noise: Tensor, model_sampling, sigma: Tensor) -> Tensor:
    """The noise with which a sampler's first scaling gives a x0 + b n, also at sigma_max.

    There ComfyUI's eps models scale by sqrt(1 + sigma^2) in place of sigma, which is divided out.
    """
    if float(sigma) < float(model_sampling.sigma_max) * (1 - 1e-5):
        return noise
    one, zero, sigma = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), sigma.detach().cpu().reshape(1)
    b, b_max = (float(model_sampling.noise_scaling(sigma, one.clone(), zero.clone(), most)) for most in (False, True))
    return noise * (b / b_max)


def _distance(x: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value; infinite where x is not finite."""
    distance = float((x - reference).abs().max() / reference.abs().max().clamp_min(1e-12))
    return distance if math.isfinite(distance) else math.inf
