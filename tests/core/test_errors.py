"""What an error says can be printed, logged and sent, whatever it quotes."""

import inspect

import pytest

from latent_directions.core import errors
from latent_directions.core.errors import LONGEST_MESSAGE, LatentDirectionsError, printable

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, LatentDirectionsError) and kind is not errors.NoTrustedModeError
]
HOSTILE = ["\ud800", "a\udfffb", "\x1b[31m", "\0", "x" * 5_000_000, "\ud800" * 100_000, "\u200b", "\u202e"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_error_is_printable_and_short(kind, text):
    said = str(kind(f"The name is '{text}'. Choose another."))
    assert said.isprintable()
    said.encode()
    assert len(said) <= LONGEST_MESSAGE + 5
    assert said.startswith("The name is '")
    assert said.endswith("'. Choose another.")


@pytest.mark.parametrize(
    "text", ["", "plain", "très, 笑顔, 😀", "two\nlines", "全角\u3000空白", "👩\u200d🎨", "x" * LONGEST_MESSAGE]
)
def test_what_can_be_printed_stays(text):
    assert printable(text) == text


def test_codes_in_place_of_what_cannot():
    assert printable("a\ud800b\tc") == "a\\ud800b\\tc"
    assert printable("abcdefgh", 4) == "ab ... gh"
