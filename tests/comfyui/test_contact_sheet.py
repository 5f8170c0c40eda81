"""Contact sheets: where pictures and labels stand, and that labels stay readable."""

import pytest
from PIL import Image

from latent_directions.core.contact_sheet import contact_sheet, label_height

COLOURS = ("red", "lime", "blue")


def row(name: str, side: int):
    return name, [(f"{i - 1:+d}", Image.new("RGB", (side, side), colour)) for i, colour in enumerate(COLOURS)]


@pytest.mark.parametrize(("side", "shown"), [(64, 128), (128, 128), (1024, 1024)])
def test_pictures_stand_in_rows_below_their_labels(side, shown):
    sheet = contact_sheet([row("smile", side), row("age", side)])
    label = label_height(shown)
    assert sheet.size == (3 * shown, 2 * (shown + label))
    for y in range(2):
        for x, colour in enumerate(COLOURS):
            inside = sheet.getpixel((x * shown + shown // 2, y * (shown + label) + label + shown // 2))
            assert inside == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    assert label >= shown / 13  # the label of a large picture is as readable as that of a small one


def test_a_long_name_leaves_the_next_label_alone():
    """Everything right of the first cell's edge is what it is with a short name."""
    short, long = (contact_sheet([row(name, 128)]) for name in ("a", "a smiling woman with long red hair and glasses"))
    label = label_height(128)
    assert short.crop((128, 0, 384, label)).tobytes() == long.crop((128, 0, 384, label)).tobytes()
    assert short.crop((0, 0, 128, label)).tobytes() != long.crop((0, 0, 128, label)).tobytes()
