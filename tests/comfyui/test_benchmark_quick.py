"""The sum that the quick benchmark compares previews with, and its lines by attribute."""

import pytest
import torch
from analytic import SCALES, SHAPE, SIGMA, ode_step, sample_euler

from benchmarks.quick import ONE_MOVE, OPEN_LOOP, TWO_MOVES, by_attribute, open_loop, previewers
from latent_directions.core.anchor import AnchoredPrediction, NoisePaths, WordsMove
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.inversion import seeded_noise


def random(seed: int) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", SCALES)
def test_the_open_loop_is_a_run_whose_jacobian_is_that_of_no_feedback(kind):
    """A true run, and the recursion of its derivative, of a model with J = I / (a + b) and words that differ by q."""
    scale, levels = SCALES[kind], torch.linspace(SIGMA[kind], 0, 7, dtype=torch.float64).tolist()
    changes = {sigma: random(number) for number, sigma in enumerate(levels[:-1])}

    def predict(x, sigma, prompt="source", guidance=1.0):
        return x / sum(scale(sigma)) + (changes[sigma] if prompt == "target" else 0)

    denoiser, x0, noise = Denoiser(predict, scale), random(20), seeded_noise(random(20), 3)
    moves = [WordsMove(strength=0.7, towards="target")]
    anchor = AnchoredPrediction(x0, NoisePaths(noise), denoiser.noised, moves)

    def predictions(x, sigma, names):
        return [predict(x, sigma, name) for name in names]

    start = denoiser.noised(x0, noise, levels[0])
    end = sample_euler(scale, start, levels, lambda x, sigma: anchor(x, sigma, predictions))
    found = open_loop(list(changes.values()), [scale(sigma) for sigma in levels[:-1]])
    assert torch.allclose(end - x0, 0.7 * found, atol=1e-10)
    delta = torch.zeros_like(x0)
    for here, there in zip(levels, levels[1:], strict=False):
        delta = ode_step(scale, delta, delta / sum(scale(here)) + changes[here], here, there)
    assert torch.allclose(found, delta, atol=1e-10)


def test_what_previews_add_to_the_latent():
    ends = {
        s: random(1) + s * random(2) + s * abs(s) * random(3) + s**2 * random(4) for s in (-1.0, -0.5, 0.0, 0.5, 1.0)
    }
    found = previewers({s: end.float() for s, end in ends.items()}, random(5).float())
    assert set(found) == {TWO_MOVES, ONE_MOVE.format(0.5), ONE_MOVE.format(1), OPEN_LOOP}
    for strength in (-1.0, 1.0):
        assert torch.allclose(found[TWO_MOVES](strength), ends[strength].float(), atol=1e-5)
    assert torch.allclose(found[TWO_MOVES](-2.0), (2 * ends[-1.0] - ends[0.0]).float(), atol=1e-5)
    assert torch.allclose(
        found[ONE_MOVE.format(0.5)](3.0), (ends[0.0] + 3 * (ends[0.5] - ends[-0.5])).float(), atol=1e-5
    )
    moved = found[OPEN_LOOP](1.0) - ends[0.0].float()
    assert float(moved.norm()) == pytest.approx(float((ends[1.0] - ends[0.0]).norm()), rel=1e-4)


def test_an_attribute_is_smooth_where_no_preview_is_below_the_round_trip():
    def rows(attribute: str, worst: float, form: str) -> list[dict]:
        shared = {"attribute": attribute, "form": form, "method": "text", "change": 0.4, "true_change": 0.5}
        shown = {-2.0: 5.0, -1.0: 60.0, -0.5: 40.0, 0.5: worst, 1.0: 50.0}
        return [{**shared, "strength": s, "psnr": db, "round_trip": 36.0} for s, db in shown.items()]

    forms = (TWO_MOVES, ONE_MOVE.format(1), OPEN_LOOP)
    found = [
        row for form in forms for name, worst in (("smile", 35.1), ("hat", 34.9)) for row in rows(name, worst, form)
    ]
    lines = list(by_attribute(found))
    assert [(line["attribute"], line["smooth"]) for line in lines[::3]] == [("smile", "yes"), ("hat", "no")]
    assert (lines[0]["lowest dB at -0.5, 0.5"], lines[0]["at -1, 1"], lines[0]["pictures"]) == (35.1, 50.0, 4)
    assert (lines[0]["change at 1 / range"], lines[0]["of the true run"]) == (0.4, 0.5)
