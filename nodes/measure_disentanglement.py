"""Measure Disentanglement: an edit by words and back again, what is lost on the way and what the words change."""

from __future__ import annotations

import json
import time

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.charts import bar_chart, require_matplotlib
from ..core.denoiser import SOURCE, Denoiser, EvaluationCounter
from ..core.errors import NoChangeError
from ..core.inversion import invert
from ..core.metrics import disentanglement, distance
from ..core.search import NEGATIVE
from .anchored import without_anchor
from .caches import drop_step_caches
from .encode import evaluations_of
from .errors import InputError, with_advice
from .host import counted, finite, first_noise, run
from .inputs import check_inputs
from .measure_reports import rounded
from .pictures import image_of, one_picture
from .progress import SearchProgress, show_line
from .prompts import negative_prompt, same_conditioning
from .sampling import noise_level, sample_euler, scale_at, schedule_from
from .sizes import refuse_size

INVERSION = "backward euler"  # of the plain return, which follows the model up


class MeasureDisentanglement(io.ComfyNode):
    """How far a picture strays where words are to change nothing, against what they change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_MeasureDisentanglement",
            display_name="Measure Disentanglement",
            category="latent directions",
            description=(
                "Edits a picture by words alone and back again, and says how much is lost on the way against how much"
                " the words change."
            ),
            search_aliases=[
                "disentangle",
                "disentanglement score",
                "edit and back",
                "cycle consistency",
                "measure edit",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that edits the picture. It is not changed."),
                io.Vae.Input("vae", tooltip="The VAE of the model: it encodes and decodes the pictures."),
                io.Image.Input("image", tooltip="The picture. One, no batch."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the picture as it is."),
                io.Conditioning.Input("target", tooltip="The same prompt with one thing changed."),
                io.Float.Input(
                    "level",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far back to go, as a share of the noise schedule. 0.4 to 0.7 is usual.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Steps of each run. There are two runs to the noise and three back.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    advanced=True,
                    tooltip="Negative prompt, for nodes on the MODEL that ask for one. Guidance is 1.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="A chart of what the words change against what is lost."),
                io.Image.Output(
                    display_name="pictures", tooltip="The picture; as it comes back unedited; edited; and edited back."
                ),
                io.String.Output(
                    display_name="report", tooltip="What the words change and what is lost, in numbers, as JSON."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, model, vae, image, positive, target, level=0.5, steps=20, negative=None) -> io.NodeOutput:
        """Encode, sample under both prompts, edit back, and compare the pictures."""
        check_inputs(cls, locals())
        require_matplotlib()
        image, level, steps = one_picture(image), float(level), int(steps)
        if same_conditioning(positive, target):
            msg = "'positive' and 'target' are the same prompt."
            raise NoChangeError(msg)
        route = _PlainRoute(model, vae, level, steps, negative)
        before = vae.vae_encode_crop_pixels(image)[..., :3]
        latent = route.encoded(image)
        noise = route.noise(latent, positive)
        unedited, edited = (route.sampled(noise, latent, prompt) for prompt in (positive, target))
        pictures = [before.to(unedited), unedited, edited]
        if before.shape != unedited.shape:
            msg = (
                f"'vae' gives a picture of {before.shape[2]} x {before.shape[1]} pixels back as one of"
                f" {unedited.shape[2]} x {unedited.shape[1]}, which cannot be compared with it. Resize 'image' to a"
                " size that the VAE gives back."
            )
            raise InputError(msg)
        by_vae = distance(pictures[0], route.decoded(latent["samples"]))
        latent = route.encoded(edited)
        pictures.append(route.sampled(route.noise(latent, target), latent, positive))
        found = disentanglement(*pictures)
        report = {
            "stage": "measure",
            "summary": (
                f"Disentanglement score {found.score:.3g}, lower is better: unedited, the picture strays by"
                f" {found.unedited:.3g}, edited and back by {found.edited_back:.3g}, and the words change it by"
                f" {found.change:.3g} (root mean square, white is 1)."
            ),
            "score": rounded(found.score),
            "unedited": rounded(found.unedited),
            "edited_back": rounded(found.edited_back),
            "change": rounded(found.change),
            "vae_alone": rounded(by_vae),
            "sigma": route.sigma,
            "steps": len(route.sigmas) - 1,
            "model_evaluations": route.counter.evaluations,
            "seconds": round(time.perf_counter() - route.began, 3),
        }
        if route.remarks:
            report["remarks"] = list(dict.fromkeys(route.remarks))
        rows = [
            ("not edited: distance to the picture", found.unedited),
            ("edited and back: distance to the picture", found.edited_back),
            ("what the words change", found.change),
        ]
        plot = image_of(
            bar_chart(
                rows,
                title=f"Disentanglement score {found.score:.3g}, lower is better",
                axis="root mean square over the pixels; white is 1",
                highlighted={2},
                form="{:.3g}",
            )
        )
        show_line(report["summary"])
        batch = torch.cat([picture.float().cpu() for picture in pictures])
        return io.NodeOutput(plot, batch, json.dumps(report, indent=1), ui=ui.PreviewImage(plot, cls=cls))


class _PlainRoute:
    """Encodes and samples pictures without the anchor, at guidance 1; counts and shows the evaluations."""

    def __init__(self, model: ModelPatcher, vae, level: float, steps: int, negative: list | None):
        self.model, self.vae = without_anchor(model), vae
        self.remarks = drop_step_caches(self.model.wrappers)
        self.negative = negative_prompt(self.model, 1.0, negative)
        self.model_sampling = self.model.get_model_object("model_sampling")
        self.sigma = noise_level(self.model_sampling, level, 0.0)
        scale_at(self.model, self.sigma)  # refuses what has no noise or no picture left there
        self.sigmas = schedule_from(self.model_sampling, "simple", steps, self.sigma)
        self.began, taken = time.perf_counter(), len(self.sigmas) - 1
        expected = 2 * evaluations_of(INVERSION, taken) + 3 * taken
        self.counter = EvaluationCounter(on_change=SearchProgress(expected))

    def encoded(self, image: Tensor) -> dict:
        """The LATENT of a picture, of a kind that the model takes."""
        samples = self.vae.encode(image)
        channels = self.model.get_model_object("latent_format").latent_channels
        if samples.shape[1] != channels:
            msg = (
                f"'vae' makes latents of {samples.shape[1]} channels, but 'model' works with {channels}. Connect the"
                " VAE that belongs to this model."
            )
            raise InputError(msg)
        if not torch.isfinite(samples).all():
            msg = (
                "'vae' encodes the picture as values that are not numbers (NaN or infinity). Start ComfyUI with"
                " --fp32-vae."
            )
            raise InputError(msg)
        return {"samples": samples}

    def noise(self, latent: dict, prompt: list) -> Tensor:
        """The noise that a latent is inverted to under a prompt, for ComfyUI's samplers."""
        ascending = [float(sigma) for sigma in self.sigmas.flip(0) if sigma > 0]

        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            return denoiser.noise_of(finite(invert(denoiser, x0, ascending, method=INVERSION)), x0, self.sigma)

        prompts = {SOURCE: prompt, **self.negative}
        try:
            with counted(self.model, self.counter):
                found, cost = run(self.model, prompts, latent, self.sigma, body)
        except RuntimeError as error:
            refuse_size(self.model, latent["samples"].shape, error)
            raise
        self.remarks += cost.get("remarks", [])
        return first_noise(found.cpu(), self.model_sampling, self.sigmas[0])

    def sampled(self, noise: Tensor, latent: dict, prompt: list) -> Tensor:
        """The picture that sampling from a noise gives under a prompt, (1, H, W, 3) with values 0 to 1."""
        with counted(self.model, self.counter):
            samples = sample_euler(self.model, noise, self.sigmas, prompt, latent, self.negative.get(NEGATIVE))
        return self.decoded(finite(samples))

    def decoded(self, samples: Tensor) -> Tensor:
        """The picture of a latent, (1, H, W, 3) with values 0 to 1."""
        decoded = finite(self.vae.decode(samples))
        return decoded.reshape(-1, *decoded.shape[-3:])[:1, ..., :3].clamp(0, 1)


NODES = [MeasureDisentanglement]
