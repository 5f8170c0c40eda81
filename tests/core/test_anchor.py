"""The anchored prediction: its algebra, the exact return, what is snapped, kept and cached."""

import pytest
import torch
from analytic import SHAPE, analytic

from latent_directions.core.anchor import (
    NoisePaths,
    ReferenceCache,
    anchored_prediction,
    orthonormal_span,
    project_off,
    snap_to_reference,
)


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TestPrediction:
    def test_on_the_reference_path_it_is_the_picture(self):
        x0, d = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
        basis = orthonormal_span([random(2, 4, 3, 3, seed=2)])
        assert torch.equal(anchored_prediction(x0, d, d, 1.0, None), x0)
        assert torch.equal(anchored_prediction(x0, d, d, 0.7, basis), x0)

    def test_weight(self):
        x0, edited, reference = (random(*SHAPE, seed=s) for s in range(3))
        for weight in (0.0, 0.5, 1.0, 1.5):
            result = anchored_prediction(x0, edited, reference, weight, None)
            assert torch.allclose(result, x0 + weight * (edited - reference))

    def test_what_is_kept_gets_no_part_of_the_change(self):
        x0, edited, reference = (random(2, 4, 3, 3, seed=s) for s in range(3))
        kept = [random(2, 4, 3, 3, seed=s) for s in (7, 8)]
        change = anchored_prediction(x0, edited, reference, 1.0, orthonormal_span(kept)) - x0
        for direction in kept:
            inner = (change * direction).flatten(1).sum(1)  # for each of the batch
            assert (inner.abs() < 1e-5 * direction.norm() * change.norm()).all()
        # and the rest of the change is all there: the difference lies in the span
        taken = (edited - reference - change).flatten(1)
        for sample in range(2):
            span = torch.stack([d.flatten(1)[sample] for d in kept], dim=1)
            fit = span @ torch.linalg.lstsq(span, taken[sample, :, None]).solution
            assert torch.allclose(fit[:, 0], taken[sample], atol=1e-5)


def euler(x, sigmas, predict):
    for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
        x = x + (lower - sigma) * (x - predict(x, sigma)) / sigma
    return x


def heun(x, sigmas, predict):
    for sigma, lower in zip(sigmas, sigmas[1:], strict=False):
        v = (x - predict(x, sigma)) / sigma
        up = x + (lower - sigma) * v
        x = up if lower == 0 else x + (lower - sigma) * (v + (up - predict(up, lower)) / lower) / 2
    return x


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("sampler", [euler, heun])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sampling_returns_exactly(kind, sampler, steps):
    """From x* under any guidance the anchored prediction ends at x0; the plain one does not."""
    model = analytic(kind)
    noise = model.denoiser.noise_of(model.x, model.x0, model.sigma)
    sigmas = torch.linspace(model.sigma, 0, steps + 1).tolist()
    sigmas[0] = model.sigma

    def plain(x, sigma):
        return model.denoiser(x, sigma, "source", 4.0)

    def anchored(x, sigma):
        x_ref = model.denoiser.noised(model.x0, noise, sigma)
        edited = plain(snap_to_reference(x, x_ref), sigma)
        return anchored_prediction(model.x0, edited, plain(x_ref, sigma), 1.0, None)

    assert torch.allclose(sampler(model.x, sigmas, anchored), model.x0, atol=1e-12)
    assert not torch.allclose(sampler(model.x, sigmas, plain), model.x0, atol=1e-2)


class TestSnap:
    def test_rounding_is_taken_away_bitwise(self):
        x_ref = random(3, 4, 5, 5, dtype=torch.float32)
        assert torch.equal(snap_to_reference(x_ref * (1 + 3e-6), x_ref), x_ref)

    def test_moves_are_left_alone(self):
        x_ref = random(3, 4, 5, 5, dtype=torch.float32)
        x = x_ref.clone()
        x[0, 1, 2, 3] += 1e-4 * x_ref[0].abs().max()  # one cell is enough
        assert torch.equal(snap_to_reference(x, x_ref), x)

    def test_each_sample_of_a_batch_for_itself(self):
        x_ref = random(2, 4, 5, 5, dtype=torch.float32)
        x = x_ref * 1.000002
        x[1] += 0.1
        snapped = snap_to_reference(x, x_ref)
        assert torch.equal(snapped[0], x_ref[0])
        assert torch.equal(snapped[1], x[1])

    def test_radius(self):
        x_ref = random(1, 4, 5, 5)
        x = x_ref + 5e-5 * x_ref.abs().max()
        assert torch.equal(snap_to_reference(x, x_ref), x)
        assert torch.equal(snap_to_reference(x, x_ref, 1e-4), x_ref)


class TestSpan:
    def test_orthonormal_for_every_sample(self):
        basis = orthonormal_span([random(2, 4, 3, 3, seed=s) for s in range(3)])
        gram = basis.transpose(1, 2) @ basis
        assert torch.allclose(gram, torch.eye(3).to(gram).expand(2, 3, 3), atol=1e-5)

    def test_projecting_twice_is_projecting_once(self):
        basis = orthonormal_span([random(2, 4, 3, 3, seed=s) for s in range(3)])
        once = project_off(random(2, 4, 3, 3, seed=9).to(basis), basis)
        assert torch.allclose(project_off(once, basis), once, atol=1e-5)

    def test_dependent_and_zero_differences_add_nothing(self):
        d = random(1, 4, 3, 3)
        change = random(1, 4, 3, 3, seed=1)
        alone = orthonormal_span([d])
        more = orthonormal_span([d, -2 * d, torch.zeros_like(d)])
        a, b = (project_off(change.to(basis), basis) for basis in (alone, more))
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.equal(project_off(change.to(alone), orthonormal_span([0 * d])), change.to(alone))

    def test_double_precision_stays(self):
        d = [random(1, 4, 3, 3, seed=s) for s in range(2)]
        change = project_off(random(1, 4, 3, 3, seed=5), orthonormal_span(d))
        assert change.dtype == torch.float64
        assert all(abs((change * direction).sum()) < 1e-12 for direction in d)


class TestCache:
    def entry(self, kilobytes: int) -> torch.Tensor:
        return torch.zeros(kilobytes * 256)

    def test_computes_once(self):
        cache, calls = ReferenceCache(), []
        for _ in range(3):
            cache.get("key", lambda: calls.append(1) or self.entry(1))
        assert len(calls) == 1
        assert cache.bytes == 1024

    def test_the_entry_unused_longest_leaves_first(self):
        cache = ReferenceCache(max_bytes=3 * 1024)
        for key in "abc":
            cache.get(key, lambda: self.entry(1))
        cache.get("a", pytest.fail)  # used again
        cache.get("d", lambda: self.entry(1))
        assert cache.bytes == 3 * 1024
        cache.get("a", pytest.fail)
        computed = []
        cache.get("b", lambda: computed.append(1) or self.entry(1))
        assert computed

    def test_never_more_than_its_size_but_for_one_entry(self):
        cache = ReferenceCache(max_bytes=4 * 1024)
        for key, size in enumerate((1, 2, 3, 4, 1, 3)):
            cache.get(key, lambda size=size: self.entry(size))
            assert cache.bytes <= 4 * 1024
        large = cache.get("large", lambda: self.entry(9))
        assert cache.bytes == large.nbytes == 9 * 1024
        cache.get("small", lambda: self.entry(1))
        assert cache.bytes == 1024


class TestNoisePaths:
    def test_one_path_is_the_base(self):
        base = random(*SHAPE)
        (path,) = NoisePaths(base).at(0.5)
        assert path is base

    def test_further_seeds_are_the_same_at_every_level(self):
        paths = NoisePaths(random(*SHAPE), seeds=(3, 4))
        first, again = paths.at(0.5), paths.at(0.2)
        assert len(first) == 3
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[1], first[2])

    def test_fresh_noise_depends_on_the_level_and_repeats(self):
        paths = NoisePaths(random(*SHAPE), seeds=(3,), fresh=True)
        (a,), (b,), (other,) = paths.at(0.5), paths.at(0.5), paths.at(0.25)
        assert torch.equal(a, b)
        assert not torch.equal(a, other)
        assert a.shape == SHAPE
        assert a.dtype == torch.float64
