"""Contact sheets: labelled pictures in rows. Needs Pillow, which nothing else in `core` does."""

from __future__ import annotations

from PIL import Image, ImageDraw

Row = tuple[str, list[tuple[str, Image.Image]]]  # name, and pictures with their labels


def label_height(width: int) -> int:
    """Pixels for the label above a picture of so many pixels across, so that it can be read beside the picture."""
    return max(14, width // 12)


def contact_sheet(rows: list[Row], width: int = 128) -> Image.Image:
    """Rows of labelled pictures of one size; pictures narrower than `width` pixels are enlarged to about that."""
    size = rows[0][1][0][1].size
    factor = max(1, round(width / size[0]))
    across, down = size[0] * factor, size[1] * factor
    label = label_height(across)
    sheet = Image.new("RGB", (len(rows[0][1]) * across, len(rows) * (down + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (name, pictures) in enumerate(rows):
        for x, (text, picture) in enumerate(pictures):
            left, top = x * across, y * (down + label)
            words = f"{name}  {text}" if x == 0 else text
            draw.text((left + 3, top + 1), words, fill="black", font_size=label * 2 / 3)
            sheet.paste(picture.resize((across, down), Image.Resampling.LANCZOS), (left, top + label))
    return sheet
