"""The moving picture of the README: sliders side by side, each going there and back."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE, GAP, LABEL = 192, 12, 44  # pixels
MILLISECONDS = 90  # each frame
KNOB, TRACK, INK = "#2f6fdf", "#d0d4da", "#24292f"


def save_moving_strip(sliders: dict[str, dict[float, Image.Image]], path: Path) -> None:
    """Save an animated WebP of {name: {strength: picture}}; each slider starts at another strength."""
    strengths = sorted(next(iter(sliders.values())))
    there_and_back = strengths + strengths[-2:0:-1]
    count = len(there_and_back)
    frames = []
    for frame in range(count):
        sheet = Image.new("RGB", (len(sliders) * (TILE + GAP) + GAP, TILE + LABEL + GAP), "white")
        for i, (name, pictures) in enumerate(sliders.items()):
            strength = there_and_back[(frame + i * count // len(sliders)) % count]
            left = GAP + i * (TILE + GAP)
            sheet.paste(pictures[strength].resize((TILE, TILE), Image.Resampling.LANCZOS), (left, GAP))
            share = (strength - strengths[0]) / (strengths[-1] - strengths[0])
            draw_slider(ImageDraw.Draw(sheet), left, name, strength, share)
        frames.append(sheet)
    options = {"duration": MILLISECONDS, "loop": 0, "quality": 75, "method": 6}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def draw_slider(draw: ImageDraw.ImageDraw, left: int, name: str, strength: float, share: float) -> None:
    """Draw the name, the strength and a slider that stands at a share of its range."""
    font, middle = ImageFont.load_default(14), TILE + GAP + 14
    draw.line((left + 8, middle, left + TILE - 8, middle), fill=TRACK, width=4)
    x = left + 8 + share * (TILE - 16)
    draw.ellipse((x - 7, middle - 7, x + 7, middle + 7), fill=KNOB)
    draw.text((left + 4, middle + 11), name, fill=INK, font=font)
    draw.text((left + TILE - 4, middle + 11), f"{strength:+.2f}" if strength else "0", fill=INK, font=font, anchor="ra")
