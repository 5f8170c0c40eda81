"""Contact sheets: labelled pictures in rows. Needs Pillow."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

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
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(label * 2 / 3)
    for y, (name, pictures) in enumerate(rows):
        for x, (text, picture) in enumerate(pictures):
            left, top = x * across, y * (down + label)
            words = _fitting(name, f"  {text}", font, across - 6) if x == 0 else text
            draw.text((left + 3, top + 1), words, fill="black", font=font)
            sheet.paste(picture.resize((across, down), Image.Resampling.LANCZOS), (left, top + label))
    return sheet


def _fitting(name: str, label: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Name and label, the name cut so that both fit into so many pixels."""
    shown = name
    while shown and font.getlength(shown + label) > width:
        name = name[:-1]
        shown = f"{name.rstrip()}..." if name else ""
    return shown + label
