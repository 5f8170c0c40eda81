"""What travels between this pack's nodes: the inversion, the directions, and the noise that a sampler asks for."""

from __future__ import annotations

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from .anchored import Anchor

InversionSocket = io.Custom("LATENT_INVERSION")
DirectionsSocket = io.Custom("LATENT_DIRECTIONS")


@dataclass
class EncodedNoise:
    """A NOISE: gives back the noise that an inversion found, moved or not, in place of random numbers."""

    noise: Tensor  # B C H W, model space
    seed: int = 0

    def generate_noise(self, input_latent: dict) -> Tensor:
        """The stored noise; ComfyUI's samplers call this with the LATENT that they are given."""
        return self.noise.clone()


@dataclass(frozen=True)
class Inversion:
    """An encoded picture: all that the sliders need to move it and to come back exactly.

    `model`, `noise` and `positive` are what a slider at 0 hands on: the very objects. `negative` is empty where neither
    guidance nor the MODEL asked for one.
    """

    source_model: ModelPatcher
    model: ModelPatcher
    anchor: Anchor
    positive: list
    negative: list
    latent: dict
    noise: EncodedNoise
    sigma: float
    scale: tuple[float, float]
    family: str
