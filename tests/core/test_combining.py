"""Directions made into one: sums, and what is left of one when effects of others are held, against dense algebra."""

import pytest
import torch
from analytic import SHAPE, analytic, box, cosine
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_directions.core.combining import added, held
from latent_directions.core.errors import NothingLeftError, NothingToMoveError


def moves(count: int, seed: int = 0, shape: tuple = SHAPE[1:]) -> torch.Tensor:
    """Random unit moves (count, C, H, W)."""
    found = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found / found.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def in_latent(vector: torch.Tensor, others: torch.Tensor, step: float = 2.0):
    return held(vector, step, others, vector, others)


class TestAdded:
    def test_is_the_sum(self):
        a, b = moves(2)
        found = added([2.0 * a, -0.5 * b])
        assert torch.allclose(found.step * found.vector, 2 * a - 0.5 * b, atol=1e-14)
        assert float(found.vector.norm()) == pytest.approx(1.0, abs=1e-12)

    def test_moves_that_cancel(self):
        (a,) = moves(1)
        with pytest.raises(NothingLeftError, match="cancel each other"):
            added([a, -0.999 * a])

    def test_half_precision(self):
        a, b = moves(2)
        found = added([a.half(), b.half()])
        assert found.vector.dtype == torch.float16
        assert torch.allclose(found.vector.double() * found.step, a + b, atol=2e-3)


class TestInTheLatent:
    @given(seed=st.integers(0, 1000), count=st.integers(1, 6))
    @settings(max_examples=20, deadline=None)
    def test_it_is_the_projection_off_the_others(self, seed, count):
        vector, *others = moves(count + 1, seed)
        others = torch.stack(others)
        found = in_latent(vector, others)
        flat = others.flatten(1).T
        expected = vector.flatten() - flat @ torch.linalg.pinv(flat) @ vector.flatten()
        assert torch.allclose(found.vector.flatten(), expected / expected.norm(), atol=1e-4)
        assert found.move_left == pytest.approx(float(expected.norm()), abs=1e-4)
        assert found.effect_left == pytest.approx(found.move_left, abs=1e-9)
        assert found.step == pytest.approx(2.0, rel=1e-9)
        assert found.before == pytest.approx([cosine(vector, other) for other in others], abs=1e-9)
        assert max(map(abs, found.after)) < 1e-3
        again = in_latent(found.vector, others)
        assert torch.allclose(again.vector, found.vector, atol=1e-4)

    def test_others_that_are_equal_or_zero_count_once_or_not_at_all(self):
        vector, other = moves(2)
        once = in_latent(vector, other[None])
        for others in ([other, other], [other, 3 * other, -other], [other, 0 * other], [other, other + 1e-9 * vector]):
            found = in_latent(vector, torch.stack(others))
            assert torch.allclose(found.vector, once.vector, atol=1e-5)

    def test_nothing_is_left_of_what_the_others_span(self):
        a, b = moves(2)
        vector = (a - 2 * b) / (a - 2 * b).norm()
        with pytest.raises(NothingLeftError, match="all that it changes is what the others change too"):
            in_latent(vector, torch.stack([a, b]))


class TestByEffect:
    """With the exact Jacobian of a mixture of Gaussians."""

    @pytest.fixture
    def case(self, model):
        jacobian = model.jacobian()
        vector, *others = moves(4, 5)
        others = torch.stack(others)

        def effects(these):
            return (these.flatten(1) @ jacobian.T).view_as(these)

        return jacobian, vector, others, effects(vector[None])[0], effects(others)

    @pytest.mark.parametrize("mask", [None, box()[0], 0.3 + 0.7 * box()[0]])
    def test_the_effect_is_orthogonal_to_what_the_others_change(self, case, mask):
        jacobian, vector, others, effect, effects = case
        found = held(vector, 2.0, others, effect, effects, mask)
        weights = torch.ones(SHAPE[1:], dtype=torch.float64) if mask is None else mask.expand(SHAPE[1:])
        new = (jacobian @ found.vector.flatten()).view(SHAPE[1:])
        for before, after, of_other in zip(found.before, found.after, effects, strict=True):
            assert abs(cosine(weights * new, weights * of_other)) < 1e-4
            assert abs(after) < 1e-4
            assert before == pytest.approx(cosine(weights * effect, weights * of_other), abs=1e-9)
        # dense least squares
        w = (weights * effects).flatten(1).T
        c = torch.linalg.lstsq(w, (weights * effect).flatten()).solution
        expected = vector - torch.einsum("i,i...->...", c, others)
        assert torch.allclose(found.vector, expected / expected.norm(), atol=1e-4)
        assert found.effect_left == pytest.approx(
            float(((weights * effect).flatten() - w @ c).norm() / (weights * effect).norm()), abs=1e-4
        )
        # strength 1 changes the prediction by as much as before
        assert found.step * float((weights * new).norm()) == pytest.approx(
            2 * float((weights * effect).norm()), rel=1e-4
        )

    def test_the_prediction_itself_holds_it_to_first_order(self):
        """The exact change of D along the others' effects falls with the square of the step."""
        model = analytic("flow")
        jacobian = model.jacobian()
        vector, other = moves(2, 7)
        effects = [(jacobian @ one.flatten()).view(SHAPE[1:]) for one in (vector, other)]
        found = held(vector, 1.0, other[None], effects[0], effects[1][None])
        along = effects[1] / effects[1].norm()

        def changed(move, step):
            return float(((model.denoiser(model.x + step * move[None], model.sigma) - model.exact())[0] * along).sum())

        assert abs(changed(found.vector, 0.02)) < 0.05 * abs(changed(vector, 0.02))
        assert abs(changed(found.vector, 0.01)) < 0.35 * abs(changed(found.vector, 0.02))

    def test_projecting_in_the_latent_does_not_hold_it(self, case):
        jacobian, vector, others, effect, effects = case
        only_moves = in_latent(vector, others)
        new = (jacobian @ only_moves.vector.flatten()).view(SHAPE[1:])
        assert max(abs(cosine(new, of_other)) for of_other in effects) > 0.05

    def test_the_same_effect_by_another_move_leaves_nothing(self, case):
        _, vector, others, effect, effects = case
        with pytest.raises(NothingLeftError, match="only 0.0% of its effect remains"):
            held(vector, 1.0, others[:1], effect, -2 * effect[None])

    def test_a_move_without_an_effect_where_it_acts(self, case):
        _, vector, others, effect, effects = case
        with pytest.raises(NothingToMoveError, match="changes nothing where it acts"):
            held(vector, 1.0, others, 0 * effect, effects)

    def test_others_that_do_nothing_where_it_acts_take_nothing_away(self, case):
        _, vector, others, effect, effects = case
        mask = box()[0]
        found = held(vector, 1.0, others, effect, (1 - mask) * effects, mask)
        assert torch.allclose(found.vector, vector, atol=1e-12)
        assert found.step == pytest.approx(1.0)

    def test_five_dimensions_and_half_precision(self, case):
        _, vector, others, effect, effects = case
        parts = [one.unsqueeze(-3).half() for one in (vector, others, effect, effects)]
        found = held(parts[0], 2.0, parts[1], parts[2], parts[3], box()[0])
        whole = held(vector, 2.0, others, effect, effects, box()[0])
        assert found.vector.shape == parts[0].shape
        assert found.vector.dtype == torch.float16
        assert torch.allclose(found.vector.squeeze(-3).double(), whole.vector, atol=0.02)
