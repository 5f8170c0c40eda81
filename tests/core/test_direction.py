"""Directions and prompts as data: what a slider at a strength moves, and differences of prompts."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from analytic import SCALES

from latent_directions.core.anchor import NoiseMove, WordsMove, moved_noise
from latent_directions.core.direction import Direction, KeepPair, Prompt
from latent_directions.core.errors import PromptLengthError, PromptPartsError, ShapeError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, pooled: bool = True) -> Prompt:
    return Prompt(random(1, 7, 24, seed=seed), random(1, 32, seed=seed + 50) if pooled else None)


KEEP = (KeepPair("a hat", prompt(3), prompt(4)), KeepPair("grey hair", prompt(5, False), prompt(6, False)))


def of_latent(**options) -> Direction:
    return Direction("direction 1", "LOCO", "SDXL", 2.5, latent=random(4, 8, 8), step=2.0, **options)


def of_words(**options) -> Direction:
    return Direction("older", "text", "Flux", 0.8, text=prompt(1, False), **options)


def name_of(wanted: Prompt) -> str:
    """A name for each of the keep prompts."""
    known = {"hat": KEEP[0].present, "no hat": KEEP[0].absent, "grey": KEEP[1].present, "not grey": KEEP[1].absent}
    return next(name for name, one in known.items() if one is wanted)


class TestMoves:
    @pytest.mark.parametrize("strength", [1.5, 0.0, -1.0])
    def test_of_the_latent(self, strength):
        direction = of_latent()
        (move,) = direction.moves(strength, name_of)
        assert isinstance(move, NoiseMove)
        assert torch.equal(move.displacement, 2.0 * direction.latent)
        assert (move.strength, move.keep, move.mask) == (strength, (), None)

    @pytest.mark.parametrize("strength", [1.5, 0.0, -1.0])
    def test_of_the_words_alone(self, strength):
        (move,) = of_words().moves(strength, name_of)
        assert isinstance(move, WordsMove)
        assert (move.strength, move.keep, move.mask) == (strength, (), None)

    def test_of_both(self):
        (move,) = of_latent(text=prompt(1)).moves(1.0, name_of)
        assert isinstance(move, NoiseMove)

    @pytest.mark.parametrize("direction", [of_latent(keep=KEEP), of_words(keep=KEEP)], ids=["latent", "words"])
    def test_keep_by_the_names_that_it_is_asked_for_under(self, direction):
        (move,) = direction.moves(1.0, name_of)
        assert move.keep == (("hat", "no hat"), ("grey", "not grey"))

    def test_strength_one_moves_the_latent_by_the_step(self):
        direction, noise, b = of_latent(), random(2, 4, 8, 8, seed=3), 2.5
        moved = moved_noise(noise, direction.moves(1.5, name_of), b)
        assert torch.allclose(b * (moved - noise), 1.5 * 2.0 * direction.latent.expand(2, -1, -1, -1), atol=1e-5)
        assert torch.equal(moved_noise(noise, direction.moves(0.0, name_of), b), noise)
        assert moved_noise(noise, of_words().moves(1.0, name_of), b) is noise

    @pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
    def test_at_another_level_the_noise_moves_by_as_much(self, scale):
        """Found at 0.9 and used at 0.2 it would move by several times as much."""
        direction, noise = replace(of_latent(), sigma=0.9), random(1, 4, 8, 8, seed=3)
        found, used = (
            moved_noise(noise, direction.at(sigma, scale).moves(1.0, name_of), scale(sigma)[1]) - noise
            for sigma in (0.9, 0.2)
        )
        assert torch.allclose(found, used, atol=1e-5)
        assert direction.at(0.9, scale) is direction
        words = of_words()
        assert words.at(0.2, scale) is words

    def test_a_name_can_be_printed(self):
        assert Direction("a\ud800" + "b" * 5000, "LOCO", "SD3", 1.0).name.startswith("a\\ud800b")
        assert len(Direction("b" * 5000, "LOCO", "SD3", 1.0).name) < 300

    def test_another_size(self):
        with pytest.raises(ShapeError, match="found on a latent of 4 x 8 x 8, but this picture's is 4 x 8 x 9"):
            moved_noise(random(1, 4, 8, 9), of_latent().moves(1.0, name_of), 1.0)

    def test_is_frozen(self):
        direction = of_latent()
        with pytest.raises(FrozenInstanceError):
            direction.step = 3.0


class TestPrompt:
    def test_difference_and_scale(self):
        a, b = prompt(1), prompt(2)
        change = (a - b).scaled(0.5)
        assert torch.equal(change.tokens, 0.5 * (a.tokens - b.tokens))
        assert torch.equal(change.pooled, 0.5 * (a.pooled - b.pooled))

    def test_without_a_pooled_vector(self):
        assert (prompt(1, False) - prompt(2)).pooled is None
        assert (prompt(1) - prompt(2, False)).pooled is None
        assert prompt(1, False).scaled(2.0).pooled is None

    def test_other_parts_of_numbers_are_compared_too(self):
        a, b = (Prompt(random(1, 7, 24), extra={"second": random(1, 3, 5, seed=seed)}) for seed in (1, 2))
        change = (a - b).scaled(0.5)
        assert torch.equal(change.extra["second"], 0.5 * (a.extra["second"] - b.extra["second"]))
        assert set(a.parts()) == {"tokens", "second"}

    def test_parts_of_whole_numbers_have_no_difference(self):
        def with_numbers(*numbers: int, **more) -> Prompt:
            return Prompt(random(1, 7, 24), extra={"ids": torch.tensor([numbers]), **more})

        assert (with_numbers(1, 1, 0) - with_numbers(1, 1, 0)).extra == {}
        for other in (with_numbers(1, 0, 0), with_numbers(1, 1), with_numbers(1, 1, 0, second=random(1, 2))):
            for one, two in ((with_numbers(1, 1, 0), other), (other, with_numbers(1, 1, 0))):
                with pytest.raises(PromptPartsError, match="embeddings do not match in '(ids|second)'"):
                    one - two

    def test_masks_over_slots_are_left_out(self):
        """Encoders that pad mask what they have added, and leave the mask out where there is nothing to mask."""
        prompts = [
            Prompt(random(1, 7, 24), extra=extra)
            for extra in ({"attention_mask": torch.tensor([[1, 1, 0]])}, {"attention_mask": torch.ones(1, 3)}, {})
        ]
        for one in prompts:
            for other in prompts:
                assert (one - other).extra == {}
        assert not prompts[0].same_slots(prompts[1])
        assert prompts[0].same_slots(prompts[0])
        assert not prompts[0].same_slots(prompts[2])  # a mask of ones may be left out
        assert prompts[1].same_slots(prompts[2])

    def test_prompts_of_other_lengths(self):
        longer = Prompt(random(1, 9, 24))
        with pytest.raises(PromptLengthError, match="different lengths .*7 and 9 slots"):
            prompt(1) - longer
