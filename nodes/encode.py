"""Encode: Encode Picture turns a picture into a noisy latent from which every slider starts, and comes back exactly."""

from __future__ import annotations

import json

import comfy.samplers
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.anchor import NoisePaths
from ..core.denoiser import SOURCE, Denoiser
from ..core.inversion import INVERSIONS, controlled_inversion, invert, seeded_noise
from ..core.metrics import psnr
from ..core.search import NEGATIVE
from .anchored import AnchoredModel, without_anchor
from .errors import InputError, with_advice
from .host import check_latent, finite, first_noise, run
from .inputs import check_inputs
from .progress import result_line, show_line
from .prompts import negative_prompt
from .sampling import is_flow, noise_level, sample_euler, scale_at, schedule_from
from .sizes import is_padded, refuse_size, size_report
from .sockets import EncodedNoise, Inversion, InversionSocket
from .wiring import refuse_wiring

CONTROLLED, SEEDED, FRESH, GENERATED = "controlled flow", "seeded noise", "fresh noise", "sampling run"
DEFAULT = FRESH
INVERSION_METHODS = [FRESH, *INVERSIONS, CONTROLLED, SEEDED, GENERATED]
INSTANT = (SEEDED, FRESH, GENERATED)


class InvertImage(io.ComfyNode):
    """Encode: invert a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_InvertImage",
            display_name="Encode Picture",
            category="latent directions",
            description=(
                "Chooses a noise for a picture and keeps sampling tied to it, so that sampling gives exactly the same"
                " picture back, and a Direction Slider can move it."
            ),
            search_aliases=[
                "encode image",
                "image editing",
                "edit photo",
                "real image editing",
                "unsample",
                "unsampler",
                "image to noise",
                "inversion",
                "ddim inversion",
                "noise an image",
                "edit friendly",
                "rf inversion",
                "FlowEdit",
                "LEDITS",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that will edit the picture. It is not changed."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the picture as it is."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Connect it to check the inversion: the report then says how well the picture comes back, and"
                        " the node shows it. This samples twice more."
                    ),
                ),
                io.Float.Input(
                    "level",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How far back to go, as a share of the noise schedule. Higher lets sliders change larger"
                        " things; lower keeps to small ones. 0.7 is a good start, 0.4 to 0.9 is usual."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Sampling steps from that level back to the picture. Methods such as 'backward euler' also take"
                        " this many steps to find the noise."
                    ),
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="simple",
                    advanced=True,
                    tooltip="How the steps are spaced.",
                ),
                io.Combo.Input(
                    "method",
                    options=INVERSION_METHODS,
                    default=DEFAULT,
                    advanced=True,
                    tooltip=(
                        "How the noise is found. All give the picture back at strength 0. 'fresh noise' is drawn anew"
                        " at every step: it takes no time and is best for words. 'seeded noise' takes none either;"
                        " 'backward euler' and the like follow the model up to the noise level; 'sampling run' takes"
                        " the noise that the picture was generated from; 'controlled flow' is for flow models."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    advanced=True,
                    tooltip="For 'seeded noise', 'fresh noise' and 'controlled flow'.",
                ),
                io.Int.Input(
                    "seeds",
                    default=1,
                    min=1,
                    max=16,
                    advanced=True,
                    tooltip=(
                        "For 'seeded noise' and 'fresh noise': how many noises to average over. More is steadier, and"
                        " sampling takes that many times longer."
                    ),
                ),
                io.Float.Input(
                    "sigma",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.001,
                    round=False,
                    advanced=True,
                    tooltip="The noise level as a sigma, in place of 'level'. 0: use 'level'.",
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance while inverting. 1 is best for returning; above 1 it needs 'negative'.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    advanced=True,
                    tooltip="Negative prompt, for guidance above 1 and for nodes on the MODEL that ask for one.",
                ),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "For 'sampling run': the noise that the picture was generated from, such as Random Noise with"
                        " its seed."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The encoded picture, for the sampler."),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="The noise from which sampling leads back to the picture, for SamplerCustomAdvanced.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The noise levels from the start to the finished picture, for SamplerCustomAdvanced.",
                ),
                io.Model.Output(
                    display_name="model",
                    tooltip="The model, tied to the picture: sampling with it gives the picture back.",
                ),
                InversionSocket.Output(
                    display_name="inversion",
                    tooltip="The encoded picture as Find Directions and Direction Slider need it.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The noise level, what it took and, with 'vae', how well the picture comes back, as JSON.",
                ),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    @with_advice()
    def execute(
        cls,
        model,
        positive,
        latent,
        level=0.7,
        steps=20,
        scheduler="simple",
        method=DEFAULT,
        seed=0,
        seeds=1,
        sigma=0.0,
        guidance=1.0,
        vae=None,
        negative=None,
        noise=None,
    ) -> io.NodeOutput:
        """Invert, then hand on the clean latent, the noise, the schedule and the anchored model."""
        check_inputs(cls, locals())
        level, sigma, guidance, seed = float(level), float(sigma), float(guidance), int(seed)  # numpy's would spread
        samples = check_latent(model, latent)
        refuse_wiring(cls.hidden and cls.hidden.prompt, len(samples))
        model = without_anchor(model)
        model_sampling = model.get_model_object("model_sampling")
        sigma = noise_level(model_sampling, level, sigma)
        scale = scale_at(model, sigma)
        _check_method(model, method, noise)
        prompts = {SOURCE: positive, **negative_prompt(model, guidance, negative)}
        sigmas = schedule_from(model_sampling, scheduler, steps, sigma)
        ascending = [float(s) for s in sigmas.flip(0) if s > 0]
        drift: list[float] = []
        expected = evaluations_of(method, len(ascending)) * len(samples) * len(prompts)
        show = latent_preview.prepare_callback(model, expected)

        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            if method in INSTANT:
                if is_padded(model, x0.shape):
                    denoiser(x0, sigma)  # the only one: not every network can pad
                return noise.generate_noise(latent).to(x0) if method == GENERATED else seeded_noise(x0, seed)

            def on_step(step: int, total: int, prediction: Tensor) -> None:
                drift.append(round(float((finite(prediction) - x0).square().mean().sqrt()), 5))
                show(min(denoiser.counter.evaluations, expected) - 1, prediction, prediction, expected)

            if method == CONTROLLED:
                x = controlled_inversion(denoiser, x0, ascending, seeded_noise(x0, seed), on_step=on_step)
            else:
                x = invert(denoiser, x0, ascending, method=method, guidance=guidance, on_step=on_step)
            return denoiser.noise_of(finite(x), x0, sigma)

        try:
            found, cost = run(model, prompts, latent, sigma, body, expected=expected)
        except RuntimeError as error:
            refuse_size(model, latent["samples"].shape, error)
            raise
        found = found.cpu()
        paths = NoisePaths(found, *_more_paths(method, seed, seeds))
        inversion = Inversion(model, positive, prompts.get(NEGATIVE, []), latent, paths, sigma, scale)
        anchored = AnchoredModel(inversion).model()
        report = {
            "stage": "encode",
            "method": method,
            "sigma": sigma,
            "steps": len(sigmas) - 1,
            "family": inversion.family,
            "latent": list(latent["samples"].shape),
            **size_report(model, latent["samples"].shape, vae),
            **cost,
            "drift_per_step": drift,
        }
        preview = None
        show_line(result_line(cost["model_evaluations"], "model evaluation", cost["seconds"]))
        if vae is not None:
            checked, picture = _check_return(inversion, anchored, sigmas, vae)
            report |= checked
            preview = ui.PreviewImage(picture, cls=cls)
        return io.NodeOutput(
            latent, EncodedNoise(found), sigmas, anchored, inversion, json.dumps(report, indent=1), ui=preview
        )


def evaluations_of(method: str, steps: int) -> int:
    """Predictions that an inversion asks for on its way up."""
    if method in INSTANT:
        return 0
    return 2 + (steps - 1) * (1 if method == CONTROLLED else INVERSIONS[method].evaluations)


def _check_method(model: ModelPatcher, method: str, noise) -> None:
    if method == CONTROLLED and not is_flow(model):
        msg = (
            "'controlled flow' works on flow models (SD3, Flux and their kind), and this is none. Choose another"
            " 'method'."
        )
        raise InputError(msg)
    if method == GENERATED and noise is None:
        msg = (
            "Method 'sampling run' needs 'noise': the noise that the picture was generated from. Connect Random Noise"
            " with the seed that was used, or choose another 'method'."
        )
        raise InputError(msg)


def _more_paths(method: str, seed: int, seeds: int) -> tuple[tuple[int, ...], bool]:
    """Seeds of the further noise paths, and whether noise is drawn anew at every level.

    After the largest seed, 2**64 - 1, comes 0.
    """
    if method == FRESH:
        return tuple((seed + k) % 2**64 for k in range(seeds)), True
    return (tuple((seed + k) % 2**64 for k in range(1, seeds)) if method == SEEDED else ()), False


def _check_return(inversion: Inversion, anchored: ModelPatcher, sigmas: Tensor, vae) -> tuple[dict, Tensor]:
    """How well the picture comes back with and without the anchor: PSNR to the VAE's picture, and all three."""
    model, noise = inversion.source_model, inversion.paths.base
    plain = first_noise(noise, model.get_model_object("model_sampling"), sigmas[0])
    latents = (
        inversion.latent["samples"],
        sample_euler(model, plain, sigmas, inversion.positive, inversion.latent, inversion.negative),
        sample_euler(anchored, noise, sigmas, inversion.positive, inversion.latent, inversion.negative),
    )
    expected, without, returned = (vae.decode(finite(samples)).clamp(0, 1) for samples in latents)
    report = {
        "psnr_db_without_anchor": psnr(without, expected),
        "psnr_db_with_anchor": psnr(returned, expected),
        "zero_strength_max_abs_diff": float((latents[2].cpu() - latents[0].cpu()).abs().max()),
    }
    return report, torch.cat([expected, without, returned], dim=-2)


NODES = [InvertImage]
