"""A slider as moves of the clean latent, against exact derivatives in float64, and the latents between keyframes."""

import pytest
import torch
from analytic import SHAPE, analytic, ode_step, sample_euler

from latent_directions.core.anchor import AnchoredPrediction, NoiseMove, NoisePaths, WordsMove, moved_noise
from latent_directions.core.distilled import BEND_LIMIT, bends, between, distil, evenly_spaced
from latent_directions.core.inversion import seeded_noise
from latent_directions.core.linalg import relative_error

KEEP = ("keep 0 present", "keep 0 absent")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def schedule(model, steps: int = 6) -> list[float]:
    return torch.linspace(model.sigma, 0, steps + 1, dtype=torch.float64).tolist()


def end_of(model, x0, *kinds, keep=()):
    """Strength -> the end of a true run from seeded noise, with words, a move of the noise, or both."""
    noise = seeded_noise(x0, 3)
    b = model.denoiser.scale(model.sigma)[1]

    def end(strength: float) -> torch.Tensor:
        made = {
            "words": WordsMove(strength=strength, keep=keep, towards="target"),
            "noise": NoiseMove(strength=strength, keep=keep, displacement=0.3 * random(*SHAPE[1:], seed=4)),
        }
        moves = [made[kind] for kind in kinds]
        anchor = AnchoredPrediction(x0, NoisePaths(noise), model.denoiser.noised, moves)

        def predictions(x, sigma, names):
            return [model.denoiser(x, sigma, name) for name in names]

        start = model.denoiser.noised(x0, moved_noise(noise, moves, b), model.sigma)
        return sample_euler(model.denoiser.scale, start, schedule(model), lambda x, s: anchor(x, s, predictions))

    return end


def exact_derivative(model, *kinds) -> torch.Tensor:
    """The derivative of the run's end at strength 0: delta <- r delta + g (J delta + q), with the exact J and q."""
    x0, noise = model.x0, seeded_noise(model.x0, 3)
    delta = 0.3 * random(*SHAPE[1:], seed=4)[None] if "noise" in kinds else torch.zeros_like(x0)
    levels = schedule(model)
    for here, there in zip(levels, levels[1:], strict=False):
        a, b = model.denoiser.scale(here)
        x = model.denoiser.noised(x0, noise, here)
        change = a / b**2 * model.prompts["source"].covariance(x.flatten(1), a, b) @ delta.flatten()
        change = change.view_as(x0)
        if "words" in kinds:
            change = change + model.denoiser(x, here, "target") - model.denoiser(x, here, "source")
        delta = ode_step(model.denoiser.scale, delta, change, here, there)
    return delta


@pytest.mark.parametrize("kinds", [("words",), ("noise",), ("words", "noise")])
def test_small_strengths_give_the_exact_derivative(model, kinds):
    exact, end = exact_derivative(model, *kinds), end_of(model, model.x0, *kinds)
    errors = []
    for span in (0.02, 0.01):
        above, below, bend = distil(lambda s, span=span: end(span * s), model.x0)
        errors.append(relative_error((above + below) / (2 * span), exact))
        assert bend < span
        assert relative_error(above / span, exact) < 2 * span
        assert relative_error(below / span, exact) < 2 * span
    assert errors[1] < 1e-3
    assert 3 < errors[0] / errors[1] < 5  # central differences: a quarter at half the span


def test_the_line_through_three_true_ends(model):
    end = end_of(model, model.x0, "words", keep=(KEEP,))
    asked = []

    def run(strength):
        asked.append(strength)
        return end(strength)

    above, below, bend = distil(run, model.x0)
    assert torch.allclose(model.x0 + above, end(1.0))
    assert torch.allclose(model.x0 - below, end(-1.0))
    assert bend == pytest.approx(float((above - below).norm() / (2 * (above + below).norm())))
    assert 0 < bend < 0.5
    assert sorted(asked) == [-1.0, 1.0]  # no third run


def test_each_picture_of_a_batch_on_its_own():
    model = analytic("flow")
    both = torch.cat([model.x0, model.x0 + 0.4 * random(*SHAPE, seed=9)])
    above, below, bend = distil(end_of(model, both, "words"), both)
    # the noise of a batch is another one, so the pictures are compared in the batch
    ends = {s: end_of(model, both, "words")(s) for s in (-1.0, 1.0)}
    assert torch.allclose(above, ends[1.0] - both)
    assert torch.allclose(below, both - ends[-1.0])
    of_each = [bends([ends[-1.0][k : k + 1], both[k : k + 1], ends[1.0][k : k + 1]])[0] for k in (0, 1)]
    assert bend == pytest.approx(max(of_each))
    assert of_each[0] != pytest.approx(of_each[1])


def test_what_moves_to_one_side_alone():
    x0 = random(*SHAPE)
    above, below, bend = distil(lambda s: x0 + max(s, 0.0), x0)
    assert (float(above.mean()), float(below.abs().max()), bend) == (pytest.approx(1), 0.0, pytest.approx(0.5))
    there_and_back = distil(lambda s: x0 + abs(s), x0)
    assert there_and_back[2] == BEND_LIMIT  # nothing to compare with: a finite number
    assert distil(lambda s: x0, x0) == (pytest.approx(torch.zeros(SHAPE)), pytest.approx(torch.zeros(SHAPE)), 0.0)
    assert distil(lambda s: x0.half() + s, x0.half())[0].dtype == torch.float64


@pytest.mark.parametrize(("first", "last", "count"), [(-1, 1, 5), (1, -1, 3), (-0.1, 0.2, 4), (-3, 3, 61), (0, 1, 2)])
def test_evenly_spaced_strengths(first, last, count):
    found = evenly_spaced(first, last, count)
    assert (found[0], found[-1], len(found)) == (first, last, count)
    assert 0.0 in found
    assert found == pytest.approx(torch.linspace(first, last, count, dtype=torch.float64).tolist(), abs=1e-9)


def test_between_keyframes():
    keys = [random(*SHAPE, seed=k) for k in range(4)]
    found = between(keys, 10)
    assert all(found[3 * k] is keys[k] for k in range(4))
    assert torch.allclose(found[4], keys[1] + (keys[2] - keys[1]) / 3)
    assert len(between(keys, 11)) == 11
    assert between(keys, 4) == keys
    # 0.1 times 3 is not 0.3, but a picture at a keyframe is it
    assert all(any(frame is key for frame in between(keys, 3 * n + 1)) for key in keys for n in range(1, 40))


def test_bends():
    line = [torch.full(SHAPE, float(k)) for k in range(4)]
    assert bends(line) == [0.0, 0.0]
    jump = [torch.zeros(SHAPE), torch.zeros(SHAPE), torch.ones(SHAPE)]
    assert bends(jump) == [pytest.approx(0.5)]
    assert bends(line[:2]) == []
    assert bends([line[0], line[1], line[0]]) == [BEND_LIMIT]  # there and back
    assert bends([line[0]] * 3) == [0.0]
    both = [torch.cat(pair) for pair in zip(line, [line[0], line[0], line[2], line[3]], strict=True)]
    assert bends(both) == [pytest.approx(0.5), pytest.approx(1 / 6)]
