"""What is wrong gets a named error, and what is unusual but right gets an answer."""

from dataclasses import replace

import pytest
import torch
from analytic import EYE, SCALES, SHAPE, SIZE, box

from latent_directions.core.anchor import AnchoredPrediction, NoiseMove, NoisePaths, moved_noise
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import (
    EverythingRuledOutError,
    NoiseLevelsError,
    NotFiniteError,
    NothingToMoveError,
    ShapeError,
    UnknownNameError,
)
from latent_directions.core.inversion import invert
from latent_directions.core.methods import METHODS
from latent_directions.core.operators import Jacobian
from latent_directions.core.search import Search, Settings
from latent_directions.core.self_check import self_check
from latent_directions.core.svd import partial_svd

X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def low_rank(rank: int) -> Denoiser:
    """A prediction that changes along few directions only; the target prompt adds a constant."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(SIZE, rank, generator=generator, dtype=torch.float64) for _ in range(2))

    def predict(x, sigma, prompt="source", guidance=1.0):
        return (torch.tanh(x.flatten(1) @ a / 5) @ b.T).view_as(x) + 0.1 * (prompt == "target")

    return Denoiser(predict, SCALES["flow"])


@pytest.mark.parametrize("derivatives", ["automatic", "forward only", "central differences"])
@pytest.mark.parametrize("rank", [1, 4])
def test_nothing_is_left_beside_the_null_space(rank, derivatives):
    """Directions out of rounding, with steps of a million, would be worse than none."""
    search = Search(low_rank(rank), X, 0.6, box(), Settings(count=2, derivatives=derivatives))
    with pytest.raises(EverythingRuledOutError, match="ruled out"):
        METHODS["LOCO"].run(search)
    if derivatives == "automatic":
        with pytest.raises(EverythingRuledOutError, match="ruled out"):
            METHODS["T-LOCO"].run(replace(search, notes={}))
    # with less ruled out there is something to find
    if rank == 4:
        assert METHODS["LOCO"].run(replace(search, settings=replace(search.settings, null_rank=1), notes={}))


@pytest.mark.parametrize("method", ["HSDS", "DDS", "T-LOCO"])
def test_words_that_no_move_of_the_latent_brings_about(method):
    """The words change one channel, the latent moves the other: products are zero, and rightly so."""
    one = torch.zeros(SHAPE, dtype=torch.float64)
    one[:, 0] = 1

    def predict(x, sigma, prompt="source", guidance=1.0):
        return one * torch.tanh(x) + (1 - one) * (prompt == "target")

    with pytest.raises(NothingToMoveError):
        METHODS[method].run(Search(Denoiser(predict, SCALES["flow"]), X, 0.6, None, Settings()))


@pytest.mark.parametrize("levels", [[], [0.6, 0.4], [0.1, 0.3, 0.2], [0.0, 0.5]])
def test_noise_levels_that_an_inversion_cannot_walk(model, levels):
    with pytest.raises(NoiseLevelsError):
        invert(model.denoiser, model.x0, levels)


def test_a_level_that_repeats_is_a_step_of_no_length(model):
    """Backward Euler predicts once more there, which is no harm; by Euler's method nothing changes at all."""
    once, twice = (invert(model.denoiser, model.x0, levels, method="euler") for levels in ([0.1, 0.4], [0.1, 0.1, 0.4]))
    assert torch.allclose(once, twice)


def test_a_model_that_predicts_nan_cannot_be_inverted():
    with pytest.raises(NotFiniteError, match="predicts"):
        invert(Denoiser(lambda x, sigma: x * float("nan"), SCALES["eps"]), X, [0.5, 1.0])


def test_names_that_do_not_exist(model):
    with pytest.raises(UnknownNameError, match="'ddim'.*backward euler"):
        invert(model.denoiser, model.x0, [0.1, 0.2], method="ddim")
    with pytest.raises(UnknownNameError, match="'forward-only'.*forward only"):
        Settings(derivatives="forward-only")
    with pytest.raises(UnknownNameError, match="seeds"):
        NoisePaths(X, fresh=True)


def test_a_batch_has_no_jacobian(model):
    batch = model.x.repeat(2, 1, 1, 1)
    with pytest.raises(ShapeError, match="batch of 2"):
        METHODS["DDS"].run(Search(model.denoiser, batch, model.sigma))


def test_a_function_that_is_not_defined_everywhere_can_be_checked():
    """The logarithm exists at x and near it, but not at -x, where the check looks for caches."""

    def logarithm(points):
        if (points <= 0).any():
            msg = "no logarithm"
            raise ValueError(msg)
        return torch.log(points)

    assert self_check(Jacobian(logarithm, 5 + X.abs())).backward


def test_points_of_one_dimension_and_zero():
    for x in (torch.ones(1, 7, dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64)):
        check = self_check(Jacobian(lambda points: torch.sin(points + 0.3), x))
        assert check.backward
        assert torch.allclose(check.jacobian.central_difference(torch.ones_like(x)), torch.cos(x + 0.3), rtol=1e-4)


def test_products_with_parameters_leave_no_graph():
    matrix = torch.nn.Parameter(EYE + 0.1)
    found = partial_svd(lambda v: v @ matrix.T, lambda u: u @ matrix, torch.ones(1, SIZE, dtype=torch.float64), 1)
    assert not any(t.requires_grad for t in (found.left, found.values, found.right))


def test_a_move_at_strength_0_does_not_lift_the_mask_of_another(model):
    paths = NoisePaths(model.denoiser.noise_of(model.x, model.x0, model.sigma))
    displacement = torch.ones(SHAPE[1:], dtype=torch.float64)
    moved = NoiseMove(strength=0.5, displacement=displacement, mask=box())
    still = NoiseMove(strength=0.0, displacement=displacement)
    alone, beside = (
        AnchoredPrediction(model.x0, paths, model.denoiser.noised, moves)(
            model.x + 0.5, model.sigma, model.denoiser.predictions
        )
        for moves in ([moved], [moved, still])
    )
    assert torch.equal(alone, beside)
    assert torch.equal(((alone - model.x0) * (1 - box())).abs().max(), torch.zeros((), dtype=torch.float64))


def test_a_displacement_may_have_the_batch_dimension_of_what_was_found():
    one = NoiseMove(strength=0.5, displacement=torch.ones(SHAPE[1:], dtype=torch.float64))
    assert torch.equal(
        moved_noise(X, [one], 0.6), moved_noise(X, [replace(one, displacement=one.displacement[None])], 0.6)
    )
