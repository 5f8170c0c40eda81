"""Calls nodes and samplers as ComfyUI does: inside inference mode, through its own sampling functions."""

import zlib
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from families import Family, TestModel

from latent_directions.core.direction import Direction
from latent_directions.nodes.anchored import AnchoredModel
from latent_directions.nodes.encode import InvertImage
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.manipulate import outputs, with_slider

torch.set_num_threads(1)

DETERMINISTIC = ("euler", "heun", "dpm_2", "dpmpp_2m", "lms", "deis", "res_multistep", "ddim")
SMALL_WORDS = ("a", "the", "of", "with", "without", "and", "no")


def loaded(family: Family) -> TestModel:
    """The family's model as a loader node leaves it: its weights are inference tensors."""
    with torch.inference_mode():
        return family.build()


def picture(test_model: TestModel, batch: int = 1, size: tuple[int, int] | None = None, seed: int = 5) -> dict:
    """A LATENT as VAE Encode gives it: near unit variance once it is in the model's space."""
    shape = list(test_model.latent_shape)
    shape[0] = batch
    if size is not None:
        shape[-2:] = size
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"samples": test_model.model.get_model_object("latent_format").process_out(noise)}


def invert(test_model: TestModel, latent: dict | None = None, model=None, **changes) -> SimpleNamespace:
    """Run Encode Picture; its outputs by name."""
    options = {"level": 0.6, "steps": 5, "method": "backward euler", **changes}
    latent = picture(test_model) if latent is None else latent
    model = test_model.model if model is None else model
    with torch.inference_mode():
        values = InvertImage.execute(model, test_model.positive, latent, **options).args
    return SimpleNamespace(
        **dict(zip(("latent", "noise", "sigmas", "model", "inversion", "report"), values, strict=True))
    )


def anchored(encoded, model=None, push: torch.Tensor | None = None):
    """The MODEL of an inversion, on another MODEL where one is given, its noise moved by `push` (B, C, H, W)."""
    inversion = encoded.inversion if model is None else replace(encoded.inversion, source_model=model)
    b = inversion.scale[1]
    if push is not None:
        inversion = with_slider(inversion, Direction("", "", "", inversion.sigma, latent=push[0], step=b), 1.0)
    return AnchoredModel(inversion).model()


def sample(
    test_model: TestModel, encoded, *, sampler="euler", cfg=1.0, model=None, positive=None, noise=None, **options
):
    """What SamplerCustomAdvanced does with the outputs of Encode Picture or of the Direction Slider."""
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            encoded.model if model is None else model,
            (encoded.noise if noise is None else noise).generate_noise(encoded.latent),
            cfg,
            comfy.samplers.sampler_object(sampler),
            options.pop("sigmas", encoded.sigmas),
            test_model.positive if positive is None else positive,
            test_model.negative,
            encoded.latent["samples"],
            disable_pbar=True,
            **{"seed": 3, **options},
        )


def edit(test_model: TestModel, encoded, direction: Direction, strength=1.0, *, model=None, slider=None, **options):
    """A sampling run under one Direction Slider with the inputs `slider`; on another MODEL where one is given."""
    inversion = encoded.inversion if model is None else replace(encoded.inversion, source_model=model)
    with torch.inference_mode():
        moved, positive, noise = outputs(with_slider(inversion, direction, strength, **(slider or {})))
    return sample(test_model, encoded, **{"model": moved, "positive": positive, "noise": noise, **options})


def ksample(test_model: TestModel, encoded, *, sampler="euler", cfg=1.0, denoise=1.0, steps=5, model=None, **options):
    """What KSampler does: random noise of its own, and a schedule of its own."""
    samples = encoded.latent["samples"]
    with torch.inference_mode():
        return comfy.sample.sample(
            encoded.model if model is None else model,
            comfy.sample.prepare_noise(samples, 11),
            steps,
            cfg,
            sampler,
            "simple",
            test_model.positive,
            test_model.negative,
            samples,
            denoise=denoise,
            disable_pbar=True,
            **{"seed": 11, **options},
        )


def find(test_model: TestModel, inversion, method: str, model=None, **changes) -> tuple[list, str]:
    """Run Find Directions; directions and report."""
    options = {
        "source": "a sad person", "target": "a smiling person", "keep": "", "count": 2, "hold_outside": 2, "free": "",
        "guidance": 1.0, "image_share": 0.5, "text_share": 0.5, "seed": 0, "clip": HashingClip(test_model),
        "find_keeps": "nothing", "where": "everywhere", **changes,
    }  # fmt: skip
    with torch.inference_mode():
        return FindDirections.execute(test_model.model if model is None else model, inversion, method, **options).args[
            :2
        ]


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


class HashingClip:
    """A text encoder that gives every word a fixed random vector and needs no weights; unknown words do not exist.

    Words that only join others are left out, so that prompts of different lengths can share slots.
    """

    def __init__(self, test_model: TestModel):
        tokens, extra = test_model.positive[0]
        self.slots, self.width = tokens.shape[1:]
        pooled = extra.get("pooled_output")
        self.pooled_width = None if pooled is None else pooled.shape[-1]

    def tokenize(self, text: str) -> list[str]:
        return [word for word in text.lower().split() if word not in SMALL_WORDS]

    def encode_from_tokens_scheduled(self, words: list[str]) -> list:
        tokens = torch.zeros(1, self.slots, self.width)
        pooled = None if self.pooled_width is None else torch.zeros(1, self.pooled_width)
        for slot, word in enumerate(words[: self.slots]):
            generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            tokens[0, slot] = torch.randn(self.width, generator=generator)
            if pooled is not None:
                pooled += torch.randn(1, self.pooled_width, generator=generator)
        return [[tokens, {"pooled_output": pooled}]]


def state_of(model) -> dict:
    """All of a MODEL that a node could have changed: identities, values, hooks, options, and ComfyUI's flags."""
    network = model.model.diffusion_model
    return {
        "parameters": {
            name: (id(tensor), tensor.data_ptr(), tensor._version if not tensor.is_inference() else None)
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        },
        "values": {name: float(tensor.double().sum()) for name, tensor in network.state_dict().items()},
        "modules": {
            name: (
                sorted(vars(module)),
                len(module._forward_pre_hooks),
                len(module._forward_hooks),
                list(getattr(module, "weight_function", ())),
                list(getattr(module, "bias_function", ())),
            )
            for name, module in network.named_modules()
        },
        "options": _plain(model.model_options),
        "wrappers": _plain(model.wrappers),
        "callbacks": _plain(model.callbacks),
        "patches": _plain(model.patches),
        "object_patches": _plain(model.object_patches),
        "injections": _plain(model.injections),
        "attachments": _plain(model.attachments),
        "hook_mode": model.hook_mode,
        "in_training": comfy.model_management.in_training,
        "interrupted": comfy.model_management.processing_interrupted(),
    }


def _plain(value):
    """A copy of nested containers that later changes cannot reach; leaves by identity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else id(value)
