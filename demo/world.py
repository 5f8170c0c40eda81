"""A world of drawn portraits in which every attribute of every picture is known.

Only numpy and Pillow are needed here. Coordinates are those of a 64 x 64 picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .canvas import SIZE, Canvas, mix

MAX_TOKENS = 32  # tokens of one prompt, start and end included

HAIR = {
    "black": (34, 30, 40),
    "brown": (115, 68, 36),
    "blond": (224, 172, 66),
    "red": (196, 66, 30),
    "grey": (172, 174, 182),
}
BACKGROUND = {"blue": (122, 178, 232), "green": (138, 206, 152), "pink": (244, 168, 192), "yellow": (253, 238, 156)}
SKIN = ((252, 222, 198), (216, 158, 114), (142, 86, 54))  # light, tan, dark
HAT, HAT_BAND = (92, 62, 148), (246, 176, 84)
FRAME, BROW, LIPS, TEETH, EYE = (28, 42, 70), (44, 30, 26), (98, 20, 38), (250, 248, 244), (38, 30, 36)

EYE_Y, EYE_X, BROW_Y, MOUTH_Y, MOUTH_HALF = 33.0, 7.8, 22.3, 46.6, 8.6
FACE_Y, FACE_HALF_HEIGHT, FRINGE_Y = 35.5, 21.5, 18.0


@dataclass(frozen=True)
class Attribute:
    """One attribute: its kind, its range or classes, and the words that name parts of it."""

    name: str
    kind: str  # continuous | categorical | binary
    low: float = 0.0
    high: float = 1.0
    classes: tuple = ()
    words: dict = field(default_factory=dict)  # phrase -> (from, to), or phrase -> class

    @property
    def range_5_95(self) -> tuple[float, float]:
        """The 5 % and 95 % quantiles; continuous attributes are uniform over [low, high]."""
        span = self.high - self.low
        return self.low + 0.05 * span, self.low + 0.95 * span

    def phrase(self, value) -> str:
        """The phrase that names `value`."""
        for phrase in self.words:
            if self.names(phrase, value):
                return phrase
        msg = f"{self.name} has no word for {value!r}."
        raise ValueError(msg)

    def names(self, phrase: str, value) -> bool:
        """Whether `phrase` is true of `value`; the outer intervals are open-ended."""
        part = self.words[phrase]
        if self.kind != "continuous":
            return part == value
        low, high = part
        return (value >= low or low == self.low) and (value < high or high == self.high)


def _continuous(name: str, low: float, high: float, words: tuple[str, str, str]) -> Attribute:
    span = high - low
    cuts = (low, low + 0.35 * span, low + 0.65 * span, high)
    return Attribute(name, "continuous", low, high, (), {w: (cuts[i], cuts[i + 1]) for i, w in enumerate(words)})


ATTRIBUTES: dict[str, Attribute] = {
    a.name: a
    for a in (
        _continuous("smile", -1, 1, ("sad", "neutral", "smiling")),
        _continuous("mouth_opening", 0, 1, ("tight-lipped", "parted-lipped", "open-mouthed")),
        _continuous("eye_size", 0, 1, ("small-eyed", "medium-eyed", "big-eyed")),
        _continuous("brow_angle", -1, 1, ("worried", "calm", "angry")),
        _continuous("face_width", 0, 1, ("narrow-faced", "medium-faced", "wide-faced")),
        _continuous("skin_tone", 0, 1, ("light-skinned", "tan-skinned", "dark-skinned")),
        _continuous("hair_length", 0, 1, ("short-haired", "medium-haired", "long-haired")),
        Attribute("hair_colour", "categorical", classes=tuple(HAIR), words={f"{c} hair": c for c in HAIR}),
        Attribute("glasses", "binary", classes=(False, True), words={"without glasses": False, "with glasses": True}),
        Attribute("hat", "binary", classes=(False, True), words={"without hat": False, "with hat": True}),
        Attribute(
            "background", "categorical", classes=tuple(BACKGROUND), words={f"{c} background": c for c in BACKGROUND}
        ),
    )
}
OPENINGS = ("a portrait of a person", "a person", "a face", "portrait")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {w for a in ATTRIBUTES.values() for phrase in a.words for w in phrase.split()}
        | {w for opening in OPENINGS for w in opening.split()}
    )
)

# Correlations of the normal variables behind the uniform attributes (a Gaussian copula), then chances given a cause.
COPULA = {("smile", "mouth_opening"): 0.6, ("smile", "brow_angle"): -0.4}
GLASSES_GIVEN = {"grey": 0.9, None: 0.3}
HAT_GIVEN = {"yellow": 0.9, None: 0.25}


@dataclass(frozen=True)
class Portrait:
    """The attributes of one picture; the last three are small nuisances that no word names."""

    smile: float = 0.0
    mouth_opening: float = 0.2
    eye_size: float = 0.5
    brow_angle: float = 0.0
    face_width: float = 0.5
    skin_tone: float = 0.3
    hair_length: float = 0.5
    hair_colour: str = "brown"
    glasses: bool = False
    hat: bool = False
    background: str = "blue"
    shift_x: float = 0.0
    shift_y: float = 0.0
    shirt: float = 0.5


def _correlation() -> np.ndarray:
    names = [n for n, a in ATTRIBUTES.items() if a.kind == "continuous"]
    matrix = np.eye(len(names))
    for (a, b), value in COPULA.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = value
    return matrix


_CHOLESKY = np.linalg.cholesky(_correlation())


def sample_portrait(rng: np.random.Generator, correlated: bool = True) -> Portrait:
    """Draw the attributes of one portrait; `correlated=False` makes them all independent."""
    names = [n for n, a in ATTRIBUTES.items() if a.kind == "continuous"]
    normal = rng.standard_normal(len(names))
    if correlated:
        normal = _CHOLESKY @ normal
    values = {}
    for name, z in zip(names, normal, strict=True):
        uniform = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        attribute = ATTRIBUTES[name]
        values[name] = attribute.low + uniform * (attribute.high - attribute.low)
    hair = tuple(HAIR)[rng.integers(len(HAIR))]
    background = tuple(BACKGROUND)[rng.integers(len(BACKGROUND))]
    glasses, hat = 0.5, 0.5
    if correlated:
        glasses = GLASSES_GIVEN.get(hair, GLASSES_GIVEN[None])
        hat = HAT_GIVEN.get(background, HAT_GIVEN[None])
    shift = rng.uniform(-0.6, 0.6, 2)
    return Portrait(
        **values,
        hair_colour=hair,
        background=background,
        glasses=bool(rng.random() < glasses),
        hat=bool(rng.random() < hat),
        shift_x=float(shift[0]),
        shift_y=float(shift[1]),
        shirt=float(rng.random()),
    )


def caption(portrait: Portrait, rng: np.random.Generator | None = None, attributes=None) -> str:
    """The caption of a portrait.

    Without `rng` it names every attribute, or those listed in `attributes`, in the fixed order of `ATTRIBUTES`. With
    `rng` it is a training caption: a random part of the attributes, half the time in random order, sometimes none.
    """
    if rng is None:
        chosen = list(ATTRIBUTES) if attributes is None else [n for n in ATTRIBUTES if n in set(attributes)]
        unknown = set(attributes or ()) - set(ATTRIBUTES)
        if unknown:
            msg = f"Unknown attributes {sorted(unknown)}. Known are: {', '.join(ATTRIBUTES)}."
            raise ValueError(msg)
        return ", ".join([OPENINGS[0], *(ATTRIBUTES[n].phrase(getattr(portrait, n)) for n in chosen)])
    if rng.random() < 0.03:
        return ""
    opening = OPENINGS[rng.integers(len(OPENINGS))] if rng.random() < 0.5 else OPENINGS[0]
    if rng.random() < 0.04:
        return opening
    share = rng.random()
    chosen = [n for n in ATTRIBUTES if rng.random() < share]
    if rng.random() < 0.5:
        rng.shuffle(chosen)
    parts = [ATTRIBUTES[n].phrase(getattr(portrait, n)) for n in chosen]
    return ", ".join([opening, *parts] if rng.random() < 0.9 else parts)


def _skin(tone: float):
    return mix(SKIN[0], SKIN[1], tone * 2) if tone < 0.5 else mix(SKIN[1], SKIN[2], tone * 2 - 1)


def _face_half_width(p: Portrait) -> float:
    return 14.2 + 6.2 * p.face_width


def _hair_back(c: Canvas, p: Portrait, fill) -> None:
    half = _face_half_width(p) + 4.2
    bottom = 27.0 + 35.0 * p.hair_length
    c.pen.pieslice(c.box(0, 28.0, half, 21.5), 180, 360, fill=fill)
    c.bar(0, (22.0 + bottom) / 2, half, (bottom - 22.0) / 2, 4.5, fill)
    c.pen.rectangle((*c.at(-half, 22.0), *c.at(half, 28.0 if bottom > 31 else 25.0)), fill=fill)


def _fringe(c: Canvas, p: Portrait, fill) -> None:
    # The part of the face ellipse above the line y = FRINGE_Y: a chord whose ends have sin a = (FACE_Y - FRINGE_Y)/ry.
    half, height = _face_half_width(p) + 0.5, FACE_HALF_HEIGHT + 0.5
    a = math.degrees(math.asin((FACE_Y - FRINGE_Y) / height))
    c.pen.chord(c.box(0, FACE_Y, half, height), 180 + a, 360 - a, fill=fill)


def _mouth(c: Canvas, p: Portrait) -> None:
    # Smile bends the lips, y = MOUTH_Y - 4.2 s (u^2 - 0.4) with u = x / half width; opening parts them by (1 - u^2).
    u = np.linspace(-1, 1, 33)
    bend = MOUTH_Y - 4.2 * p.smile * (u**2 - 0.4)
    gap = 9.0 * p.mouth_opening * (1 - u**2)
    upper = list(zip(u * MOUTH_HALF, bend - 0.3 * gap, strict=True))
    lower = list(zip(u * MOUTH_HALF, bend + 0.7 * gap, strict=True))
    c.polygon(upper + lower[::-1], (150, 44, 62))
    teeth = list(zip(u * MOUTH_HALF, bend + 0.05 * gap, strict=True))
    c.polygon(upper + teeth[::-1], TEETH)
    c.line(upper, LIPS, 1.7)
    c.line(lower, LIPS, 1.7)


def _eyes(c: Canvas, p: Portrait, skin) -> None:
    rx, ry = 2.7 + 2.6 * p.eye_size, 1.7 + 3.0 * p.eye_size
    for side in (-1, 1):
        if p.glasses:
            c.ellipse(side * EYE_X, EYE_Y, 6.9, 6.9, fill=mix(skin, (255, 255, 255), 0.3))
        c.ellipse(side * EYE_X, EYE_Y, rx, ry, fill=TEETH)
        c.ellipse(side * EYE_X, EYE_Y, 0.62 * ry + 0.2, 0.75 * ry, fill=EYE)
        c.ellipse(side * EYE_X + 0.3 * ry, EYE_Y - 0.3 * ry, 0.2 * ry, 0.2 * ry, fill=TEETH)
        if p.glasses:
            c.ellipse(side * EYE_X, EYE_Y, 7.2, 7.2, outline=FRAME, width=1.5)
        lift = 2.7 * p.brow_angle
        c.line([(side * (EYE_X - 4.6), BROW_Y + lift), (side * (EYE_X + 4.2), BROW_Y - lift)], BROW, 2.0)
    if p.glasses:
        c.line([(-1.2, EYE_Y - 1), (1.2, EYE_Y - 1)], FRAME, 1.5)


def _hat(c: Canvas, p: Portrait) -> None:
    half = _face_half_width(p)
    c.bar(0, 3.0, half + 0.5, 8.0, 6.0, HAT)
    c.pen.rectangle((*c.at(-half - 0.5, 5.2), *c.at(half + 0.5, 8.8)), fill=HAT_BAND)
    c.bar(0, 9.8, half + 7.5, 1.7, 1.6, HAT)


def draw(portrait: Portrait, size: int = SIZE) -> np.ndarray:
    """Draw a portrait: uint8 array, size x size x 3."""
    p, skin, hair = portrait, _skin(portrait.skin_tone), HAIR[portrait.hair_colour]
    shade = mix(skin, (90, 30, 20), 0.25)
    c = Canvas(p.shift_x, p.shift_y, size, "RGB", BACKGROUND[p.background])
    c.ellipse(0, 72, 27, 15, fill=mix((58, 92, 120), (92, 120, 140), p.shirt))
    _hair_back(c, p, hair)
    c.bar(0, 58, 6.5, 6.5, 5, shade)
    half = _face_half_width(p)
    for side in (-1, 1):
        c.ellipse(side * (half - 0.3), 35.5, 2.6, 3.8, fill=shade)
    c.ellipse(0, FACE_Y, half, FACE_HALF_HEIGHT, fill=skin)
    _fringe(c, p, hair)
    for side in (-1, 1):
        c.ellipse(side * 10.2, 42.2, 2.6, 1.8, fill=mix(skin, (240, 90, 90), 0.28))
    c.line([(0.6, 36.5), (-1.2, 40.6), (0.9, 40.8)], shade, 1.1)
    _eyes(c, p, skin)
    _mouth(c, p)
    if p.hat:
        _hat(c, p)
    return c.picture()


def masks(portrait: Portrait, size: int = SIZE) -> dict[str, np.ndarray]:
    """Regions of a portrait as float32 arrays of 0 and 1, size x size: mouth, eyes, hair, face."""
    p, half = portrait, _face_half_width(portrait)

    def region(paint) -> np.ndarray:
        c = Canvas(p.shift_x, p.shift_y, size, "L", 0)
        paint(c)
        return (c.picture() > 127).astype(np.float32)

    def hair(c: Canvas) -> None:
        _hair_back(c, p, 255)
        c.ellipse(0, FACE_Y, half, FACE_HALF_HEIGHT, fill=0)
        c.bar(0, 58, 6.5, 6.5, 5, 0)
        _fringe(c, p, 255)
        if p.hat:
            c.pen.rectangle((*c.at(-40, -10), *c.at(40, 11.5)), fill=0)

    return {
        "mouth": region(lambda c: c.bar(0, MOUTH_Y + 1.4, MOUTH_HALF + 2.4, 7.6, 1, 255)),
        "eyes": region(lambda c: c.bar(0, EYE_Y, EYE_X + 7.2, 7.2, 1, 255)),
        "hair": region(hair),
        "face": region(lambda c: c.ellipse(0, FACE_Y, half, FACE_HALF_HEIGHT, fill=255)),
    }


def sample_pool(count: int, seed: int, correlated: bool = True, size: int = SIZE):
    """`count` portraits and their pictures: list of Portrait, uint8 array count x size x size x 3."""
    rng = np.random.default_rng(seed)
    portraits = [sample_portrait(rng, correlated) for _ in range(count)]
    return portraits, np.stack([draw(p, size) for p in portraits])
