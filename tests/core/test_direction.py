"""Directions as data: what a slider at a strength moves, which prompts it asks for, and fingerprints of models."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from analytic import SCALES

from latent_directions.core.anchor import NoiseMove, WordsMove, moved_noise
from latent_directions.core.denoiser import SOURCE
from latent_directions.core.direction import Direction, Fingerprint, KeepPair, Prompt, Words
from latent_directions.core.errors import ShapeError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, pooled: bool = True) -> Prompt:
    return Prompt(random(1, 7, 24, seed=seed), random(1, 32, seed=seed + 50) if pooled else None)


KEEP = (KeepPair("a hat", prompt(3), prompt(4)), KeepPair("grey hair", prompt(5, False), prompt(6, False)))
WORDS = Words(prompt(1), prompt(2), share=0.5)
NAMES = {
    "smiling": WORDS.target,
    "sad": WORDS.source,
    "hat": KEEP[0].present,
    "no hat": KEEP[0].absent,
    "grey": KEEP[1].present,
    "not grey": KEEP[1].absent,
}


def of_latent(**options) -> Direction:
    return Direction("direction 1", "LOCO", "SDXL", 2.5, latent=random(4, 8, 8), step=2.0, **options)


def of_words(words: Words = WORDS, **options) -> Direction:
    return Direction("older", "text", "Flux", 0.8, words=words, **options)


def name_of(wanted: Prompt) -> str:
    return next(name for name, one in NAMES.items() if one is wanted)


class TestMoves:
    @pytest.mark.parametrize("strength", [1.5, 0.0, -1.0])
    def test_of_the_latent(self, strength):
        direction = of_latent()
        (move,) = direction.moves(strength, name_of)
        assert isinstance(move, NoiseMove)
        assert torch.equal(move.displacement, 2.0 * direction.latent)
        assert (move.strength, move.keep, move.mask) == (strength, (), None)

    @pytest.mark.parametrize("strength", [1.5, 0.0, -1.0])
    @pytest.mark.parametrize("share", [0.5, 1.0])
    def test_of_the_words_alone(self, strength, share):
        (move,) = of_words(replace(WORDS, share=share)).moves(strength, name_of)
        assert isinstance(move, WordsMove)
        assert (move.strength, move.towards, move.away, move.recorded) == (share * strength, "smiling", "sad", False)

    def test_words_are_compared_with_the_prompt_of_the_picture_where_there_is_no_other(self):
        (move,) = of_words(replace(WORDS, source=None)).moves(1.0, name_of)
        assert (move.towards, move.away) == ("smiling", SOURCE)

    def test_of_both(self):
        noise, words = of_latent(words=WORDS).moves(2.0, name_of)
        assert isinstance(noise, NoiseMove)
        assert isinstance(words, WordsMove)
        assert (noise.strength, words.strength) == (2.0, 1.0)

    def test_of_neither(self):
        assert Direction("", "", "", 1.0).moves(1.0, name_of) == ()

    def test_all_moves_have_keeps_and_mask(self):
        mask = torch.ones(1, 1, 8, 8)
        for move in of_latent(words=WORDS, keep=KEEP).moves(1.0, name_of, recorded=True, mask=mask):
            assert move.keep == (("hat", "no hat"), ("grey", "not grey"))
            assert move.mask is mask
            assert getattr(move, "recorded", True)

    def test_strength_one_moves_the_latent_by_the_step(self):
        direction, noise, b = of_latent(), random(2, 4, 8, 8, seed=3), 2.5
        moved = moved_noise(noise, direction.moves(1.5, name_of), b)
        assert torch.allclose(b * (moved - noise), 1.5 * 2.0 * direction.latent.expand(2, -1, -1, -1), atol=1e-5)
        assert torch.equal(moved_noise(noise, direction.moves(0.0, name_of), b), noise)
        assert moved_noise(noise, of_words().moves(1.0, name_of), b) is noise

    @pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
    def test_at_another_level_the_noise_moves_by_as_much(self, scale):
        """Found at 0.9 and used at 0.2 it would move by several times as much."""
        direction, noise = replace(of_latent(words=WORDS), sigma=0.9), random(1, 4, 8, 8, seed=3)
        found, used = (
            moved_noise(noise, direction.at(sigma, scale).moves(1.0, name_of), scale(sigma)[1]) - noise
            for sigma in (0.9, 0.2)
        )
        assert torch.allclose(found, used, atol=1e-5)
        assert direction.at(0.9, scale) is direction
        assert direction.at(0.2, scale).words is WORDS
        words = of_words()
        assert words.at(0.2, scale) is words

    def test_another_size(self):
        with pytest.raises(ShapeError, match="found on a latent of 4 x 8 x 8, but this picture's is 4 x 8 x 9"):
            moved_noise(random(1, 4, 8, 9), of_latent().moves(1.0, name_of), 1.0)


class TestPrompts:
    def test_of_words_and_keeps(self):
        found = of_latent(words=WORDS, keep=KEEP).prompts()
        assert [name_of(one) for one in found] == list(NAMES)

    def test_the_picture_s_own_is_not_among_them(self):
        assert of_words(replace(WORDS, source=None)).prompts() == [WORDS.target]
        assert of_latent().prompts() == []

    def test_parts_by_name(self):
        ids = torch.tensor([[1, 2]])
        one = replace(prompt(1), extra={"ids": ids})
        assert list(one.parts()) == ["tokens", "pooled", "ids"]
        assert list(prompt(1, False).parts()) == ["tokens"]


class TestDirection:
    def test_a_name_can_be_printed(self):
        assert Direction("a\ud800" + "b" * 5000, "LOCO", "SD3", 1.0).name.startswith("a\\ud800b")
        assert len(Direction("b" * 5000, "LOCO", "SD3", 1.0).name) < 300

    def test_is_frozen(self):
        direction = of_latent()
        with pytest.raises(FrozenInstanceError):
            direction.step = 3.0


class TestFingerprint:
    WEIGHTS = tuple(tuple(random(8, seed=seed).tolist()) for seed in range(5))

    def changed(self, by: float, parameters: int = 5) -> tuple:
        weights = torch.tensor(self.WEIGHTS)
        weights[:parameters] += by * random(parameters, 8, seed=90)
        return tuple(map(tuple, weights.tolist()))

    def test_another_structure(self):
        assert Fingerprint("a").differs_from(Fingerprint("b"))
        assert not Fingerprint("a").differs_from(Fingerprint("a"))

    @pytest.mark.parametrize(
        ("by", "rounding", "differs"), [(0.003, 0.008, False), (0.1, 0.008, True), (0.1, 0.25, False)]
    )
    def test_weights_count_beyond_the_rounding_of_either(self, by, rounding, differs):
        exact, other = Fingerprint("a", self.WEIGHTS, 0.008), Fingerprint("a", self.changed(by), rounding)
        assert exact.differs_from(other) is other.differs_from(exact) is differs

    def test_a_quarter_of_the_parameters_must_differ(self):
        assert not Fingerprint("a", self.WEIGHTS, 0.008).differs_from(Fingerprint("a", self.changed(5.0, 1), 0.008))
        assert Fingerprint("a", self.WEIGHTS, 0.008).differs_from(Fingerprint("a", self.changed(5.0, 2), 0.008))

    def test_what_could_not_be_read_does_not_count(self):
        unread = Fingerprint("a", ((),) * 5)
        assert not unread.differs_from(Fingerprint("a", self.WEIGHTS))
        assert not Fingerprint("a", self.WEIGHTS).differs_from(unread)

    def test_weights_of_zero(self):
        zeros = Fingerprint("a", ((0.0, 0.0),))
        assert not zeros.differs_from(zeros)
        assert zeros.differs_from(Fingerprint("a", ((0.0, math.pi),)))
