"""Prompts of several entries (combined, regional) and of other lengths: every entry gets the change."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from families import Family, conditioning, sd1, sd3
from more_families import lumina2
from node_runs import HashingClip, deviation, edit, find, invert, loaded, sample

from latent_directions.core.direction import Prompt
from latent_directions.nodes import prompts
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.prompts import digest, encode_text, prompt_name, with_prompt
from nodes import ConditioningCombine, ConditioningSetArea, ConditioningSetMask

KEEP = "a person with hat | a person without cap"


def halves(test_model, second_prompt):
    """Two regional prompts: the left half of the picture under the test model's own, the right under another."""
    (left,), (right,) = (
        ConditioningSetArea().append(prompt, 32, 64, x, 0, 1.0)
        for prompt, x in ((test_model.positive, 0), (second_prompt, 32))
    )
    return ConditioningCombine().combine(left, right)[0]


@pytest.fixture
def regional():
    """A model whose positive prompt has an entry for the left half of the picture and one for the right."""
    test_model = loaded(Family("sd3", sd3))
    test_model.positive = halves(test_model, conditioning(31, 7, 24, 32))
    return test_model


def test_another_text_in_every_entry():
    first, second = conditioning(1, 7, 24, 32), conditioning(2, 9, 24, 32, guidance=3.0)
    (masked,) = ConditioningSetMask().append(first, torch.ones(1, 8, 8), "default", 0.5)
    prompt = Prompt(torch.ones(1, 5, 24), torch.ones(1, 32))
    one, other = with_prompt([*masked, *second], prompt)
    assert one[0] is other[0] is prompt.tokens
    assert one[1]["pooled_output"] is other[1]["pooled_output"] is prompt.pooled
    assert one[1]["mask"] is masked[0][1]["mask"]
    assert one[1]["mask_strength"] == 0.5
    assert other[1]["guidance"] == 3.0
    assert torch.equal(second[0][1]["pooled_output"], conditioning(2, 9, 24, 32)[0][1]["pooled_output"])


def test_a_change_of_every_entry():
    entries = [*conditioning(1, 7, 24, 32), *conditioning(2, 7, 24, 32)]
    change = Prompt(torch.ones(1, 7, 24), torch.ones(1, 32), is_change=True)
    for (tokens, extra), (moved, moved_extra) in zip(entries, with_prompt(entries, change), strict=True):
        assert torch.equal(moved, tokens + 1)
        assert torch.equal(moved_extra["pooled_output"], extra["pooled_output"] + 1)


class Encoder:
    """A text encoder that gives more than tokens, as those of HunyuanDiT, HiDream and Anima do."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        generator = torch.Generator().manual_seed(len(text))
        extra = {
            "pooled_output": torch.randn(1, 32, generator=generator),
            "conditioning_mt5xl": torch.randn(1, 6, 8, generator=generator),
            "attention_mask": torch.ones(1, 7, dtype=torch.long),
            "num_layers_stacked": 3,
        }
        return [[torch.randn(1, 7, 24, generator=generator), extra]]


class TestWholeEntries:
    def test_all_parts_are_encoded(self):
        prompt = encode_text(Encoder(), "a hat")
        assert set(prompt.parts()) == {"tokens", "pooled", "conditioning_mt5xl", "attention_mask"}

    def test_another_text_takes_all_its_parts(self):
        """And none of the source's, also not those that its encoder leaves out for it."""
        source = Encoder().encode_from_tokens_scheduled("a person")
        source[0][1] |= {"conditioning_byt5small": torch.ones(1, 2, 3), "strength": 0.5}  # one is the encoder's
        prompt = encode_text(Encoder(), "a hat")
        ((_, entry),) = with_prompt(source, prompt)
        for name in ("conditioning_mt5xl", "attention_mask"):
            assert entry[name] is prompt.extra[name]
        assert "conditioning_byt5small" not in entry
        assert entry["strength"] == 0.5
        assert entry["num_layers_stacked"] == 3

    def test_a_change_of_words_changes_all_parts(self):
        source = Encoder().encode_from_tokens_scheduled("a person")
        change = replace(encode_text(Encoder(), "a hat"), is_change=True)
        change.extra["attention_mask"] = torch.zeros(1, 7, dtype=torch.long)
        ((_, entry),) = with_prompt(source, change)
        expected = source[0][1]["conditioning_mt5xl"] + change.extra["conditioning_mt5xl"]
        assert torch.equal(entry["conditioning_mt5xl"], expected)
        assert torch.equal(entry["attention_mask"], source[0][1]["attention_mask"])

    @pytest.mark.parametrize("name", ["pooled_output", "conditioning_mt5xl"])
    def test_a_change_of_another_size(self, name):
        source = Encoder().encode_from_tokens_scheduled("a person")
        source[0][1][name] = torch.zeros(1, 9, 9)
        change = replace(encode_text(Encoder(), "a hat"), is_change=True)
        with pytest.raises(InputError, match=f"differ in the size of '{name}'"):
            with_prompt(source, change)

    def test_a_change_of_another_length(self):
        source = conditioning(1, 9, 24, 32)
        with pytest.raises(InputError, match="fill 7 slots of width 24, but this prompt has 9 of width 24"):
            with_prompt(source, Prompt(torch.ones(1, 7, 24), is_change=True))

    @pytest.mark.parametrize("part", ["tokens", "pooled", "second", "numbers"])
    def test_prompts_that_differ_in_any_part_have_names_of_their_own(self, part):
        """Under one name they would share cached predictions."""

        def prompt(changed: str = "") -> Prompt:
            parts = {"tokens": torch.ones(1, 7, 24), "pooled": torch.ones(1, 32)}
            extra = {"second": torch.ones(1, 3), "numbers": torch.tensor([[2**24, 3]])}
            if changed:
                place = parts if changed in parts else extra
                place[changed] = place[changed] + 1
            return Prompt(**parts, extra=extra)

        assert prompt_name(prompt()) == prompt_name(prompt())
        assert prompt_name(prompt(part)) != prompt_name(prompt())

    def test_a_prompt_is_named_once(self, monkeypatch):
        """Every run of a slider asks for the names, and large prompts take a while to hash."""
        hashed = []
        monkeypatch.setattr(prompts, "digest", lambda tensor: hashed.append(tensor) or digest(tensor))
        prompt = Prompt(torch.ones(1, 7, 24), torch.ones(1, 32))
        assert prompt_name(prompt) == prompt_name(prompt)
        assert len(hashed) == 2
        assert prompt_name(replace(prompt, tokens=torch.zeros(1, 7, 24))) != prompt_name(prompt)
        assert len(hashed) == 4

    def test_the_name_does_not_keep_a_prompt_alive(self):
        prompt = Prompt(torch.ones(1, 7, 24))
        prompt_name(prompt)
        tokens = weakref.ref(prompt.tokens)
        del prompt
        gc.collect()
        assert tokens() is None


def test_the_latent_returns_under_regional_prompts(regional):
    encoded = invert(regional)
    assert deviation(sample(regional, encoded, cfg=2.0), encoded.latent["samples"]) <= 1e-5


@pytest.mark.parametrize("method", ["text", "DDS", "HSDS"])
def test_keep_prompts_work_on_both_halves(regional, method):
    """The same edit with and without a pair to keep differs in both halves of the picture."""
    encoded = invert(regional)
    (free,), _ = find(regional, encoded.inversion, method)
    (kept,), _ = find(regional, encoded.inversion, method, keep=KEEP)
    change = edit(regional, encoded, kept) - edit(regional, encoded, free)
    assert torch.isfinite(change).all()
    left, right = change[..., :4].norm(), change[..., 4:].norm()
    assert 0.1 < left / right < 10


def test_equal_entries_are_as_one():
    """Combining a prompt with itself changes nothing, with a pair to keep as without one."""
    results = []
    for times in (1, 2):
        test_model = loaded(Family("sd3", sd3))
        test_model.positive = test_model.positive * times
        encoded = invert(test_model)
        (direction,), _ = find(test_model, encoded.inversion, "HSDS", keep=KEEP)
        results.append(edit(test_model, encoded, direction))
    assert deviation(*results) <= 1e-4


def test_keep_prompts_of_another_length_than_the_source():
    """Encoders that do not pad give every prompt a mask of its own length; the source's does not fit another prompt."""
    test_model = loaded(Family("lumina2", lumina2))
    ((tokens, extra),) = test_model.positive
    longer = torch.cat([tokens, tokens[:, :2]], dim=1)
    test_model.positive = [[longer, {**extra, "attention_mask": torch.ones(1, longer.shape[1])}]]
    short = [[tokens, {**extra, "attention_mask": torch.ones(1, tokens.shape[1])}]]
    ((_, swapped),) = with_prompt(test_model.positive, Prompt(tokens))
    assert "attention_mask" not in swapped  # the encoder gives none with a short prompt
    encoded = invert(test_model)
    as_longer, as_short = (
        sample(test_model, encoded, model=test_model.model, positive=positive)
        for positive in (with_prompt(test_model.positive, Prompt(tokens)), short)
    )
    assert torch.equal(as_longer, as_short)


class Unpadded(HashingClip):
    """A text encoder that gives every word a token and says so by a mask."""

    def encode_from_tokens_scheduled(self, words: list[str]) -> list:
        ((tokens, extra),) = super().encode_from_tokens_scheduled(words)
        return [[tokens[:, : len(words)], {**extra, "attention_mask": torch.ones(1, len(words), dtype=torch.long)}]]


@pytest.mark.parametrize("family", [Family("sd1", sd1), Family("sd3", sd3), Family("lumina2", lumina2)], ids=str)
def test_words_of_other_lengths_than_the_source(family):
    """Each prompt goes to the network with the length and the mask of its own."""
    test_model = loaded(family)
    encoded, clip = invert(test_model), Unpadded(test_model)
    options = {"clip": clip, "source": "sad man", "target": "very glad old man"}
    (direction,), _ = find(test_model, encoded.inversion, "text", **options)
    lengths, forward = set(), test_model.model.model.apply_model

    def noted(*args, **options):
        lengths.add(options["c_crossattn"].shape[1])
        return forward(*args, **options)

    test_model.model.model.apply_model = noted
    try:
        changed = edit(test_model, encoded, direction)
    finally:
        del test_model.model.model.apply_model
    # the picture's own prompt has 7; a U-Net does not mind repeated tokens
    assert lengths == ({4, 7} if family.name == "sd1" else {2, 4, 7})
    assert deviation(changed, encoded.latent["samples"]) > 1e-3
