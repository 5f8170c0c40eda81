"""The MODEL that leads every deterministic sampler back to the encoded picture (see core/anchor.py for the formula).

Three of ComfyUI's wrappers on a clone of the artist's MODEL, nothing else: OUTER_SAMPLE puts the stored noise, latent
and first noise level in place; SAMPLER_SAMPLE proves, without a model evaluation, that the sampler keeps to the
reference path; PREDICT_NOISE gives the anchored prediction.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

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
from .host import counted, first_noise
from .own_prompts import KEY, SOURCE, as_positive, converted, digest, keep_names
from .progress import peak_megabytes, reset_peak

KINDS = (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE)
# A sampler is exact for a constant prediction when it stays this close to the reference path, relative.
PATH_TOLERANCE = 1e-4
# What going into the model's latent space and back may round, relative.
ROUNDING = 1e-6
DETERMINISTIC = "Use a deterministic one: euler, heun, dpm_2, dpmpp_2m, lms, deis, res_multistep or ddim."
# Where a sampler may hook into a model's guidance.
GUIDANCE_OPTIONS = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")


@dataclass
class RunStatistics:
    """What the sampling runs on one inversion have cost so far, and of the latest run alone what a report says.

    Attributes:
        last_peak_megabytes: peak memory on a CUDA device; None elsewhere.
        last_return_error: how far the sampler strays when it returns to the picture, relative, by the proof before the
            run; None where the run did not get as far.
        last_remarks: sentences on what was done to the MODEL for the run.
    """

    runs: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    last_evaluations: int = 0
    last_seconds: float = 0.0
    last_peak_megabytes: float | None = None
    last_return_error: float | None = None
    last_remarks: list[str] = field(default_factory=list)

    def add(
        self,
        evaluations: int,
        seconds: float,
        peak_megabytes: float | None,
        return_error: float | None,
        remarks: list[str],
    ) -> None:
        """Count one run, whether it came to its end or not."""
        self.runs += 1
        self.evaluations += evaluations
        self.seconds += seconds
        self.last_evaluations, self.last_seconds = evaluations, seconds
        self.last_peak_megabytes, self.last_return_error, self.last_remarks = peak_megabytes, return_error, remarks


@dataclass
class _Run:
    """One sampling run: the picture and its noises on the device, and whether the sampler is only being proved."""

    guider: comfy.samplers.CFGGuider
    x0: Tensor
    noise: Tensor  # of the reference path that sampling starts on
    noises: list[Tensor]  # of all reference paths; empty where they are drawn anew at every level
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
        remarks = drop_step_caches(guider.model_options["transformer_options"].get("wrappers", {}))
        for remark in remarks:
            logging.info("Latent Directions: %s", remark)
        guider.conds |= converted(self.source, self.keep)
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        reset_peak(guider.model_patcher.load_device)
        counter, started = EvaluationCounter(), time.perf_counter()
        try:
            with counted(guider.model_patcher, counter):
                samples = executor(
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
            # the sampler's own rounding at the end, as far as the proof has shown it, would still flip 8-bit pixels
            return snap_to_reference(samples, self.latent.to(samples), max(ROUNDING, 2 * self._run.deviation))
        finally:
            run, self._run = self._run, None
            proved = None if run is None or run.proving else run.deviation
            seconds = round(time.perf_counter() - started, 3)
            self.statistics.add(counter.evaluations, seconds, peak_megabytes(guider.model_patcher), proved, remarks)

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
        noises = [] if self.paths.fresh else [noise.to(latent_image) for noise in self.paths.at(float(sigmas[0]))]
        run = self._run = _Run(
            guider,
            guider.inner_model.process_latent_in(self.latent.to(latent_image)),
            noises[0] if noises else self.paths.base.to(latent_image),
            noises,
            settings_of(guider, None if denoise_mask is None else digest(denoise_mask), KEY),
        )
        # proved on the unmoved start, with the same sampler, schedule and code as the run itself
        unmoved = first_noise(run.noise, guider.inner_model.model_sampling, sigmas[0])
        # some samplers write into the schedule they are given
        end = executor(guider, sigmas.clone(), dict(extra_args), None, unmoved, run.x0, denoise_mask, True)
        self._check_return(end, sigmas[-1])
        run.proving = False
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _check_return(self, end: Tensor, sigma: Tensor) -> None:
        """With the constant prediction x0 the sampler must have stayed on the reference path and ended on it."""
        run = self._run
        expected = run.guider.inner_model.model_sampling.inverse_noise_scaling(sigma, self._reference(sigma, run.noise))
        run.deviation = max(run.deviation, _distance(end, expected))
        if not run.deviation <= PATH_TOLERANCE:
            msg = (
                "This sampler adds noise of its own or leaves the path back to the encoded picture (by"
                f" {run.deviation:.1e}), so the slider at 0 would not give the picture back. {DETERMINISTIC}"
            )
            raise UnsupportedSamplerError(msg)

    def _reference(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """x_ref = a x0 + b n."""
        scaling = self._run.guider.inner_model.model_sampling.noise_scaling
        return scaling(sigma.reshape(1), noise.clone(), self._run.x0)

    def _predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        run, sigma = self._run, timestep.flatten()[0]
        x_ref = self._reference(sigma, run.noise)
        if run.proving:
            _check_guidance(model_options or {}, run.guider.model_options)
            run.deviation = max(run.deviation, _distance(x, x_ref))
            return run.x0.clone()
        # the sampler's own rounding, as far as the proof has shown it, is no move either
        moved = snap_to_reference(x, x_ref, max(SNAP, 2 * run.deviation)) - x_ref
        noises = run.noises or [noise.to(x) for noise in self.paths.at(float(sigma))]
        paths = [self._reference(sigma, noise) for noise in noises]

        def cached(name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
            return self.cache.get((name, self.paths.seeds, float(sigma), run.settings), compute)

        def on_paths(prompt: str) -> Tensor:
            """Mean of D on the reference paths under a prompt of ours, guidance and negative prompt as in the run."""
            with as_positive(run.guider, prompt):
                return _mean(executor(path, timestep, model_options, seed) for path in paths)

        edited = _mean(executor(path + moved, timestep, model_options, seed) for path in paths)
        basis = None
        if self.keep:
            names = tuple(keep_names(pair) for pair in self.keep)
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


def _mean(tensors: Iterable[Tensor]) -> Tensor:
    first, *others = tensors
    return first if not others else sum(others, first) / (1 + len(others))


def _check_guidance(model_options: dict, of_the_run: dict) -> None:
    """Refuse a sampler that hooks into the guidance: it goes by predictions that the anchor has moved away from."""
    if any(model_options.get(name) != of_the_run.get(name) for name in GUIDANCE_OPTIONS):
        msg = (
            "This sampler guides the model in a way of its own, as those whose names end in 'cfg_pp' do, so the slider"
            f" at 0 would not give the picture back. {DETERMINISTIC}"
        )
        raise UnsupportedSamplerError(msg)


def _distance(x: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value; infinite where x is not finite."""
    distance = float((x - reference).abs().max() / reference.abs().max().clamp_min(1e-12))
    return distance if math.isfinite(distance) else math.inf
