"""What else words move: what is kept by itself, what never is, what it costs, and what is said of it."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from families import CORE, Family, sd3
from node_runs import HashingClip, find, invert, loaded, picture, sample

from latent_directions.core.direction import KeepPair, Prompt
from latent_directions.core.search import FoundDirection
from latent_directions.nodes import words
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.manipulate import DirectionSlider


@pytest.fixture(scope="module")
def small():
    test_model = loaded(Family("sd3", sd3))
    return test_model, invert(test_model, method="fresh noise")


def looked(small, candidates="", **changes):
    directions, report = find(*small_parts(small), "text", candidates=candidates, **changes)
    return directions[0], json.loads(report)


def small_parts(small):
    return small[0], small[1].inversion


class TestChoice:
    """Which of the candidates are kept."""

    def chosen(self, *likeness: float, source="a sad person", target="a smiling person", pairs=None):
        pairs = pairs or [(f"word{n}", f"other{n}") for n in range(len(likeness))]
        encoded = [KeepPair(pair[0], Prompt(torch.ones(1, 1, 1)), Prompt(torch.zeros(1, 1, 1))) for pair in pairs]
        rows, kept = words._chosen(encoded, pairs, torch.tensor([likeness]), words._changed_words(source, target))
        return {row["candidate"].split(" |")[0]: row for row in rows}, [pair.name for pair in kept]

    def test_by_likeness(self):
        rows, kept = self.chosen(0.1, 0.3, 0.9, 0.5)
        assert kept == ["word3", "word1"]  # what moves along most first
        assert list(rows) == ["word2", "word3", "word1", "word0"]
        assert rows["word0"]["why"] == words.BELOW
        assert rows["word2"]["why"] == words.TOO_LIKE
        assert rows["word3"]["why"] == words.KEPT

    def test_at_most_some(self):
        likeness = [0.2 + 0.02 * n for n in range(words.MOST_KEPT + 2)]
        rows, kept = self.chosen(*likeness)
        assert kept == [f"word{n}" for n in reversed(range(2, words.MOST_KEPT + 2))]
        assert rows["word0"]["why"] == words.ENOUGH.format(words.MOST_KEPT)

    @pytest.mark.parametrize("pair", [("smiling", "neutral"), ("with a Smiling mouth", "x"), ("happy", "sad")])
    def test_the_words_themselves_never(self, pair):
        rows, kept = self.chosen(0.4, pairs=[pair])
        assert not kept
        assert rows[pair[0]]["why"] == words.SAME_WORDS

    @pytest.mark.parametrize(
        ("source", "target", "kept"),
        [
            ("a person, without hat, sad", "a person, with hat, sad", False),
            ("a person with no hat", "a person with a hat", False),
            ("a person without a red hat", "a person with a red hat", False),
            ("a person", "a person wearing a hat", False),
            ("a sad person with no hat", "a glad person with no hat", True),
            ("a person without glasses and with a hat", "a person with glasses and with a hat", True),
            ("a person without glasses, hat on", "a person with glasses, hat on", True),
        ],
    )
    def test_a_thing_that_is_put_on_or_taken_off_is_the_change_itself(self, source, target, kept):
        for texts in ((source, target), (target, source)):
            for pair in (("with hat", "without hat"), ("with a hat", "with no hat"), ("any hat", "not any hat")):
                _, names = self.chosen(0.4, source=texts[0], target=texts[1], pairs=[pair])
                assert bool(names) is kept

    def test_small_words_are_no_words(self):
        _, kept = self.chosen(0.4, target="a sad person with a hat", pairs=[("with a beard", "without a beard at all")])
        assert kept == ["with a beard"]

    def test_the_most_of_a_batch_counts(self):
        pairs = [("one", "two")]
        encoded = [KeepPair("one", Prompt(torch.ones(1, 1, 1)), Prompt(torch.zeros(1, 1, 1)))]
        rows, kept = words._chosen(encoded, pairs, torch.tensor([[0.05], [0.3]]), set())
        assert len(kept) == 1
        assert rows[0]["likeness_of_each_picture"] == [0.05, 0.3]


def test_what_is_found_is_kept_and_reported(small):
    direction, report = looked(small, "with glasses | with cap\nwith fur | with fur and fur", keep="a hat | a cap")
    rows = {row["candidate"]: row for row in report["what_else_moves"]}
    assert set(rows) == {"with glasses | with cap", "with fur | with fur and fur"}
    kept = [row["candidate"].split(" |")[0] for row in rows.values() if row["kept"]]
    assert [pair.name for pair in direction.keep] == ["a hat", *kept]
    assert all(0 <= row["likeness"] <= 1 for row in rows.values())


def test_it_costs_six_evaluations_a_candidate_once_a_picture():
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model)
    costs = []
    for target, candidates in (("glad", "x | y"), ("glad", "x | y"), ("glad", "x | y\nz | y"), ("old", "x | y\nz | y")):
        _, report = find(test_model, encoded.inversion, "text", target=f"a {target} person", candidates=candidates)
        costs.append(json.loads(report)["model_evaluations"])
    assert costs == [12, 6, 12, 6]


@pytest.mark.parametrize("family", CORE, ids=str)
def test_a_batch_has_a_likeness_for_each_picture(family):
    test_model = loaded(family)
    encoded = invert(test_model, picture(test_model, batch=2), method="fresh noise")
    _, report = find(test_model, encoded.inversion, "text", candidates="with glasses | with cap")
    (row,) = json.loads(report)["what_else_moves"]
    assert len(row["likeness_of_each_picture"]) == 2
    assert row["likeness"] == max(row["likeness_of_each_picture"])
    alone = invert(test_model, {"samples": encoded.latent["samples"][:1]}, method="fresh noise")
    _, report = find(test_model, alone.inversion, "text", candidates="with glasses | with cap")
    assert json.loads(report)["what_else_moves"][0]["likeness"] == pytest.approx(
        row["likeness_of_each_picture"][0], abs=2e-3
    )


@pytest.mark.parametrize("method", ["text", "HSDS", "T-LOCO"])
def test_every_method_with_words_keeps_what_is_found(small, method):
    directions, report = find(*small_parts(small), method, find_keeps="demo portraits", keep="")
    kept = [row["candidate"].split(" |")[0] for row in json.loads(report)["what_else_moves"] if row["kept"]]
    assert [pair.name for pair in directions[0].keep] == kept


def test_without_words_nothing_is_looked_for(small):
    _, report = find(*small_parts(small), "LOCO", find_keeps="people")
    assert "what_else_moves" not in json.loads(report)


class TestNames:
    """What explore calls the moves that it finds."""

    def moves(self, count: int) -> list[FoundDirection]:
        vectors = torch.eye(4).view(4, 1, 2, 2)
        return [
            FoundDirection(vectors[k : k + 1], 1.0, {"place": "upper"}, None, 2 * vectors[k : k + 1])
            for k in range(count)
        ]

    def test_by_the_words_that_are_most_alike(self):
        pairs = [("with hat", "without hat"), ("open", "closed")]
        cosines = torch.tensor([[0.75, 0.1], [-0.9, 0.2], [0.3, -words.NAMING_COSINE - 0.01], [0.1, 0.6]])
        found, names = words.named_by_words(self.moves(4), pairs, cosines)
        assert names == ["direction 1 (upper)", "with hat", "open", "direction 4 (upper)"]
        for move, before, sign in zip(found, self.moves(4), (1, -1, -1, 1), strict=True):
            assert torch.equal(move.vector, sign * before.vector)
            assert torch.equal(move.effect, sign * before.effect)
        assert found[1].notes == {"place": "upper", "words": "with hat | without hat", "cosine_of_words": 0.9}
        assert found[3].notes["words"] == "open | closed"

    def test_without_words(self):
        found, names = words.named_by_words(self.moves(2), [], torch.zeros(2, 0))
        assert names == ["direction 1 (upper)", "direction 2 (upper)"]
        assert found[0].notes == {"place": "upper"}

    def test_two_evaluations_a_pair_once_a_picture(self):
        test_model = loaded(Family("sd3", sd3))
        inversion = invert(test_model, method="fresh noise").inversion

        def found(**changes):
            directions, report = find(test_model, inversion, "explore", **{"source": "", "target": "", **changes})
            return directions, json.loads(report)

        directions, first = found(clip=None, find_keeps="people")
        assert first["model_evaluations"] <= 140
        assert [direction.name for direction in directions] == [
            f"direction {n} ({direction.notes['place']})" for n, direction in enumerate(directions, 1)
        ]
        directions, report = found(candidates="hat | cap\nsmile | frown")
        assert report["model_evaluations"] == 4  # of the words alone
        assert report["products_reused"] is True
        assert all(direction.notes["words"] in ("hat | cap", "smile | frown") for direction in directions)
        for direction, entry in zip(directions, report["found"], strict=True):
            assert 0 <= entry["cosine_of_words"] <= 1
            assert direction.words is None
        assert found(candidates="hat | cap")[1]["model_evaluations"] == 0
        assert found(candidates="hat | cap", source="a person")[1]["model_evaluations"] == 2
        _, report = found(seed=1)
        assert report["model_evaluations"] > 20


def test_explored_directions_act_where_their_effect_is():
    test_model = loaded(Family("sd3", sd3))
    encoded = invert(test_model, method="fresh noise")
    with torch.inference_mode():
        directions, _, _, where = FindDirections.execute(test_model.model, encoded.inversion, "explore", count=3).args
    cells = encoded.latent["samples"].shape[-2:]
    assert len(where) == len(directions) == 3
    for direction in directions:
        assert direction.mask.shape == (1, *cells)
        assert 0 <= float(direction.mask.min()) < float(direction.mask.max()) == 1
    mask = torch.zeros(1, *where.shape[-2:])
    mask[:, : where.shape[-2] // 2] = 1
    with torch.inference_mode():
        directions, _, _, where = FindDirections.execute(
            test_model.model, encoded.inversion, "explore", count=2, mask=mask
        ).args
    moved, positive, noise = DirectionSlider.execute(encoded.inversion, directions, 0, 1.0).args[:3]
    result = sample(test_model, encoded, model=moved, positive=positive, noise=noise)
    half = cells[0] // 2
    change = (result - encoded.latent["samples"]).abs()
    assert float(change[..., half:, :].max()) < 1e-5 < 1e-2 < float(change[..., :half, :].max())


@pytest.mark.parametrize("chosen", [name for name in words.LISTS if name != words.NOTHING])
def test_the_lists_are_pairs_of_two_different_texts(chosen):
    pairs = words.candidates_of(chosen, "")
    assert len(pairs) >= 10
    assert words.candidates_of(chosen, "new | old")[-1] == ("new", "old")
    assert words.candidates_of(chosen, "{} | {}".format(*pairs[0])) == pairs  # each once


def test_the_list_of_the_demo_is_no_oracle():
    """It leaves out a third of what the world's portraits show, and names things that they never show."""
    from latent_directions.demo.measures import named_in
    from latent_directions.demo.world import ATTRIBUTES

    named = [set(named_in(" ".join(pair))) for pair in words.candidates_of("demo portraits", "")]
    assert len(set().union(*named)) <= 2 / 3 * len(ATTRIBUTES)
    assert sum(not names for names in named) >= 3


def test_the_picture_shows_every_candidate(small):
    values = FindDirections.execute(
        small[0].model, small[1].inversion, "text", "a sad person", "a glad person",
        clip=HashingClip(small[0]), find_keeps="people",
    ).args  # fmt: skip
    off = FindDirections.execute(
        small[0].model, small[1].inversion, "text", "a sad person", "a glad person", clip=HashingClip(small[0])
    ).args
    assert values[2].shape[-1] == 3
    assert values[2].shape[1] > off[2].shape[1]


def test_without_matplotlib_directions_are_found_all_the_same(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    direction, report = looked(small, "with a hat | with no hat")
    assert report["what_else_moves"]
    assert "pip install --upgrade matplotlib" in report["remarks"][-1]
    assert direction.words is not None


class TestBadInput:
    @pytest.mark.parametrize("line", ["one", "one | ", "| two", "a | b | c", "same | same"])
    def test_a_line_that_is_no_pair(self, small, line):
        with pytest.raises(InputError, match="Line 2 of 'candidates' is"):
            looked(small, f"with a | with b\n{line}")

    def test_too_many(self, small):
        lines = "\n".join(f"word{n} | other{n}" for n in range(words.MOST_CANDIDATES + 1))
        with pytest.raises(InputError, match="have 101 pairs together, but at most 100 are compared"):
            looked(small, lines)

    @pytest.mark.parametrize("keep", ["a smiling person | a sad person", "a sad person|a smiling person"])
    def test_keep_is_the_change_itself(self, small, keep):
        with pytest.raises(InputError, match="'keep' has the pair .* itself: nothing would be left to move"):
            looked(small, keep=keep)


class TestWhere:
    """The mask that words make for themselves."""

    @pytest.mark.parametrize("family", CORE, ids=str)
    def test_it_is_shown_and_held_at_every_step(self, family):
        test_model = loaded(family)
        encoded = invert(test_model, method="fresh noise")
        with torch.inference_mode():
            (direction,), report, _, where = FindDirections.execute(
                test_model.model, encoded.inversion, "text", "a sad person", "a glad person",
                clip=HashingClip(test_model), where="found",
            ).args  # fmt: skip
        assert json.loads(report)["model_evaluations"] == 2
        height, width = encoded.latent["samples"].shape[-2:]
        assert direction.mask.shape == (1, height, width)
        assert float(direction.mask.min()) == 0
        assert float(direction.mask.max()) == 1
        assert float(((direction.mask > 0) & (direction.mask < 1)).float().mean()) > 0  # not cut to 0 and 1
        pixels = test_model.model.get_model_object("latent_format").spacial_downscale_ratio
        assert where.shape == (1, pixels * height, pixels * width)
        model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
        change = sample(test_model, encoded, model=model, positive=positive, noise=noise) - encoded.latent["samples"]
        untouched = change.abs().amax((0, 1)).reshape(height, width)[direction.mask[0] == 0]
        assert untouched.max() < 1e-5 * encoded.latent["samples"].abs().max()
        assert change.abs().max() > 1e-3

    def test_a_drawn_mask_limits_it(self, small):
        drawn = torch.zeros(1, 64, 64)
        drawn[:, :, :32] = 1
        found, _ = looked(small, where="found")
        both, _ = looked(small, where="found", mask=drawn)
        width = found.mask.shape[-1]
        assert torch.equal(both.mask[..., : width // 2], found.mask[..., : width // 2])
        assert not both.mask[..., width // 2 :].any()

    def test_everywhere(self, small):
        direction, _ = looked(small)
        assert direction.mask is None

    def test_each_picture_of_a_batch_has_its_own(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, picture(test_model, batch=2), method="fresh noise")
        (direction,), _ = find(test_model, encoded.inversion, "text", where="found")
        assert len(direction.mask) == 2
        assert not torch.equal(direction.mask[0], direction.mask[1])
        model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction], 0, 1.0).args
        change = sample(test_model, encoded, model=model, positive=positive, noise=noise) - encoded.latent["samples"]
        for one, mask in zip(change, direction.mask, strict=True):
            assert one.abs().amax(0)[mask == 0].max() < 1e-5 * encoded.latent["samples"].abs().max()

    def test_a_mask_for_another_number_of_pictures_is_refused(self):
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, picture(test_model, batch=3), method="fresh noise")
        (direction,), _ = find(test_model, encoded.inversion, "text")
        two = replace(direction, mask=torch.ones(2, *encoded.latent["samples"].shape[-2:]))
        with pytest.raises(InputError, match="has masks for 2 pictures, but the number of pictures here is 3"):
            DirectionSlider.execute(encoded.inversion, [two], 0, 1.0)


class TestCandidatesAndTheModel:
    def test_another_model_is_asked_anew(self):
        """The cache belongs to the picture; what a LoRA on the MODEL changes must not be answered from it."""
        test_model = loaded(Family("sd3", sd3))
        encoded = invert(test_model, method="fresh noise")
        name, weight = next(
            (n, w) for n, w in test_model.model.model.named_parameters() if w.ndim == 2 and "diffusion" in n
        )
        patched = test_model.model.clone()
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        patched.add_patches({name: (change,)}, 0.5)
        rows = []
        for model in (test_model.model, patched, test_model.model):
            _, report = find(test_model, encoded.inversion, "text", model=model, candidates="x | y")
            rows.append(json.loads(report))
        assert [row["model_evaluations"] for row in rows] == [12, 12, 6]
        likeness = [row["what_else_moves"][0]["likeness"] for row in rows]
        assert likeness[0] == likeness[2] != likeness[1]

    def test_a_target_given_as_a_conditioning_has_no_words_to_compare(self, small):
        test_model, encoded = small
        target = HashingClip(test_model).encode_from_tokens_scheduled(["glad", "person"])
        _, report = find(
            test_model, encoded.inversion, "text", source="a person with glasses", target="",
            target_conditioning=target, candidates="with glasses | with cap",
        )  # fmt: skip
        (row,) = json.loads(report)["what_else_moves"]
        assert row["why"] != words.SAME_WORDS

    def test_a_source_given_as_a_conditioning_is_said_to_be_no_text(self, small):
        test_model, encoded = small
        source = HashingClip(test_model).encode_from_tokens_scheduled(["sad", "person"])
        _, report = find(
            test_model, encoded.inversion, "text", source_conditioning=source, candidates="with glasses | with cap"
        )
        report = json.loads(report)
        assert "what_else_moves" not in report
        assert any("need 'source' as a text" in remark for remark in report["remarks"])


def test_a_method_that_moves_no_words_is_not_asked_where(small):
    test_model, encoded = small
    costs = [
        json.loads(find(test_model, encoded.inversion, "T-LOCO", where=where)[1])["model_evaluations"]
        for where in ("found", "everywhere")
    ]
    assert costs[0] == costs[1]
