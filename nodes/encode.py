"""Encode: Invert Image turns a picture into a noisy latent from which every slider starts, and comes back exactly."""

from __future__ import annotations

import json

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.anchor import ReferenceCache
from ..core.denoiser import Denoiser, sigma_at_level
from ..core.inversion import invert_ode, seeded_noise
from .anchored import Anchor, RunStatistics, detach
from .host import family_of, run, scale_at
from .sockets import EncodedNoise, Inversion, InversionSocket

ODE, SEEDED = "follow the model", "seeded noise"


class InvertImage(io.ComfyNode):
    """The node of the first verb."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_InvertImage",
            display_name="Invert Image",
            category="latent directions",
            description=(
                "Turns a picture into the noisy latent it could have been made from. Sampling on from it gives exactly "
                "the same picture back, and a Direction Slider can move it."
            ),
            search_aliases=["encode image", "inversion", "ddim inversion", "noise an image"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will edit the picture. It is not changed."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the picture as it is."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Float.Input(
                    "level",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How far back to go, as a share of the noise schedule. Higher lets sliders change larger "
                        "things; lower keeps to small ones. 0.4 to 0.7 is usual."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps from that level back to the picture, and as many for getting there.",
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
                    options=[ODE, SEEDED],
                    default=ODE,
                    advanced=True,
                    tooltip=(
                        "'follow the model' finds the noise that belongs to the picture, one model evaluation a "
                        "step. 'seeded noise' takes random noise: instant, equally exact at 0, sliders leak a "
                        "little more."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    advanced=True,
                    tooltip="Only for 'seeded noise'.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Noise.Output(display_name="noise"),
                io.Sigmas.Output(display_name="sigmas"),
                io.Model.Output(display_name="model"),
                InversionSocket.Output(display_name="inversion"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, level, steps, scheduler, method, seed) -> io.NodeOutput:
        """Invert, then hand on the clean latent, the noise, the schedule and the anchored model."""
        model = detach(model)
        model_sampling = model.get_model_object("model_sampling")
        sigma = sigma_at_level(
            model_sampling.percent_to_sigma, level, float(model_sampling.sigma_min), float(model_sampling.sigma_max)
        )
        scale = scale_at(model, sigma)
        sigmas = schedule_from(model_sampling, scheduler, steps, sigma)

        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            if method == SEEDED:
                return seeded_noise(x0, seed)
            ascending = [float(s) for s in sigmas.flip(0) if s > 0]
            return denoiser.noise_of(invert_ode(denoiser, x0, ascending), x0, sigma)

        noise, cost = run(model, {"source": positive}, latent, sigma, body, expected=steps + 1 if method == ODE else 0)
        inversion = make_inversion(model, positive, latent, noise.cpu(), sigma, scale)
        report = json.dumps(
            {
                "stage": "encode",
                "method": method,
                "sigma": sigma,
                "level": level,
                "steps": len(sigmas) - 1,
                "family": inversion.family,
                **cost,
            },
            indent=1,
        )
        return io.NodeOutput(latent, inversion.noise, sigmas, inversion.model, inversion, report)


def make_inversion(
    model: ModelPatcher, positive: list, latent: dict, noise: Tensor, sigma: float, scale: tuple[float, float]
) -> Inversion:
    """Bundle an encoded picture with the anchored model that returns to it."""
    cache, statistics = ReferenceCache(), RunStatistics()
    anchor = Anchor(latent["samples"], noise, noise, sigma, positive, cache, statistics)
    return Inversion(
        source_model=model,
        model=anchor.attach(model),
        anchor=anchor,
        positive=positive,
        latent=latent,
        noise=EncodedNoise(noise),
        sigma=sigma,
        scale=scale,
        family=family_of(model),
    )


def schedule_from(model_sampling, scheduler: str, steps: int, sigma: float) -> Tensor:
    """`steps` steps from sigma down to 0, spaced as the scheduler spaces the whole range; sigma is the first point."""

    def below(total: int) -> Tensor:
        full = comfy.samplers.calculate_sigmas(model_sampling, scheduler, total).cpu().to(torch.float32)
        points = full[full < sigma * (1 - 1e-4)]
        # a first step much shorter than the next would be a wasted evaluation
        near = len(points) > 1 and sigma - points[0] < 0.3 * (points[0] - points[1])
        return points[1:] if near else points

    # the share of the schedule that lies below sigma says about how many steps the whole range needs
    total = max(steps, steps * steps // max(1, len(below(steps))) - 1)
    while len(points := below(total)) < steps and total < 4 * steps + 1000:
        total += 1
    return torch.cat([torch.tensor([sigma]), points[-steps:]])


NODES = [InvertImage]
