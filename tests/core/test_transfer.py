"""A move on another grid of cells, and what is measured of it at a picture, against an exact Jacobian."""

import pytest
import torch
from analytic import SHAPE, analytic, box
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_directions.core.errors import CutOffError, NothingToMoveError
from latent_directions.core.exploration import FARTHEST
from latent_directions.core.search import CHANGE
from latent_directions.core.transfer import (
    BADLY,
    PARTLY,
    WELL,
    Measured,
    measure_move,
    resampled,
    resampled_move,
)

SIDES = st.integers(1, 12)


def unit(seed: int = 0, shape: tuple = SHAPE) -> torch.Tensor:
    move = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return move / move.norm()


class TestResampled:
    @given(before=st.tuples(SIDES, SIDES), after=st.tuples(SIDES, SIDES), value=st.floats(0, 1, width=16))
    @settings(max_examples=40, deadline=None)
    def test_a_constant_stays_what_it_is(self, before, after, value):
        found = resampled(torch.full((2, *before), value), after)
        assert found.shape == (2, *after)
        assert torch.allclose(found, torch.full_like(found, value), atol=1e-5)

    def test_the_same_size_is_the_same_tensor(self):
        cells = torch.randn(2, 5, 7)
        assert resampled(cells, (5, 7)) is cells

    def test_shapes_keep_their_proportions_and_their_place(self):
        """A square in the middle is a square in the middle of a wide picture, whose upper and lower part was cut."""
        cells = torch.zeros(1, 16, 16)
        cells[:, 6:10, 6:10] = 1
        found = resampled(cells, (16, 32))[0]
        rows, columns = (found > 0.5).any(1).nonzero().flatten(), (found > 0.5).any(0).nonzero().flatten()
        assert (int(rows[0]), int(rows[-1])) == (4, 11)
        assert (int(columns[0]), int(columns[-1])) == (12, 19)

    def test_what_is_cut_off(self):
        cells = torch.zeros(1, 16, 16)
        cells[:, 0] = 1
        assert not resampled(cells, (4, 16)).any()

    def test_twice_the_size_and_back(self):
        smooth = torch.linspace(0, 1, 8).view(1, 8, 1).expand(1, 8, 8)
        assert torch.allclose(resampled(resampled(smooth, (16, 16)), (8, 8)), smooth, atol=0.05)

    def test_an_axis_of_time_and_half_precision(self):
        cells = torch.randn(4, 1, 8, 8).half()
        found = resampled(cells, (12, 10))
        assert found.shape == (4, 1, 12, 10)
        assert found.dtype == torch.float16

    @given(before=st.tuples(SIDES, SIDES), after=st.tuples(SIDES, SIDES))
    @settings(max_examples=40, deadline=None)
    def test_a_move_is_as_long_in_each_cell(self, before, after):
        vector = unit(3, (4, *before))
        found, step = resampled_move(vector, 2.0, after)
        assert float(found.norm()) == pytest.approx(1.0, abs=1e-5)
        rms = [s * float(v.square().mean().sqrt()) for v, s in ((vector, 2.0), (found, step))]
        assert rms[0] == pytest.approx(rms[1], rel=1e-5)

    def test_a_move_of_which_nothing_is_left(self):
        vector = torch.zeros(2, 16, 16)
        vector[:, 0] = 0.25
        with pytest.raises(CutOffError, match="Nothing of the move is left at this picture"):
            resampled_move(vector / vector.norm(), 1.0, (4, 16))


class TestMeasured:
    def measure(self, model, move, mask=None, step=0.1, change=CHANGE):
        with model.search().checked(backward=False) as check:
            before = model.denoiser.counter.evaluations
            found = measure_move(model.denoiser, check, model.sigma, move, step, mask, change=change)
            assert model.denoiser.counter.evaluations - before == 3
        return found, check.probe

    @pytest.mark.parametrize("mask", [None, box(), 0.2 + 0.8 * box()])
    def test_against_the_exact_jacobian(self, model, mask):
        move = unit(2)
        effect = (model.jacobian() @ move.flatten()).view(SHAPE)
        weights = torch.ones(SHAPE, dtype=torch.float64) if mask is None else mask.expand(SHAPE)
        rms = float(((weights * effect.square()).sum() / weights.sum()).sqrt())
        deviation = float(model.exact().std())
        found, probe = self.measure(model, move, mask)
        longest = max(0.1, FARTHEST * model.b * 24**0.5)
        assert found.step == pytest.approx(min(CHANGE * deviation / rms, longest), rel=1e-6)
        assert found.bounded == (CHANGE * deviation / rms > longest)
        assert found.change == pytest.approx(found.step * rms / deviation, rel=1e-6)
        assert found.change_before == pytest.approx(0.1 * rms / deviation, rel=1e-6)
        assert found.kept == pytest.approx(found.change_before / CHANGE)
        random = (model.jacobian() @ probe.vector.flatten()).view(SHAPE) / probe.vector.norm()
        assert found.strength == pytest.approx(float((weights * effect).norm() / (weights * random).norm()), rel=1e-6)
        change = model.denoiser(model.x + found.step * move, model.sigma) - model.exact()
        expected = float((change - found.step * effect).norm() / (found.step * effect).norm())
        assert found.nonlinearity == pytest.approx(expected, rel=1e-6)
        if mask is None:
            assert found.share_inside is None
            assert found.area is None
        else:
            assert found.share_inside == pytest.approx(float((weights * effect).square().sum() / effect.square().sum()))
            assert found.area == pytest.approx(float(mask.square().mean()))

    def test_the_step_may_be_kept(self):
        found, _ = self.measure(analytic("flow"), unit(2), step=5.0, change=None)
        assert found.step == 5.0
        assert found.change == found.change_before
        assert not found.bounded
        assert found.kept is None

    def test_a_long_step_may_stay_long(self):
        """The bound is for steps that would have to grow."""
        model = analytic("flow")
        found, _ = self.measure(model, unit(2), step=100.0)
        assert found.change == pytest.approx(CHANGE, rel=1e-6)
        assert not found.bounded

    def test_a_move_without_an_effect(self):
        with pytest.raises(NothingToMoveError, match="does not change the model's prediction of this picture"):
            self.measure(analytic("flow"), unit(2), 0 * box())


def measured(**changes) -> Measured:
    usual = {"step": 1.0, "step_before": 1.0, "strength": 3.0, "share_inside": None, "area": None, "nonlinearity": 0.1}
    return Measured(**{**usual, "change_before": 0.2, "change": 0.25, "wanted": 0.25, **changes})


@pytest.mark.parametrize(
    ("changes", "carries"),
    [
        ({}, WELL),
        ({"strength": 1.4}, BADLY),
        ({"nonlinearity": 1.5}, BADLY),
        ({"share_inside": 0.1, "area": 0.2}, BADLY),
        ({"share_inside": 0.6, "area": 0.2}, WELL),
        ({"strength": 1.8}, PARTLY),
        ({"change_before": 0.1}, PARTLY),
        ({"change_before": 0.1, "wanted": None}, WELL),
        ({"nonlinearity": 0.8}, PARTLY),
    ],
)
def test_how_well_it_carries(changes, carries):
    assert measured(**changes).carries == carries
