"""The MODEL that leads every deterministic sampler back to the encoded picture (see core/anchor.py for the formula).

Four of ComfyUI's wrappers on a clone of the artist's MODEL, nothing else: OUTER_SAMPLE puts the stored noise, latent
and first noise level in place; PREPARE_SAMPLING loads what our prompts need; SAMPLER_SAMPLE prepares them, and checks
by a trial run without a model evaluation that the sampler keeps to the reference path; PREDICT_NOISE gives the anchored
prediction.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.anchor import SNAP, AnchoredPrediction, Move, WordsMove, levels_of_steps, moved_noise, snap_to_reference
from ..core.denoiser import SOURCE, EvaluationCounter
from ..core.direction import Prompt
from ..core.errors import NoiseLevelsError
from .caches import drop_step_caches
from .errors import InputError, UnsupportedSamplerError
from .host import PromptBatch, counted, first_noise
from .model_fingerprint import fingerprint_of
from .prediction_keys import settings_of_run
from .progress import peak_megabytes, reset_peak
from .prompts import KEY, RunPrompts, holds_prompt, prompt_name
from .sampling import scale_at
from .sockets import Inversion

KINDS = (
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREPARE_SAMPLING,
    WrappersMP.SAMPLER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
)
# A sampler is exact for a constant prediction when it stays this close to the reference path, relative.
PATH_TOLERANCE = 1e-4
# What going into the model's latent space and back may round, relative.
ROUNDING = 1e-6
NOT_FINITE = (
    "Sampling ended in values that are not numbers (NaN or infinity). Lower 'strength' and the sampler's 'cfg', or run"
    " the model in a higher precision (start ComfyUI with --fp32-unet, say)."
)
TRIAL_NOT_FINITE = (
    "This sampler gives values that are not numbers (NaN or infinity) on this schedule, already in the trial run"
    " without the model."
    " Use another scheduler or number of steps, or connect the sigmas of Encode Picture."
)
OTHER_LEVEL = (
    "The direction '{}' was found at noise level sigma {:.4g} and is used at {:.4g}: its step is scaled so that the"
    " noise moves equally far, but what it does to the picture may differ. Find the direction again at this level for"
    " the best result."
)
OTHER_WEIGHTS = (
    "The direction '{}' was found on another model of the family {} (its weights differ, or are stored in a form that"
    " cannot be compared), so it may do less here, or something else. Find the direction again with this model for the"
    " best result."
)
NO_RETURN = (
    "so the slider at 0 would not give the picture back. Use a deterministic one: euler, heun, dpm_2, dpmpp_2m, lms,"
    " deis, res_multistep or ddim."
)
PART_OF_A_RUN = (
    "This sampler runs only a part of the schedule, so 'start' and 'end' of Direction Slider count within that part."
)
CACHE_FULL = (
    "The cache of predictions on this picture is full ({} MB): what does not fit is computed again in every run."
    " Nothing else changes. Fewer steps, sliders or keeps need less."
)
# Where a sampler may hook into a model's guidance.
GUIDANCE_OPTIONS = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")


@dataclass
class _Run:
    """One sampling run: its guider and prediction, and whether the sampler is still in its trial run."""

    guider: comfy.samplers.CFGGuider
    prediction: AnchoredPrediction
    trial: bool = True
    deviation: float = 0.0  # of the sampler from the reference path, relative


@dataclass
class AnchoredModel:
    """The wrappers that anchor a MODEL at an encoded picture, moved by the sliders that the inversion has passed."""

    inversion: Inversion
    _run: _Run | None = field(default=None, repr=False)
    _settings: tuple = field(default=(), repr=False)
    _run_prompts: RunPrompts | None = field(default=None, repr=False)
    _latent_shapes: list | None = field(default=None, repr=False)

    def __post_init__(self):
        sigma, sliders = self.inversion.sigma, self.inversion.sliders
        scale = functools.partial(scale_at, self.inversion.source_model)
        directions = [slider.direction for slider in sliders]
        self._remarks = [
            OTHER_LEVEL.format(direction.name, direction.sigma, sigma)
            for direction in directions
            if direction.latent is not None and not math.isclose(direction.sigma, sigma, rel_tol=1e-3)
        ]
        self._remarks += [
            OTHER_WEIGHTS.format(direction.name, direction.family)
            for direction in directions
            if direction.model is not None and direction.model.differs_from(fingerprint_of(self.inversion.source_model))
        ]
        moving = [slider for slider in sliders if slider.strength]  # one at 0 is as if it were bypassed
        self._weight = math.prod(slider.weight for slider in moving)
        self._prompts = [prompt for slider in moving for prompt in slider.direction.prompts()]
        self._moves = [
            (move, slider)
            for slider in moving
            for move in slider.direction.at(sigma, scale).moves(
                slider.strength, self._name_of, recorded=slider.recorded, mask=slider.mask
            )
        ]
        moves = [move for move, _ in self._moves]
        self.start_noise = moved_noise(self.inversion.paths.base, moves, self.inversion.scale[1])

    def model(self) -> ModelPatcher:
        """A clone of the artist's MODEL that samples back to the picture."""
        clone = without_anchor(self.inversion.source_model)
        wrappers = (self._outer_sample, self._prepare_sampling, self._sampler_sample, self._predict_noise)
        for kind, wrapper in zip(KINDS, wrappers, strict=True):
            clone.add_wrapper_with_key(kind, KEY, wrapper)
        return clone

    def _name_of(self, prompt: Prompt) -> str:
        """The name of a prompt; that of the picture's own where the two are equal, which is then asked for once."""
        return SOURCE if holds_prompt(self.inversion.positive, prompt) else prompt_name(prompt)

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
        guider, latent = executor.class_obj, self.inversion.latent["samples"]
        if latent_image.shape != latent.shape:
            msg = (
                f"The sampler was given a latent of shape {tuple(latent_image.shape)}, but the encoded picture's is "
                f"{tuple(latent.shape)}. Connect the LATENT of Encode Picture to the sampler."
            )
            raise InputError(msg)
        if "positive" not in guider.conds:
            msg = (
                "This guider has no positive prompt, which the slider needs. Use Basic Guider, CFG Guider or KSampler."
            )
            raise InputError(msg)
        _check_sigmas(sigmas)
        continued = self._continues(noise, latent_image, sigmas)
        sigmas = self._from_start_level(sigmas)
        remarks = drop_step_caches(guider.model_options["transformer_options"].get("wrappers", {}))
        for remark in remarks:
            logging.info("Latent Directions: %s", remark)
        remarks += self._remarks
        if (continued or float(sigmas[-1]) > 0) and not all(slider.whole for _, slider in self._moves):
            remarks.append(PART_OF_A_RUN)
        prompts = self._run_prompts = RunPrompts(guider, self.inversion.positive, self._prompts)
        self._latent_shapes = options.get("latent_shapes")
        model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self._settings = settings_of_run(guider, sigmas, denoise_mask)
        reset_peak(guider.model_patcher.load_device)
        counter, started = EvaluationCounter(), time.perf_counter()
        try:
            with counted(guider.model_patcher, counter):
                samples = executor(
                    noise if continued else first_noise(self._start(denoise_mask), model_sampling, sigmas[0]),
                    latent_image if continued else latent,
                    sampler,
                    sigmas,
                    denoise_mask,
                    callback,
                    disable_pbar,
                    seed,
                    **options,
                )
            if not torch.isfinite(samples).all():
                raise InputError(NOT_FINITE)
            # the sampler's own rounding, as measured in the trial run, would still flip 8-bit pixels
            return snap_to_reference(samples, latent.to(samples), max(ROUNDING, 2 * self._run.deviation))
        finally:
            run, self._run, self._run_prompts = self._run, None, None
            comfy.sampler_helpers.cleanup_models(prompts.own, [])
            return_error = None if run is None or run.trial else run.deviation
            if self.inversion.cache.full:
                remarks.append(CACHE_FULL.format(self.inversion.cache.max_bytes // 2**20))
            seconds = round(time.perf_counter() - started, 3)
            memory = peak_megabytes(guider.model_patcher)
            self.inversion.statistics.add(counter.evaluations, seconds, memory, return_error, remarks)

    def _start(self, denoise_mask: Tensor | None) -> Tensor:
        """The noise to start from; outside a noise mask, where nothing may change, it is not moved."""
        if denoise_mask is None:
            return self.start_noise
        base = self.inversion.paths.base
        return base + denoise_mask.to(base) * (self.start_noise - base)

    def _continues(self, noise: Tensor, latent_image: Tensor, sigmas: Tensor) -> bool:
        """Whether the sampler goes on from where another stopped: no noise of its own, and not the encoded latent."""
        below_start = float(sigmas[0]) <= self.inversion.sigma * (1 + 1e-6)
        encoded = self.inversion.latent["samples"]
        return below_start and not noise.any() and not torch.equal(latent_image.cpu(), encoded.cpu())

    def _from_start_level(self, sigmas: Tensor) -> Tensor:
        """The schedule from sigma* down: points above it are cut, and sigma* itself is the first, never rounded.

        Repeated noise levels, which some schedulers give for many steps, are left out: multistep samplers divide by
        the difference.
        """
        start = self.inversion.sigma
        sigmas = torch.unique_consecutive(sigmas.cpu()).to(sigmas)
        if float(sigmas[0]) <= start * (1 + 1e-6):
            return sigmas
        below = sigmas[sigmas < start * (1 - 1e-4)]
        # multistep samplers magnify rounding by the ratio of a step to a much shorter one before it
        if len(below) > 1 and start - below[0] < 0.1 * (below[0] - below[1]):
            below = below[1:]
        return torch.cat([sigmas.new_tensor([start]), below])

    def _moves_at(self, sigmas: list[float]) -> list[Move]:
        """The moves of a run with these noise levels: words whose slider acts at some steps alone get their levels."""
        moves = []
        for move, slider in self._moves:
            if isinstance(move, WordsMove) and not slider.whole:
                try:
                    levels = levels_of_steps(sigmas, slider.start, slider.end)
                except NoiseLevelsError as error:
                    msg = f"{error} Set 'start' and 'end' of the Direction Slider further apart, or take more steps."
                    raise InputError(msg) from error
                moves.append(replace(move, levels=levels))
            else:
                moves.append(move)
        return moves

    def _prepare_sampling(self, executor, model, noise_shape, conds, *args, **options):
        """Load the ControlNets of our prompts too, for which the guider itself does not ask."""
        if self._run_prompts is None:
            return executor(model, noise_shape, conds, *args, **options)
        ours = {f"{KEY} {name}": own for name, own in self._run_prompts.own.items()}
        network, _, models = executor(model, noise_shape, conds | ours, *args, **options)
        return network, conds, models

    def _sampler_sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        model, device, seed = guider.inner_model, guider.model_patcher.load_device, extra_args.get("seed")
        shapes = self._latent_shapes
        self._run_prompts.prepare(guider, noise, device, latent_image, denoise_mask, seed, latent_shapes=shapes)
        prediction = AnchoredPrediction(
            model.process_latent_in(self.inversion.latent["samples"].to(latent_image)),
            self.inversion.paths,
            functools.partial(_noised, model.model_sampling),
            self._moves_at(sigmas.tolist()),
            self._weight,
            self._run_prompts.asked_with,
            self.inversion.cache,
            self._settings,
        )
        run = self._run = _Run(guider, prediction)
        # a trial run from the unmoved start, with the same sampler, schedule and code as the run itself
        unmoved = first_noise(prediction.noise, model.model_sampling, sigmas[0])
        # some samplers write into the schedule they are given
        end = executor(guider, sigmas.clone(), dict(extra_args), None, unmoved, prediction.x0, denoise_mask, True)
        self._check_return(end, sigmas[-1])
        run.trial = False
        # the sampler's own rounding, as measured in the trial run, is no move either
        prediction.snap = max(SNAP, 2 * run.deviation)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _check_return(self, end: Tensor, sigma: Tensor) -> None:
        """With the constant prediction x0 the sampler must have stayed on the reference path and ended on it."""
        run = self._run
        if not torch.isfinite(end).all():
            raise UnsupportedSamplerError(TRIAL_NOT_FINITE)
        scaling = run.guider.inner_model.model_sampling.inverse_noise_scaling
        run.deviation = max(run.deviation, _distance(end, scaling(sigma, run.prediction.reference(float(sigma)))))
        if not run.deviation <= PATH_TOLERANCE:
            msg = (
                "This sampler adds noise of its own or leaves the path back to the encoded picture (by"
                f" {run.deviation:.1e}), {NO_RETURN}"
            )
            raise UnsupportedSamplerError(msg)

    def _predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        run, sigma = self._run, float(timestep.flatten()[0])
        if run.trial:
            _check_guidance(model_options or {}, run.guider.model_options)
            run.deviation = max(run.deviation, _distance(x, run.prediction.reference(sigma)))
            return run.prediction.x0.clone()

        def predictions(point: Tensor, _sigma: float, prompts: Sequence[str]) -> list[Tensor]:
            """Guidance, negative prompt and options are those of the run."""
            named = self._run_prompts
            batch = PromptBatch([named.positive(run.guider, prompt) for prompt in prompts], model_options or {})
            found = []
            for prompt in prompts:
                with named.as_positive(run.guider, prompt):
                    found.append(executor(point, timestep, batch.options, seed))
            return found

        return run.prediction(x, sigma, predictions)


def _check_sigmas(sigmas: Tensor) -> None:
    """Refuse a schedule that no sampler can follow."""
    levels = sigmas.flatten().cpu()
    if not torch.isfinite(levels).all() or (levels.diff() > 0).any() or (levels < 0).any() or not levels[0] > 0:
        msg = (
            "'sigmas' of the sampler must be noise levels that decrease and start above 0, but they are"
            f" {', '.join(f'{float(level):.4g}' for level in levels[:5])}{', ...' if len(levels) > 5 else ''}. Connect"
            " the sigmas of Encode Picture or of a scheduler."
        )
        raise InputError(msg)


def _noised(model_sampling, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """a x0 + b n by the model's own scaling, which may write into the noise it is given."""
    level = torch.tensor([sigma], dtype=torch.float32, device=x0.device)
    return model_sampling.noise_scaling(level, noise.clone(), x0)


def without_anchor(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` without an anchor."""
    clone = model.clone()
    for kind in KINDS:
        clone.remove_wrappers_with_key(kind, KEY)
    return clone


def _check_guidance(model_options: dict, of_the_run: dict) -> None:
    """Refuse a sampler that hooks into the guidance: it goes by predictions that the anchor has moved away from."""
    if any(model_options.get(name) != of_the_run.get(name) for name in GUIDANCE_OPTIONS):
        msg = f"This sampler changes the model's guidance, as those whose names end in 'cfg_pp' do, {NO_RETURN}"
        raise UnsupportedSamplerError(msg)


def _distance(x: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value; infinite where x is not finite."""
    distance = float((x - reference).abs().max() / reference.abs().max().clamp_min(1e-12))
    return distance if math.isfinite(distance) else math.inf
