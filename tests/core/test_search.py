"""What all methods share: settings, the checked Jacobian, the report, and what a found move must be."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from analytic import SHAPE, analytic, box
from planted import Identity

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import EqualPredictionsError, NotFiniteError, NothingInsideError, NothingToMoveError
from latent_directions.core.methods import METHODS
from latent_directions.core.operators import DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD
from latent_directions.core.search import (
    DERIVATIVES,
    FoundDirection,
    Search,
    Settings,
    check_evaluations,
    inside,
    keep_prompts,
    matching_step,
    pairs_evaluations,
    words_difference,
    words_evaluations,
)


def unit() -> torch.Tensor:
    return torch.ones(SHAPE, dtype=torch.float64) / 24**0.5


class TestSettings:
    @pytest.mark.parametrize(
        ("derivatives", "mode", "backward"),
        [
            ("automatic", FORWARD_AD, True),
            ("forward only", FORWARD_AD, False),
            ("central differences", DIFFERENCES, False),
            ("double backward", DOUBLE_BACKWARD, True),
        ],
    )
    def test_what_derivatives_mean(self, derivatives, mode, backward):
        settings = Settings(derivatives=derivatives)
        assert (settings.mode, settings.backward) == (mode, backward)

    def test_are_frozen(self):
        with pytest.raises(FrozenInstanceError):
            Settings().count = 2

    def test_names_of_keep_prompts(self):
        assert keep_prompts(3) == ("keep 3 present", "keep 3 absent")


class TestFoundDirection:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_numbers(self, value):
        vector = unit()
        with pytest.raises(NotFiniteError, match="not numbers"):
            FoundDirection(vector, value, {})
        vector[0, 1, 2, 3] = value
        with pytest.raises(NotFiniteError, match="not numbers"):
            FoundDirection(vector, 1.0, {})

    @pytest.mark.parametrize("step", [0.0, -1.0])
    def test_a_step_that_moves_nothing(self, step):
        with pytest.raises(NothingToMoveError, match="no measurable effect"):
            FoundDirection(unit(), step, {})

    def test_is_frozen(self):
        move = FoundDirection(unit(), 2.0, {"singular_value": 3.0})
        assert (move.step, move.notes) == (2.0, {"singular_value": 3.0})
        with pytest.raises(FrozenInstanceError):
            move.step = 1.0


class TestJacobian:
    @pytest.mark.parametrize("derivatives", DERIVATIVES)
    @pytest.mark.parametrize("prompt", ["source", "target"])
    def test_is_that_of_the_prompt_in_the_mode_of_the_settings(self, model, derivatives, prompt):
        search = model.search(derivatives=derivatives)
        jacobian = search.jacobian(prompt)
        assert jacobian.mode == search.settings.mode
        exact = model.jacobian(prompt) @ model.x.flatten()
        assert (jacobian.matvec(model.x).flatten() - exact).norm() < 2e-2 * exact.norm()
        assert torch.allclose(jacobian.value, model.exact(prompt))

    def test_like_another(self, model):
        """In the mode and with the step of an operator that has been checked under another prompt."""
        search = model.search()
        checked = model.operator(mode=DOUBLE_BACKWARD, difference_step=0.02)
        other = search.jacobian("free", like=checked)
        assert (other.mode, other.difference_step) == (DOUBLE_BACKWARD, 0.02)
        assert torch.allclose(other.matvec(model.x).flatten(), model.jacobian("free") @ model.x.flatten())
        assert torch.allclose(checked.value, model.exact("source"))  # they share nothing


class TestChecked:
    def test_the_report_tells_of_it(self, model):
        search = model.search()
        with search.checked(backward=True) as check, search.checked(backward=False, prompt="free", note="free") as free:
            assert torch.allclose(check.jacobian.value, model.exact())
            assert torch.allclose(free.jacobian.value, model.exact("free"))
            assert search.notes == {"self_check": check.report(), "free": free.report()}
        assert search.notes["self_check"]["backward"]
        assert not search.notes["free"]["backward"]

    @pytest.mark.parametrize("failing", [False, True])
    def test_graphs_are_freed_at_the_end(self, model, failing):
        search = model.search()
        with pytest.raises(KeyError) if failing else torch.enable_grad(), search.checked(backward=True) as check:
            check.jacobian.rmatvec(model.x)
            if failing:
                raise KeyError
        before = model.denoiser.counter.evaluations
        check.jacobian.rmatvec(model.x)
        assert model.denoiser.counter.evaluations - before == 3  # built again

    def test_the_mode_that_passed(self, model):
        def predict(x, sigma):
            return Identity.apply(model.denoiser(x, sigma), 0.9, 1.0)

        search = replace(model.search(), denoiser=Denoiser(predict, model.denoiser.scale))
        with search.checked(backward=True) as check:
            assert check.jacobian.mode == DOUBLE_BACKWARD
        assert search.notes["self_check"]["mode"] == DOUBLE_BACKWARD

    def test_searches_do_not_share_notes(self, model):
        first, second = (Search(model.denoiser, model.x, model.sigma) for _ in range(2))
        with first.checked(backward=False):
            assert second.notes == {}


class TestWordsDifference:
    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_in_x0_units(self, model, guidance):
        found = words_difference(model.search(guidance=guidance), model.exact())
        assert torch.allclose(found, guidance * (model.exact("target") - model.exact("source")))

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    @pytest.mark.parametrize("wrong", ["target", "keep 0 absent"])
    def test_a_prediction_that_is_not_a_number(self, model, wrong, guidance):
        """It is neither an equal prediction nor a search that ends in nothing."""

        def predict(x, sigma, prompt="source", guidance=1.0):
            value = model.denoiser(x, sigma, prompt, guidance)
            return value * float("nan") if prompt == wrong else value

        said = "the prompt 'target' holds" if wrong == "target" else "the second prompt of kept pair 1 holds"
        for method in METHODS.values():
            if method.run is None or not method.compares_words or (wrong != "target" and "keep" not in method.reads):
                continue
            search = replace(model.search(guidance=guidance, keep=1), denoiser=Denoiser(predict, model.denoiser.scale))
            with pytest.raises(NotFiniteError, match=said):
                method.run(search)

    def test_without_guidance_the_known_prediction_is_used(self, model):
        counter = model.denoiser.counter
        words_difference(model.search(), model.exact())
        assert counter.evaluations == 1
        words_difference(model.search(guidance=3.0), model.exact())
        assert counter.evaluations == 1 + 4

    def test_none(self, model):
        model.prompts["target"] = model.prompts["source"]
        with pytest.raises(EqualPredictionsError, match="no direction between them"):
            words_difference(model.search(), model.denoiser(model.x, model.sigma))

    def test_inside_a_mask(self):
        q = torch.arange(24.0, dtype=torch.float64).view(SHAPE)
        assert torch.equal(inside(q, box()), box() * q)
        assert inside(q, None) is q
        with pytest.raises(NothingInsideError, match="only outside the mask"):
            inside((1 - box()) * q, box())

    def test_matching_step(self):
        q, image = box() * unit(), torch.ones(SHAPE, dtype=torch.float64)
        assert matching_step(image, q, None) == pytest.approx(float(q.norm()) / 24**0.5)
        assert matching_step(image, q, box()) == pytest.approx(1 / 24**0.5)
        with pytest.raises(NothingInsideError, match="only outside the mask"):
            matching_step(1 - box().expand(SHAPE), q, box())


class TestExpectedEvaluations:
    """The parts that a progress bar adds up."""

    @pytest.mark.parametrize("derivatives", DERIVATIVES)
    @pytest.mark.parametrize("backward", [True, False])
    def test_of_the_self_check(self, derivatives, backward):
        search = analytic().search(derivatives=derivatives)
        with search.checked(backward=backward) as check:
            assert check_evaluations(search.settings, backward) == pytest.approx(check.evaluations, abs=2)

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    @pytest.mark.parametrize("keep", [0, 1])
    def test_of_the_differences_between_prompts(self, guidance, keep):
        model = analytic()
        search = model.search(guidance=guidance, keep=keep)
        value = model.exact()
        words_difference(search, value)
        for number in range(keep):
            for prompt in keep_prompts(number):
                model.denoiser(model.x, model.sigma, prompt, guidance)
        assert words_evaluations(search.settings) == model.denoiser.counter.evaluations

    def test_of_singular_vectors(self):
        """Four a pair, more pairs for more vectors, and no more than a search takes."""
        assert pairs_evaluations(0) == 0
        assert pairs_evaluations(1) == 28
        assert 28 < pairs_evaluations(5) < 100
        assert pairs_evaluations(1000) == 240
