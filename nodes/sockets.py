"""What travels between this pack's nodes: the inversion, the directions, and the noise that a sampler asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..core.anchor import NoisePaths, ReferenceCache
from ..core.denoiser import Denoiser
from ..core.direction import Direction
from .errors import InputError
from .host import family_of
from .progress import RunStatistics

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
class AppliedSlider:
    """One Direction Slider in a chain.

    Attributes:
        direction: what it moves.
        strength: how far.
        weight: how much of the model's change it lets through; the weights of a chain multiply.
        recorded: whether what its words change is predicted once, along the unedited path, and reused for all
            strengths.
        mask: where it acts, broadcastable to the latent; None for everywhere.
        start: share of a run's steps after which its words begin to act.
        end: share of a run's steps after which they act no more.
    """

    direction: Direction
    strength: float
    weight: float = 1.0
    recorded: bool = False
    mask: Tensor | None = None
    start: float = 0.0
    end: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether it acts at all steps."""
        return self.start <= 0 and self.end >= 1


@dataclass(frozen=True)
class Inversion:
    """An encoded picture: all that the sliders need to move it and to come back exactly.

    Attributes:
        source_model: the artist's MODEL, without an anchor.
        positive: conditioning that describes the picture as it is.
        negative: empty where neither guidance nor the MODEL asked for one.
        latent: the LATENT of the picture, ComfyUI's latent space.
        paths: the noises of the reference paths, model space, on the CPU.
        sigma: noise level sigma* that sampling starts at, at the highest.
        scale: (a, b) of the noise process there.
        cache: predictions on the reference paths, shared by all sliders.
        statistics: what sampling runs on this picture have cost.
        sliders: the Direction Sliders so far, in their order; searches and previews are about the unmoved picture.
        found: what Slider Board has found for words at this picture, by all that it depends on.
    """

    source_model: ModelPatcher
    positive: list
    negative: list
    latent: dict
    paths: NoisePaths
    sigma: float
    scale: tuple[float, float]
    cache: ReferenceCache = field(default_factory=ReferenceCache)
    statistics: RunStatistics = field(default_factory=RunStatistics)
    sliders: tuple[AppliedSlider, ...] = ()
    found: dict[tuple, tuple[Direction, dict]] = field(default_factory=dict)

    def noisy(self, denoiser: Denoiser, x0: Tensor) -> Tensor:
        """The noisy latent at sigma* that searches look at, from the clean one x0 in the model's space."""
        return denoiser.noised(x0, self.paths.base.to(x0), self.sigma)

    def counted_apart(self) -> Inversion:
        """The same with statistics of its own: Edit Report speaks of samplers' runs, not of those of other nodes."""
        return replace(self, statistics=RunStatistics())

    @property
    def family(self) -> str:
        """The model family, within which directions carry over."""
        return family_of(self.source_model)


def check_family(model: ModelPatcher, inversion: Inversion) -> None:
    """Refuse a MODEL of another family than that of the picture's inversion."""
    if family_of(model) != inversion.family:
        msg = (
            f"'model' is of the family {family_of(model)}, but the picture was inverted with {inversion.family}."
            " Connect the model that Encode Picture used."
        )
        raise InputError(msg)
