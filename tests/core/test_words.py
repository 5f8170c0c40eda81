"""What else words move: cosines against float64 formulas, what they cost, and what is refused."""

import pytest
import torch
from analytic import SHAPE, analytic

from latent_directions.core.anchor import ReferenceCache
from latent_directions.core.errors import EqualPredictionsError, NotFiniteError
from latent_directions.core.inversion import seeded_noise
from latent_directions.core.words import Level, cosines_along_words

WORDS = ("target", "source")
CANDIDATES = [("keep 0 present", "keep 0 absent"), ("free", "negative"), WORDS, ("source", "target")]


def levels_of(model, batch: int = 1) -> list[Level]:
    x0 = torch.cat([model.x0 + 0.2 * k for k in range(batch)])
    return [
        Level(share * model.sigma, model.denoiser.noised(x0, seeded_noise(x0, 3), share * model.sigma))
        for share in (0.3, 0.7, 1.0)
    ]


def test_is_the_mean_of_the_cosines_for_each_picture(model):
    levels = levels_of(model, batch=2)
    found = cosines_along_words(model.denoiser, levels, WORDS, CANDIDATES, ReferenceCache())
    assert found.shape == (2, 4)
    for picture in (0, 1):
        for number, (present, absent) in enumerate(CANDIDATES):
            cosines = []
            for level in levels:
                x = level.x[picture : picture + 1]
                q, p = (
                    model.denoiser(x, level.sigma, a) - model.denoiser(x, level.sigma, b)
                    for a, b in (WORDS, (present, absent))
                )
                cosines.append(abs(float((q * p).sum() / (q.norm() * p.norm()))))
            assert float(found[picture, number]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-10)
    assert torch.allclose(found[:, 2], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(found[:, 3], torch.ones(2, dtype=torch.float64))  # of whatever sign


def test_candidates_are_asked_for_once_a_picture():
    model, cache = analytic("flow"), ReferenceCache()
    levels = levels_of(model)

    def cost(words, candidates):
        before = model.denoiser.counter.evaluations
        cosines_along_words(model.denoiser, levels, words, candidates, cache)
        return model.denoiser.counter.evaluations - before

    assert cost(WORDS, CANDIDATES[:2]) == 3 * (2 + 2 * 2)
    assert cost(WORDS, CANDIDATES[:2]) == 3 * 2
    assert cost(("free", "source"), CANDIDATES[:3]) == 3 * (2 + 2)  # other words; one candidate is new


def test_words_that_change_nothing():
    model = analytic("flow")
    with pytest.raises(EqualPredictionsError):
        cosines_along_words(model.denoiser, levels_of(model), ("source", "source"), CANDIDATES, ReferenceCache())


def test_predictions_that_are_not_numbers():
    model = analytic("flow")
    level = Level(model.sigma, torch.full(SHAPE, float("nan"), dtype=torch.float64))
    with pytest.raises(NotFiniteError, match="not numbers"):
        cosines_along_words(model.denoiser, [level], WORDS, CANDIDATES, ReferenceCache())
