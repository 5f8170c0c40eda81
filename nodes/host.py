"""Runs `core` inside ComfyUI's own sampler, where it gets the denoised prediction that KSampler gets at that guidance.

LoRA, guidance, ControlNet, hooks and offloading are applied by ComfyUI; step caches and torch.compile are switched off.
`core` receives a plain function.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import comfy.hooks
import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.denoiser import SOURCE, Denoiser, EvaluationCounter, Features
from .caches import STEP_CACHES, CacheDetector
from .derivatives import derivative_clone, derivative_mode, swaps_weights
from .errors import InputError, UnsupportedModelError
from .features import Layer, Reading, check_readable, find_layer
from .progress import SearchProgress, peak_megabytes, reset_peak
from .sampling import linear_scale

Result = TypeVar("Result")
# Model options and kinds of wrappers that are handed the whole batch of prompts, and transformer options that are not.
SEES_BATCH = ("sampler_calc_cond_batch_function", "model_function_wrapper", "context_handler", "multigpu_clones")
WRAPPERS_THAT_SEE_BATCH = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
HARMLESS = ("wrappers", "callbacks", "sample_sigmas", *STEP_CACHES)  # the step caches' wrappers have been taken off


def family_of(model: ModelPatcher) -> str:
    """ComfyUI's name of the model family, such as "SDXL" or "SD3": directions carry over only within one."""
    return type(model.model.model_config).__name__


def first_noise(noise: Tensor, model_sampling, sigma: Tensor) -> Tensor:
    """The noise with which a sampler's first scaling gives a x0 + b n, also at sigma_max.

    There ComfyUI's eps models scale by sqrt(1 + sigma^2) in place of sigma, which is divided out.
    """
    if float(sigma) < float(model_sampling.sigma_max) * (1 - 1e-5):
        return noise
    one, zero, sigma = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), sigma.detach().cpu().reshape(1)
    b, b_max = (float(model_sampling.noise_scaling(sigma, one.clone(), zero.clone(), most)) for most in (False, True))
    return noise * (b / b_max)


def samples_of(latent: dict) -> Tensor:
    """The samples of a LATENT, of 4 dimensions or more; InputError where it holds no picture, or several latents."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if getattr(samples, "is_nested", False):
        msg = (
            "'latent' is a set of several latents. Give this node the latent of a picture, for example from VAE Encode."
        )
        raise InputError(msg)
    if not isinstance(samples, Tensor) or samples.ndim < 4 or not samples.numel():
        msg = "'latent' holds no picture. Connect the latent of a picture, for example from VAE Encode."
        raise InputError(msg)
    return samples


def check_latent(model: ModelPatcher, latent: dict) -> Tensor:
    """The samples of a LATENT; InputError where it is a video, empty, not finite or has the wrong channels."""
    samples = samples_of(latent)
    if samples.ndim not in (4, 5) or (samples.ndim == 5 and samples.shape[2] != 1):
        msg = (
            "'latent' is a video. This node edits single pictures: give it the latent of a picture, for example from"
            " VAE Encode."
        )
        raise InputError(msg)
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        msg = (
            f"'latent' has {samples.shape[1]} channels, but the model works with {channels}. Encode the picture with"
            " the VAE that belongs to this model."
        )
        raise InputError(msg)
    if not torch.isfinite(samples).all():
        msg = (
            "'latent' holds values that are not numbers (NaN or infinity). Encode the picture again, with the VAE in "
            "float32 (--fp32-vae) if it happens again."
        )
        raise InputError(msg)
    if not samples.any():
        msg = "'latent' is empty, as Empty Latent Image makes it. Connect the latent of a picture, from VAE Encode."
        raise InputError(msg)
    return samples


def finite(prediction: Tensor) -> Tensor:
    """What a model has predicted or sampled; UnsupportedModelError where it holds values that are not numbers."""
    if not torch.isfinite(prediction).all():
        msg = (
            "'model' predicts values that are not numbers (NaN or infinity) for this picture, so sliders would have"
            " nothing to start from. Run the model in a higher precision (start ComfyUI with --fp32-unet, say)."
        )
        raise UnsupportedModelError(msg)
    return prediction


@contextmanager
def counted(model: ModelPatcher, counter: EvaluationCounter) -> Iterator[None]:
    """Count the forwards of the diffusion model by a hook on it, removed at the end whatever happens."""
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: counter.forward(inputs[0].shape[0]))
    try:
        yield
    finally:
        hook.remove()


class PromptBatch:
    """Asks the network for several positive prompts of one point in one call.

    ComfyUI asks for a positive and the negative prompt together. Further positives are added to the call for the first
    and handed out when their turn comes, so that the negative is asked for once. Where anything on the MODEL or a
    prompt may look at the batch (NAG, for example, pairs the negative with one positive alone), each prompt has a call
    of its own.
    """

    def __init__(self, positives: list[list[dict]], model_options: dict):
        """Prepare for prompts, in the order in which they will be asked for, under the options of the call."""
        self._positives = positives
        self._answers: dict[int, Tensor] = {}  # of the positives that have not been asked for yet
        self._rest: tuple = ()  # the other prompts and the point of these answers, and the others' predictions
        self.options = model_options
        if len(positives) > 1 and not _looks_at_batch(model_options) and not any(map(_goes_alone, positives)):
            self.options = model_options | {"sampler_calc_cond_batch_function": self._answer}

    def _answer(self, args: dict) -> list[Tensor]:
        (positive, *others), x, sigma = args["conds"], args["input"], args["sigma"]
        model, options = args["model"], args["model_options"]
        # a node may call with options of its own, which are for that call alone
        if options is not self.options:
            return comfy.samplers.calc_cond_batch(model, args["conds"], x, sigma, options)
        if positive is self._positives[0]:
            further, count = self._positives[1:], 1 + len(others)
            options = options | {"model_function_wrapper": functools.partial(_labelled, count)}
            found = comfy.samplers.calc_cond_batch(model, [positive, *others, *further], x, sigma, options)
            self._answers = dict(zip(map(id, further), found[count:], strict=True))
            self._rest = model, others, x, sigma, found[1:count]
            return [found[0], *(of_other.clone() for of_other in found[1:count])]
        if id(positive) in self._answers:
            asked_model, asked, asked_x, asked_sigma, of_others = self._rest
            if (
                model is asked_model
                and _identical(others, asked)
                and torch.equal(x, asked_x)
                and torch.equal(sigma, asked_sigma)
            ):
                # what is handed out may be written into, and is not kept
                answer = [self._answers.pop(id(positive)), *(of_other.clone() for of_other in of_others)]
                self._rest = self._rest if self._answers else ()
                return answer
        return comfy.samplers.calc_cond_batch(model, args["conds"], x, sigma, options)


def _labelled(count: int, apply_model: Callable[..., Tensor], args: dict) -> Tensor:
    """Run the network with all positives labelled 0, as it knows them; `count` prompts have labels of their own."""
    labels = [label if label < count else 0 for label in args["cond_or_uncond"]]
    options = args["c"]["transformer_options"] | {"cond_or_uncond": labels}
    return apply_model(args["input"], args["timestep"], **(args["c"] | {"transformer_options": options}))


def _looks_at_batch(model_options: dict) -> bool:
    """Whether what sits on a MODEL may tell the prompts of a batch apart."""
    transformer = model_options.get("transformer_options", {})
    wrappers = transformer.get("wrappers", {})
    return (
        any(name in model_options for name in SEES_BATCH)
        or any(name not in HARMLESS for name in transformer)
        or any(any(wrappers.get(kind, {}).values()) for kind in WRAPPERS_THAT_SEE_BATCH)
    )


def _goes_alone(prompt: list[dict]) -> bool:
    """Whether a prompt brings transformer options of its own by a hook, or what Flux takes in a batch of one alone."""
    options = comfy.hooks.EnumHookType.TransformerOptions
    return any(
        entry.get("reference_latents_method") == "index_timestep_zero"
        or (entry.get("hooks") is not None and entry["hooks"].get_type(options))
        for entry in prompt
    )


def _identical(these: list, those: list) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


class _PromptGuider(comfy.samplers.CFGGuider):
    """A guider that answers for whichever of its prompts is asked for."""

    prompt, guidance = SOURCE, 1.0

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Denoised prediction under the chosen prompt and guidance."""
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds.get("negative"),
            self.conds[self.prompt],
            self.guidance,
            model_options=model_options or {},
            seed=seed,
        )


class _CoreSampler(comfy.samplers.Sampler):
    """Hands the denoiser to `body` where a sampler would run its steps."""

    def __init__(self, body: Callable[[Denoiser, Tensor], object], counter: EvaluationCounter, layer: Layer | None):
        self.body, self.counter, self.layer, self.result = body, counter, layer, None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Run the body outside inference mode, in which derivatives silently come out as zeros."""
        with torch.inference_mode(False), torch.no_grad():
            _clone_conditioning(model_wrap.conds)
            latent_image = latent_image.clone()

            model_sampling = model_wrap.inner_model.model_sampling
            network = model_wrap.inner_model.diffusion_model
            caches = CacheDetector(network, self.counter)

            def evaluate(x: Tensor, sigma: float, prompt: str, guidance: float, reading: Reading | None = None):
                comfy.model_management.throw_exception_if_processing_interrupted()
                model_wrap.prompt, model_wrap.guidance = prompt, guidance
                level = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
                # some models run other layers while they are differentiated, and a reading ends at its layer
                kind = (sigma, prompt, guidance, comfy.model_management.in_training, reading and reading.layer.name)
                with caches.watch(kind), reading or nullcontext():
                    return model_wrap(x, level, **extra_args)

            def predict(x: Tensor, sigma: float, prompt: str = SOURCE, guidance: float = 1.0) -> Tensor:
                return evaluate(x, sigma, prompt, guidance)

            def read(x: Tensor, sigma: float, prompt: str) -> Tensor:
                check_readable(model_wrap.conds[prompt], sigma, extra_args["model_options"])
                reading = Reading(self.layer)
                evaluate(x, sigma, prompt, 1.0, reading)
                return reading.features(len(x))

            denoiser = Denoiser(
                predict,
                functools.cache(functools.partial(linear_scale, _on(model_sampling.noise_scaling, noise.device))),
                self.counter,
                functools.partial(derivative_mode, network, swaps_weights(model_wrap.conds)),
                None if self.layer is None else Features(read, self.layer.name),
            )
            with counted(model_wrap.model_patcher, self.counter):
                self.result = self.body(denoiser, latent_image)
        # what is returned passes process_latent_out, whose shift would corrupt a direction: results go by self.result
        return noise


def run(
    model: ModelPatcher,
    prompts: dict[str, list],
    latent: dict,
    sigma: float,
    body: Callable[[Denoiser, Tensor], Result],
    *,
    expected: int = 0,
    block: int | None = None,
) -> tuple[Result, dict]:
    """Run `body(denoiser, x0)` inside ComfyUI's sampling, x0 the latent in the model's own space.

    Args:
        model: the artist's MODEL; a clone is used, and it is left as it was after success, error or cancel.
        prompts: conditionings by the names that the denoiser is asked with; "negative" is used
            above guidance 1, and where a patch of the MODEL asks for it.
        latent: the LATENT of the picture.
        sigma: the noise level the work happens at.
        body: the computation in `core`.
        expected: evaluations that a progress bar runs to; 0 shows none.
        block: the block whose features the denoiser is to read, as `find_layer` numbers them; None reads none.

    Returns:
        What `body` returned, and what goes into a report: evaluations, seconds, peak memory on a CUDA device, and
        remarks where there are any.
    """
    samples = check_latent(model, latent)
    layer = None if block is None else find_layer(model.get_model_object("diffusion_model"), block)
    counter = EvaluationCounter()
    if expected:
        counter.on_change = SearchProgress(expected)
    reset_peak(model.load_device)
    clone, remarks = derivative_clone(model)
    guider = _PromptGuider(clone)
    # by this name ComfyUI knows the prompt whose ControlNet may hold for the negative too
    guider.inner_set_conds(prompts | {"positive": prompts[SOURCE]})
    sampler = _CoreSampler(body, counter, layer)
    started = time.perf_counter()
    guider.sample(torch.zeros_like(samples), samples, sampler, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    cost = {
        "model_evaluations": counter.evaluations,
        "seconds": round(time.perf_counter() - started, 3),
        "peak_megabytes": peak_megabytes(model),
    }
    return sampler.result, cost | ({"remarks": remarks} if remarks else {})


def _on(noise_scaling: Callable, device: torch.device) -> Callable:
    return lambda sigma, noise, latent: noise_scaling(sigma.to(device), noise.to(device), latent.to(device))


def _clone_conditioning(conds: dict[str, list[dict]]) -> None:
    """Replace inference tensors in the guider's own conditioning by ordinary ones."""
    for entries in conds.values():
        for entry in entries:
            entry["model_conds"] = {name: _ordinary(cond) for name, cond in entry["model_conds"].items()}
            if "mask" in entry:
                entry["mask"] = entry["mask"].clone()


def _ordinary(cond):
    copied = copy.copy(cond)
    copied.cond = _cloned(cond.cond)
    return copied


def _cloned(value):
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_cloned(v) for v in value)
    return value
