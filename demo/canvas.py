"""A supersampled canvas in the coordinates of a 64 x 64 picture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SUPERSAMPLING = 4


def mix(a, b, t: float) -> tuple[int, int, int]:
    """The colour at t between a and b, both as (red, green, blue)."""
    return tuple(int(round(x + (y - x) * t)) for x, y in zip(a, b, strict=True))


class Canvas:
    """Pillow drawing in the coordinates of the 64 px picture, moved by a small shift; x is 0 in the middle."""

    def __init__(self, shift_x: float, shift_y: float, size: int, mode: str, fill) -> None:
        self.scale = size * SUPERSAMPLING / SIZE
        self.dx, self.dy = SIZE / 2 + shift_x, shift_y
        self.image = Image.new(mode, (size * SUPERSAMPLING,) * 2, fill)
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point on the supersampled image."""
        return (x + self.dx) * self.scale, (y + self.dy) * self.scale

    def box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        """The corners of the box x +- rx, y +- ry."""
        return (*self.at(x - rx, y - ry), *self.at(x + rx, y + ry))

    def ellipse(self, x, y, rx, ry, fill=None, outline=None, width=0.0) -> None:
        """An ellipse around (x, y)."""
        self.pen.ellipse(self.box(x, y, rx, ry), fill=fill, outline=outline, width=round(width * self.scale))

    def line(self, points, fill, width: float) -> None:
        """A line with round ends."""
        places = [self.at(*q) for q in points]
        self.pen.line(places, fill=fill, width=round(width * self.scale), joint="curve")
        r = width * self.scale / 2
        for x, y in (places[0], places[-1]):
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def polygon(self, points, fill) -> None:
        """A filled polygon."""
        self.pen.polygon([self.at(*q) for q in points], fill=fill)

    def bar(self, x, y, rx, ry, radius, fill) -> None:
        """A filled box with round corners."""
        self.pen.rounded_rectangle(self.box(x, y, rx, ry), radius * self.scale, fill=fill)

    def picture(self) -> np.ndarray:
        """The picture at its size, uint8, size x size or size x size x 3."""
        return np.asarray(self.image.reduce(SUPERSAMPLING))
