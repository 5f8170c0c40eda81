"""The models of the benchmark, and drawn portraits encoded with them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import folder_paths
import numpy as np
import torch
from torch import Tensor

from benchmarks.portraits import INVERTED, Bench, eight_bit
from benchmarks.unet import trained_unet
from latent_directions.core.anchor import ReferenceCache
from latent_directions.core.denoiser import SOURCE, Denoiser
from latent_directions.core.direction import Direction
from latent_directions.core.search import Search, Settings
from latent_directions.demo.architecture import WEIGHTS
from latent_directions.demo.measures import Reader, changes, spread
from latent_directions.demo.world import ATTRIBUTES, Portrait, draw, masks, sample_portrait
from latent_directions.nodes.diffusers_folder import KIND
from latent_directions.nodes.diffusers_model import LoadDiffusersModel
from latent_directions.nodes.encode import InvertImage
from latent_directions.nodes.features import MIDDLE
from latent_directions.nodes.host import run
from latent_directions.nodes.manipulate import outputs, with_slider
from latent_directions.nodes.masks import covered_cells, soft_mask_on_latent
from latent_directions.nodes.sampling import sample_euler

Result = TypeVar("Result")
HELD_OUT, TUNING = 120411, 120412  # seeds of the portraits
PROMPT, STEPS = "a face", 8
LEVEL = 0.6  # the paper's for faces; `--tune` found no level with more local edits
REGIONS = {
    "mouth": ("smile", "mouth_opening"),
    "eyes": ("eye_size",),
    "hair": ("hair_length",),
}  # and what is drawn there
INSIDE = 0.5  # share of an attribute's drawn change that lies inside a region where the attribute belongs to it
DRAWN = 40  # tuning portraits by which `wanted_change` is drawn
POOL = 32  # tuning portraits whose features have principal components


class UNetBench(Bench):
    """The U-Net of `benchmarks.unet` in place of the demo model's transformer."""

    def __post_init__(self):
        """Load the demo's text encoder and VAE, and the U-Net, which is trained where that has not been done yet."""
        super().__post_init__()
        self.model = trained_unet()


@dataclass
class PixelBench(Bench):
    """A pixel-space DDPM through Load Diffusers Model, such as the demo's; it takes no text.

    Attributes:
        folder: of the model; by default the one that comes with the demo.
        size: pixels of a side.
    """

    folder: Path = Path(WEIGHTS) / "ddpm"
    size: int = 32
    empty: list = field(default_factory=list)

    def __post_init__(self):
        """Load the folder by the pack's own node."""
        folder_paths.add_model_folder_path(KIND, str(self.folder.parent), is_default=True)
        self.model, self.clip, self.vae, self.empty = LoadDiffusersModel.execute(folder=self.folder.name).result

    def prompt(self, text: str) -> list:
        """The empty CONDITIONING, whatever the text."""
        return self.empty

    def picture(self, portrait: Portrait) -> Tensor:
        """The portrait drawn at the model's size, as IMAGE, 1HWC in 0..1."""
        return torch.from_numpy(draw(portrait, self.size).copy())[None].float() / 255


class Sampled(NamedTuple):
    """The end of a sampling run: the clean latent in ComfyUI's latent space, and the 8-bit picture (HWC)."""

    latent: Tensor
    picture: np.ndarray


@dataclass
class Subject:
    """A model of the benchmark.

    Attributes:
        name: in the tables.
        load: loads it.
        level: share of the noise schedule at which directions are looked for.
        seed: of the portraits.
    """

    name: str
    load: Callable[[], Bench]
    level: float
    seed: int = HELD_OUT
    _encoded: dict = field(default_factory=dict, init=False, repr=False)
    _pool: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def bench(self) -> Bench:
        """The model, loaded when it is first asked for."""
        return _loaded(self.load)

    def encoded(self, number: int, level: float | None = None) -> "Encoded":
        """Portrait `number` of the subject's seed, encoded once at a level; None for the subject's own."""
        key = number, self.level if level is None else level
        if key not in self._encoded:
            portrait = sample_portrait(np.random.default_rng([self.seed, number]))
            self._encoded[key] = Encoded(self, portrait, list(REGIONS)[number % len(REGIONS)], key[1])
        return self._encoded[key]

    def pool(self) -> Tensor:
        """Clean latents of POOL tuning portraits, (POOL, C, h, w) in the model's space, encoded once."""
        if self._pool is None:
            pictures = [self.bench.picture(sample_portrait(np.random.default_rng([TUNING, n]))) for n in range(POOL)]
            self._pool = self.bench.model.model.process_latent_in(self.bench.vae.encode(torch.cat(pictures)))
        return self._pool


_loaded = functools.cache(lambda load: load())


class Encoded:
    """A portrait encoded at a noise level, the region of it that is to change, and runs from there.

    Attributes:
        region: a key of REGIONS.
        inversion: INVERSION of the pack's own node.
        cells: the region in cells of the latent, (1, 1, h, w) of 0 and 1, as Find Directions makes it of a mask.
        pixels: these cells in pixels, (H, W) of 0 and 1.
        unmoved: the run at strength 0.
        wanted: the change inside the region at which edits are compared (`wanted_change`).
        attributes: names of those that belong to the region (`attributes_inside`).
        searches: results of searches here, by what they were.
        pool: clean latents of other portraits.
    """

    def __init__(self, subject: Subject, portrait: Portrait, region: str, level: float):
        self.subject, self.bench, self.region, self.searches = subject, subject.bench, region, {}
        bench, self.pool = subject.bench, subject.pool()
        image = bench.picture(portrait)
        out = InvertImage.execute(
            bench.model,
            bench.prompt(PROMPT),
            {"samples": bench.vae.encode(image)},
            level=level,
            steps=STEPS,
            method=INVERTED,
        ).result
        self.inversion, self._sigmas = out[4], out[2]
        samples = self.inversion.latent["samples"]
        self.cells = cells_of(portrait, region, samples.shape)
        self.pixels = in_pixels(self.cells, image.shape[1])
        self.unmoved = self.sampled()
        self.wanted = wanted_change(region, image.shape[1], tuple(samples.shape))
        self.attributes = attributes_inside(portrait, self.pixels)

    def sampled(self, *sliders: tuple[Direction, float]) -> Sampled:
        """What ComfyUI's euler gives with these sliders, chained as in a graph, at guidance 1."""
        moved = self.inversion
        for direction, strength in sliders:
            moved = with_slider(moved, direction, strength)
        model, positive, noise = outputs(moved)
        latent = sample_euler(model, noise.noise, self._sigmas, positive, self.inversion.latent)
        return Sampled(latent, eight_bit(self.bench.vae.decode(latent))[0])

    def searched(self, work: Callable[[Search], Result], settings: Settings) -> Result:
        """What a search gives here, which finds nothing in the picture's cache."""

        def body(denoiser: Denoiser, x0: Tensor) -> Result:
            x = self.inversion.noisy(denoiser, x0)
            return work(Search(denoiser, x, self.inversion.sigma, self.cells.to(x0), settings, cache=ReferenceCache()))

        prompts = {SOURCE: self.inversion.positive}
        return run(self.bench.model, prompts, self.inversion.latent, self.inversion.sigma, body, block=MIDDLE)[0]

    def changes(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(pictures, attributes) of the change against the unmoved picture, read by the probe (`Change`)."""
        return changes_between(self.bench.reader, self.unmoved.picture, pictures)


def changes_between(reader: Reader, before: np.ndarray, after: Sequence[np.ndarray]) -> np.ndarray:
    """(pictures, attributes) in the order of ATTRIBUTES, in standard deviations or probability."""
    read = reader.read([before, *after])
    first, rest = ({name: values[part] for name, values in read.items()} for part in (slice(1), slice(1, None)))
    found = changes(first, rest)
    return np.stack([found[name].change for name in ATTRIBUTES], -1)


def cells_of(portrait: Portrait, region: str, shape: Sequence[int]) -> Tensor:
    """A region of a portrait in cells of a latent of a shape (1, C, h, w): (1, 1, h, w) of 0 and 1."""
    mask = torch.from_numpy(masks(portrait)[region])[None]
    return covered_cells(soft_mask_on_latent(mask, torch.Size(shape)))


def in_pixels(cells: Tensor, size: int) -> np.ndarray:
    """Cells (1, 1, h, w) as a mask (size, size) of pixels."""
    return torch.nn.functional.interpolate(cells, (size, size), mode="nearest")[0, 0].numpy()


def drawn_otherwise(portrait: Portrait, name: str) -> Portrait:
    """The portrait with an attribute one standard deviation nearer to the other end of its range, or another class."""
    attribute, value = ATTRIBUTES[name], getattr(portrait, name)
    if attribute.kind != "continuous":
        return replace(portrait, **{name: next(other for other in attribute.classes if other != value)})
    towards = 1 if value < (attribute.low + attribute.high) / 2 else -1
    return replace(portrait, **{name: value + towards * spread(attribute)})


def attributes_inside(portrait: Portrait, pixels: np.ndarray) -> list[str]:
    """The attributes that belong to a region of a portrait.

    Where one is drawn otherwise, a share of at least INSIDE of the squared change lies inside the region's pixels,
    (H, W) of 0 and 1. So which they are does not depend on a model, but on how the region's cells lie.
    """
    found, before = [], draw(portrait, len(pixels)).astype(float)
    for name in ATTRIBUTES:
        square = np.square(draw(drawn_otherwise(portrait, name), len(pixels)) - before)
        if square[pixels > 0].sum() >= INSIDE * square.sum():
            found.append(name)
    return found


@functools.cache
def wanted_change(region: str, size: int, shape: tuple[int, ...]) -> float:
    """Root mean square change of the region's pixels, in 8-bit steps, when one standard deviation more is drawn.

    It is the mean over the attributes that REGIONS names and DRAWN tuning portraits, drawn at the model's size without
    any model, so that no method has a say in it.
    """
    found = []
    for number in range(DRAWN):
        portrait = sample_portrait(np.random.default_rng([TUNING, number]))
        pixels = in_pixels(cells_of(portrait, region, shape), size)
        for name in REGIONS[region]:
            change = draw(drawn_otherwise(portrait, name), size).astype(float) - draw(portrait, size)
            found.append(np.square(change)[pixels > 0].mean() ** 0.5)
    return float(np.mean(found))


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("MMDiT", Bench, LEVEL),
        Subject("U-Net", UNetBench, LEVEL),
        Subject("DDPM", PixelBench, LEVEL),
    )
}
