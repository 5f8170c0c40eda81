"""The table of methods: what each record says is what its method does."""

import math
from dataclasses import fields

import pytest
import torch
from analytic import SHAPE, analytic, box, cosine

from latent_directions.core.denoiser import Denoiser, Features
from latent_directions.core.errors import EqualPredictionsError, NothingInsideError
from latent_directions.core.methods import METHODS, names_of_methods_that_read
from latent_directions.core.search import DERIVATIVES, GUIDED, PROJECT_AFTER, Search, Settings

SEARCHES = [name for name, method in METHODS.items() if method.run is not None]
COMPARING = [name for name in SEARCHES if METHODS[name].compares_words]
# another value for each setting, with which a method that reads it must come to something else
CHANGED = {
    "count": 2,
    "null_rank": 2,
    "keep": 1,
    "guidance": 2.0,
    "damping": 0.3,
    "max_pairs": 2,
    "seed": 1,
    "words_source": "free",
    "derivatives": "central differences",
    "guided": True,
    "projection": PROJECT_AFTER,
    "path": GUIDED,
    "path_steps": 3,
    "path_delta": 3.0,
    "path_gamma": 0.3,
}
# what a setting has an effect beside
BESIDE = {
    "guided": {"guidance": 2.0},
    "guidance": {"guided": True},
    **dict.fromkeys(("path_steps", "path_delta", "path_gamma"), {"path": GUIDED}),
}
# what a record may name beside the fields of Settings
FURTHER = {"mask", "decode", "features", "free"}


def outcome(search: Search, name: str) -> tuple:
    """All that a method found and reports."""
    moves = METHODS[name].run(search)
    return [(move.vector.tolist(), move.step, move.notes) for move in moves], search.notes


class TestTable:
    def test_names_are_keys_and_unique(self):
        assert [method.name for method in METHODS.values()] == list(METHODS)
        assert len({method.summary for method in METHODS.values()}) == len(METHODS) == 8

    @pytest.mark.parametrize("name", METHODS)
    def test_reads_names_what_there_is(self, name):
        known = {field.name for field in fields(Settings)} | FURTHER
        assert set(METHODS[name].reads) <= known
        assert len(set(METHODS[name].reads)) == len(METHODS[name].reads)

    def test_every_setting_is_read_by_some_method(self):
        read = {setting for method in METHODS.values() for setting in method.reads}
        assert read == {field.name for field in fields(Settings)} | FURTHER

    def test_changed_has_another_value_for_every_setting(self):
        assert set(CHANGED) == {field.name for field in fields(Settings)}
        assert not [name for name, value in CHANGED.items() if getattr(Settings(), name) == value]

    def test_names_of_methods_that_read_a_setting(self):
        assert names_of_methods_that_read("null_rank") == "T-LOCO, LOCO and explore"
        assert names_of_methods_that_read("count") == "LOCO, explore and pullback"
        assert names_of_methods_that_read("keep") == "HSDS, DDS and HSDS low-pass"

    def test_the_method_without_a_search(self):
        assert METHODS["text"].run is None
        assert METHODS["text"].evaluations(Settings(), True) == 0
        assert METHODS["text"].moves_words


class TestReads:
    """A setting that a method does not read changes nothing, to the last bit; one that it reads changes something."""

    @pytest.mark.parametrize("name", SEARCHES)
    @pytest.mark.parametrize("setting", CHANGED)
    def test_settings(self, name, setting):
        model = analytic()
        beside = BESIDE.get(setting, {})
        usual = outcome(model.search(box(), **beside), name)
        other = outcome(model.search(box(), **beside, **{setting: CHANGED[setting]}), name)
        assert (usual != other) == (setting in METHODS[name].reads)

    @pytest.mark.parametrize("name", SEARCHES)
    def test_mask(self, name):
        model = analytic()
        usual, masked = (outcome(model.search(mask), name)[0] for mask in (None, box()))
        assert (usual != masked) == ("mask" in METHODS[name].reads)

    @pytest.mark.parametrize("name", SEARCHES)
    @pytest.mark.parametrize("keep", [0, 1])
    def test_prompts(self, name, keep):
        """Nothing is asked for under a prompt that the record does not name."""
        model, asked = analytic(), set()

        def predict(x, sigma, prompt="source", guidance=1.0):
            asked.add(prompt)
            return model.denoiser(x, sigma, prompt, guidance)

        def read(x, sigma, prompt):
            asked.add(prompt)
            return model.denoiser.features.read(x, sigma, prompt)

        method = METHODS[name]
        denoiser = Denoiser(predict, model.denoiser.scale, features=Features(read, "planted"))
        search = Search(denoiser, model.x, model.sigma, None, Settings(keep=keep))
        method.run(search)
        expected = {"source"}
        expected |= {"target"} if method.compares_words else set()
        expected |= {"free"} if "free" in method.reads else set()
        expected |= {"keep 0 present", "keep 0 absent"} if keep and "keep" in method.reads else set()
        assert asked == expected

    @pytest.mark.parametrize("name", SEARCHES)
    def test_features(self, name):
        """They are read by no method whose record does not name them."""
        model, reads = analytic(), []

        def read(x, sigma, prompt):
            reads.append(prompt)
            return model.denoiser.features.read(x, sigma, prompt)

        denoiser = Denoiser(model.denoiser.predict, model.denoiser.scale, features=Features(read, "planted"))
        METHODS[name].run(Search(denoiser, model.x, model.sigma, box(), Settings()))
        assert bool(reads) == ("features" in METHODS[name].reads)


class TestRuns:
    @pytest.mark.parametrize("name", SEARCHES)
    @pytest.mark.parametrize("derivatives", DERIVATIVES)
    def test_every_method_in_every_mode(self, model, mask, name, derivatives):
        settings = {"count": 2, "null_rank": 2, "keep": 1, "derivatives": derivatives}
        search = model.search(mask, **settings)
        moves = METHODS[name].run(search)
        assert len(moves) == (2 if METHODS[name].finds_several else 1)
        for move in moves:
            assert move.vector.shape == SHAPE
            assert float(move.vector.norm()) == pytest.approx(1)
            assert move.step > 0
        assert search.notes["self_check"]["mode"] == search.settings.mode

    @pytest.mark.parametrize("name", SEARCHES)
    def test_modes_agree(self, model, name):
        found, *others = (METHODS[name].run(model.search(max_pairs=24, derivatives=d))[0] for d in DERIVATIVES)
        for other in others:
            assert cosine(found.vector, other.vector) > 0.98
            assert other.step == pytest.approx(found.step, rel=0.1)

    @pytest.mark.parametrize("name", SEARCHES)
    @pytest.mark.parametrize("derivatives", DERIVATIVES)
    @pytest.mark.parametrize(("guidance", "guided"), [(1.0, False), (3.0, False), (3.0, True)])
    def test_evaluations_are_near_what_it_takes(self, model, mask, name, derivatives, guidance, guided):
        search = model.search(mask, derivatives=derivatives, guidance=guidance, guided=guided, keep=1)
        METHODS[name].run(search)
        ratio = METHODS[name].evaluations(search.settings, mask is not None) / model.denoiser.counter.evaluations
        assert abs(math.log(ratio)) < math.log(3)

    @pytest.mark.parametrize("name", COMPARING)
    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_words_that_change_nothing_inside_the_mask(self, model, name, derivatives):
        mask = box()

        def predict(x, sigma, prompt="source", guidance=1.0):
            inside, outside = (model.denoiser(x, sigma, p, guidance) for p in ("source", prompt))
            return torch.where(mask > 0, inside, outside)

        denoiser = Denoiser(predict, model.denoiser.scale)
        search = Search(denoiser, model.x, model.sigma, mask, Settings(derivatives=derivatives))
        with pytest.raises(NothingInsideError, match="only outside the mask"):
            METHODS[name].run(search)

    @pytest.mark.parametrize("name", COMPARING)
    def test_a_target_that_says_the_same(self, model, name):
        model.prompts["target"] = model.prompts["source"]
        with pytest.raises(EqualPredictionsError, match="no direction between them"):
            METHODS[name].run(model.search())

    @pytest.mark.parametrize("name", SEARCHES)
    def test_the_same_seed_finds_the_same(self, model, name):
        first, again = (outcome(model.search(box(), seed=3), name) for _ in range(2))
        assert first == again
