"""What words change, what else they move and where: against float64 formulas, what it costs, and what is refused."""

import pytest
import torch
from analytic import SHAPE, analytic, cosine

from latent_directions.core.anchor import ReferenceCache
from latent_directions.core.errors import EqualPredictionsError, NotFiniteError
from latent_directions.core.inversion import seeded_noise
from latent_directions.core.words import PathPoint, WordsChange, likeness_of_effects

WORDS = ("target", "source")
CANDIDATES = [("keep 0 present", "keep 0 absent"), ("free", "negative"), WORDS, ("source", "target")]


def points_of(model, batch: int = 1) -> list[PathPoint]:
    x0 = torch.cat([model.x0 + 0.2 * k for k in range(batch)])
    return [
        PathPoint(share * model.sigma, model.denoiser.noised(x0, seeded_noise(x0, 3), share * model.sigma))
        for share in (0.3, 0.7, 1.0)
    ]


def test_likeness_is_the_mean_of_the_cosines_for_each_picture(model):
    points = points_of(model, batch=2)
    found = WordsChange(model.denoiser, points, WORDS).likeness(CANDIDATES, ReferenceCache())
    assert found.shape == (2, 4)
    for picture in (0, 1):
        for number, (present, absent) in enumerate(CANDIDATES):
            cosines = []
            for point in points:
                x = point.x[picture : picture + 1]
                q, p = (
                    model.denoiser(x, point.sigma, a) - model.denoiser(x, point.sigma, b)
                    for a, b in (WORDS, (present, absent))
                )
                cosines.append(abs(float((q * p).sum() / (q.norm() * p.norm()))))
            assert float(found[picture, number]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-10)
    assert torch.allclose(found[:, 2:], torch.ones(2, 2, dtype=torch.float64))  # of whatever sign


def test_candidates_are_asked_for_once_a_picture():
    model, cache = analytic("flow"), ReferenceCache()
    points = points_of(model)

    def cost(words, candidates):
        before = model.denoiser.counter.evaluations
        WordsChange(model.denoiser, points, words).likeness(candidates, cache)
        return model.denoiser.counter.evaluations - before

    assert cost(WORDS, CANDIDATES[:2]) == 3 * (2 + 2 * 2)
    assert cost(WORDS, CANDIDATES[:2]) == 3 * 2
    assert cost(("free", "source"), CANDIDATES[:3]) == 3 * (2 + 2)  # other words; one candidate is new


def test_likeness_of_effects_is_the_cosine_with_its_sign(model):
    point, cache = PathPoint(model.sigma, model.x), ReferenceCache()
    effects = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    effects[1] = 2 * (model.exact("source") - model.exact("target"))[0]
    before = model.denoiser.counter.evaluations
    found = likeness_of_effects(model.denoiser, point, effects, [WORDS, *CANDIDATES], cache)
    assert model.denoiser.counter.evaluations == before + 2 * 4  # WORDS are there twice
    assert found.shape == (3, 5)
    for row, effect in zip(found, effects, strict=True):
        for value, (present, absent) in zip(row, [WORDS, *CANDIDATES], strict=True):
            assert float(value) == pytest.approx(cosine(effect, model.exact(present) - model.exact(absent)))
    assert float(found[1, 0]) == pytest.approx(-1)
    likeness_of_effects(model.denoiser, point, effects, CANDIDATES, cache)
    assert model.denoiser.counter.evaluations == before + 2 * 4
    same = likeness_of_effects(model.denoiser, point, effects, [("source", "source")], cache)
    assert torch.equal(same, torch.zeros(3, 1, dtype=torch.float64))


def test_the_mask_is_the_smoothed_change_of_each_picture(model):
    points = points_of(model, batch=2)
    found = WordsChange(model.denoiser, points, WORDS).mask()
    assert found.shape == (2, *SHAPE[-2:])
    for picture in (0, 1):
        total = torch.zeros(SHAPE[-2:], dtype=torch.float64)
        for point in points:
            x = point.x[picture : picture + 1]
            q = model.denoiser(x, point.sigma, "target") - model.denoiser(x, point.sigma, "source")
            total += q.abs()[0].mean(0) / len(points)
        height, width = total.shape
        smooth = torch.zeros_like(total)
        for i in range(height):
            for j in range(width):
                for di, wi in ((-1, 1), (0, 2), (1, 1)):
                    for dj, wj in ((-1, 1), (0, 2), (1, 1)):
                        near = total[min(max(i + di, 0), height - 1), min(max(j + dj, 0), width - 1)]
                        smooth[i, j] += wi * wj * near / 16
        stretched = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        assert torch.allclose(found[picture].double(), (2 * stretched).clamp(max=1), atol=1e-5)


def test_on_a_large_latent_a_single_cell_does_not_outweigh_a_place():
    model = analytic("flow")
    change = WordsChange(model.denoiser, points_of(model), WORDS)
    q = torch.zeros(2, 4, 96, 128)
    q[:, :, 30:60, 40:80] = 1.0
    q[1, :, 5, 5] = 20.0
    change._changes = [q]
    mask = change.mask()
    assert mask.shape == (2, 96, 128)
    assert mask.min() == 0
    assert mask[:, 38:52, 50:70].min() == 1
    assert mask[:, 80:, 100:].max() == 0


def test_a_change_that_is_the_same_everywhere_acts_everywhere():
    model = analytic("flow")
    change = WordsChange(model.denoiser, points_of(model), WORDS)
    change._changes = [torch.ones_like(q) for q in change._changes]
    assert torch.equal(change.mask(), torch.ones(1, *SHAPE[-2:]))


def test_latents_with_a_dimension_of_time():
    model = analytic("flow")
    change = WordsChange(model.denoiser, points_of(model), WORDS)
    flat = change.mask()
    change._changes = [q.unsqueeze(2) for q in change._changes]
    assert torch.equal(change.mask(), flat)


def test_words_that_change_nothing():
    model = analytic("flow")
    with pytest.raises(EqualPredictionsError):
        WordsChange(model.denoiser, points_of(model), ("source", "source"))


def test_predictions_that_are_not_numbers():
    model = analytic("flow")
    point = PathPoint(model.sigma, torch.full(SHAPE, float("nan"), dtype=torch.float64))
    with pytest.raises(NotFiniteError, match="not numbers"):
        WordsChange(model.denoiser, [point], WORDS)
