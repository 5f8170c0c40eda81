"""Held-out portraits of the demo world as benchmark cases, edited by the pack's own nodes in this process."""

import json
from dataclasses import dataclass, field

import numpy as np
import torch

from latent_directions.core.direction import Direction
from latent_directions.core.inversion import INVERSIONS
from latent_directions.demo.architecture import load_demo_model
from latent_directions.demo.measures import Reader, leakage, target_values
from latent_directions.demo.world import ATTRIBUTES, Portrait, caption, draw, masks, sample_portrait
from latent_directions.nodes.anchored import AnchoredModel
from latent_directions.nodes.encode import InvertImage
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.manipulate import outputs, with_slider
from latent_directions.nodes.sampling import sample_euler
from latent_directions.nodes.sockets import EncodedNoise

STEPS = 10
INVERTED = next(iter(INVERSIONS))  # the best way to invert by `python -m benchmarks.encode`
REGION = {
    "smile": "mouth",
    "mouth_opening": "mouth",
    "eye_size": "eyes",
    "brow_angle": "eyes",
    "hair_length": "hair",
    "hair_colour": "hair",
    "glasses": "eyes",
}


@dataclass(frozen=True)
class Case:
    """One portrait and the attribute to move, with the prompts of the edit."""

    name: str
    portrait: Portrait
    attribute: str
    source: str
    target: str
    phrase: str
    keep: str = ""


@dataclass
class Bench:
    """The demo model, loaded once, and the attribute probe."""

    model: object = None
    clip: object = None
    vae: object = None
    reader: Reader = field(default_factory=Reader)

    def __post_init__(self):
        """Load the demo model through ComfyUI's own loaders."""
        self.model, self.clip, self.vae = load_demo_model()

    def prompt(self, text: str) -> list:
        """CONDITIONING of a text."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def picture(self, portrait: Portrait) -> torch.Tensor:
        """The drawn portrait as IMAGE, 1HWC in 0..1."""
        return torch.from_numpy(draw(portrait).copy())[None].float() / 255

    def encode(self, case: Case, level: float, method: str = INVERTED, seed: int = 0, seeds: int = 1):
        """INVERSION and SIGMAS of a case."""
        latent = {"samples": self.vae.encode(self.picture(case.portrait))}
        out = InvertImage.execute(
            self.model,
            self.prompt(case.source),
            latent,
            level=level,
            steps=STEPS,
            method=method,
            seed=seed,
            seeds=seeds,
        ).result
        return out[4], out[2]

    def find(self, case: Case, inversion, method: str, *, masked: bool = False, keep: str = "", **options):
        """The first direction that a method finds, and the report."""
        region = REGION[case.attribute] if masked else None
        directions, report = self.find_all(case, inversion, method, region=region, keep=keep, **{"count": 1, **options})
        return directions[0], report

    def find_all(
        self, case: Case, inversion, method: str, *, region: str | None = None, keep: str = "", **options
    ) -> tuple[list[Direction], dict]:
        """All directions that a method finds in a region of the portrait, or without a mask, and the report."""
        mask = None if region is None else torch.from_numpy(masks(case.portrait)[region])[None]
        directions, report = FindDirections.execute(
            self.model, inversion, method, case.source, case.target, keep, clip=self.clip, mask=mask, **options
        ).result[:2]
        return directions, json.loads(report)

    def edit(
        self, inversion, sigmas, direction: Direction, strengths, weight: float = 1.0, *, recorded: bool = False
    ) -> list[np.ndarray]:
        """8-bit pictures at the strengths, sampled with euler at guidance 1."""
        moved = [with_slider(inversion, direction, float(s), weight=weight, recorded=recorded) for s in strengths]
        return [self._sampled(inversion, sigmas, *outputs(one)) for one in moved]

    def unmoved(self, inversion, sigmas) -> np.ndarray:
        """The 8-bit picture at strength 0, whatever the direction."""
        return self._sampled(
            inversion, sigmas, AnchoredModel(inversion).model(), inversion.positive, EncodedNoise(inversion.paths.base)
        )

    def _sampled(self, inversion, sigmas, model, positive, noise) -> np.ndarray:
        return eight_bit(self.vae.decode(sample_euler(model, noise.noise, sigmas, positive, inversion.latent))[0])

    def measure(self, case: Case, pictures: list[np.ndarray], zero: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Target values of the pictures, and the leakage of every other attribute against picture number `zero`."""
        values = self.reader.read(pictures)
        leaks = {name: leakage(values, zero, name) for name in ATTRIBUTES if name != case.attribute}
        return target_values(values, case.attribute, case.phrase), leaks


def eight_bit(image: torch.Tensor) -> np.ndarray:
    """Decoded pictures (..., HWC) in 8 bits, rounded."""
    return (image.clamp(0, 1) * 255).round().byte().numpy()


def far_phrase(attribute: str, value) -> str:
    """The word at the end of the attribute's range that is farther from `value`, or another class."""
    described = ATTRIBUTES[attribute]
    phrases = list(described.words)
    if described.kind == "continuous":
        return phrases[0] if value > (described.low + described.high) / 2 else phrases[-1]
    return next(p for p in phrases if not described.names(p, value))


def held_out(attribute: str, number: int, seed: int) -> Case:
    """Case `number` of an attribute: a portrait of the correlated world, described by the attribute and two others."""
    rng = np.random.default_rng([seed, list(ATTRIBUTES).index(attribute), number])
    portrait = sample_portrait(rng)
    others = rng.choice([n for n in ATTRIBUTES if n != attribute], 2, replace=False)
    source = caption(portrait, attributes=[attribute, *others])
    before = ATTRIBUTES[attribute].phrase(getattr(portrait, attribute))
    phrase = far_phrase(attribute, getattr(portrait, attribute))
    return Case(f"{attribute} {number}", portrait, attribute, source, source.replace(before, phrase), phrase)
