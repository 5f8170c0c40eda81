"""Projections, orthonormal spans, growing bases and damped least squares."""

import pytest
import torch
from analytic import SHAPE

from latent_directions.core.linalg import (
    KrylovBasis,
    damped_least_squares,
    in_float64,
    orthonormal_span,
    project_off,
    relative_error,
)


def random(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram_error(rows: torch.Tensor) -> float:
    flat = rows.flatten(1)
    return float((flat @ flat.T - torch.eye(len(flat)).to(flat)).abs().max())


class TestSpan:
    def test_orthonormal_for_every_sample(self):
        basis = orthonormal_span([random(2, 4, 3, 3, seed=s) for s in range(3)])
        gram = basis.transpose(1, 2) @ basis
        assert torch.allclose(gram, torch.eye(3).to(gram).expand(2, 3, 3), atol=1e-12)

    def test_projecting_twice_is_projecting_once(self):
        basis = orthonormal_span([random(2, 4, 3, 3, seed=s) for s in range(3)])
        once = project_off(random(2, 4, 3, 3, seed=9), basis)
        assert torch.allclose(project_off(once, basis), once, atol=1e-12)

    def test_what_is_taken_lies_in_the_span(self):
        kept = [random(2, 4, 3, 3, seed=s) for s in (7, 8)]
        change = random(2, 4, 3, 3)
        left = project_off(change, orthonormal_span(kept))
        for direction in kept:
            assert ((left * direction).flatten(1).sum(1).abs() < 1e-12).all()  # for each of the batch
        for sample in range(2):
            span = torch.stack([d[sample].flatten() for d in kept], dim=1)
            taken = (change - left)[sample].flatten()[:, None]
            assert torch.allclose(span @ torch.linalg.lstsq(span, taken).solution, taken, atol=1e-12)

    def test_one_basis_for_the_whole_batch(self):
        basis = orthonormal_span([random(1, 4, 3, 3)])
        change = random(3, 4, 3, 3, seed=1)
        each = torch.cat([project_off(change[i : i + 1], basis) for i in range(3)])
        assert torch.allclose(project_off(change, basis), each, atol=1e-12)

    def test_dependent_and_zero_vectors_add_nothing(self):
        d, change = random(1, 4, 3, 3), random(1, 4, 3, 3, seed=1)
        alone, more = orthonormal_span([d]), orthonormal_span([d, -2 * d, torch.zeros_like(d)])
        assert torch.allclose(project_off(change, alone), project_off(change, more), atol=1e-12)
        assert torch.equal(project_off(change, orthonormal_span([0 * d])), change)

    def test_half_precision_is_spanned_in_single_precision(self):
        basis = orthonormal_span([random(1, 4, 3, 3, seed=s).half() for s in range(2)])
        assert basis.dtype == torch.float32
        assert gram_error(basis[0].T) < 1e-5


def test_relative_error():
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(reference + torch.tensor([0.0, 0.5]), reference) == pytest.approx(0.1)
    assert relative_error(reference, reference) == 0


def test_small_matrices_are_solved_in_float64():
    rows = random(2, 3).float()
    assert in_float64(rows).dtype == torch.float64
    assert torch.equal(in_float64(rows).float(), rows)


class TestDampedLeastSquares:
    def problem(self, m: int, n: int, condition: float):
        """A = U diag(s) V' with s from 1 down to 1 / condition, and its factors."""
        u, v = torch.linalg.qr(random(m, n))[0], torch.linalg.qr(random(n, n, seed=1))[0]
        s = torch.logspace(0, -float(torch.tensor(condition).log10()), n, dtype=torch.float64)
        return u, s, v, (u * s) @ v.T

    @pytest.mark.parametrize(("m", "n"), [(8, 8), (12, 5), (5, 12)])
    @pytest.mark.parametrize("damping", [1e-6, 0.01, 1.0])
    def test_solves_the_normal_equations(self, m, n, damping):
        a, b = random(m, n), random(m, seed=1)
        y = damped_least_squares(a, b, damping)
        expected = torch.linalg.solve(a.T @ a + damping * torch.eye(n, dtype=a.dtype), a.T @ b)
        assert torch.allclose(y, expected, atol=1e-8)

    @pytest.mark.parametrize("damping", [0.0, 1e-20])
    def test_accurate_where_the_normal_equations_are_not(self, damping):
        """At a condition number of 1e10 that of A'A is 1e20, more than float64 holds."""
        u, s, v, a = self.problem(12, 8, 1e10)
        wanted = random(8, seed=2)
        b = a @ wanted
        exact = v @ ((s * (u.T @ b)) / (s**2 + damping))
        error = relative_error(damped_least_squares(a, b, damping), exact)
        normal = a.T @ a + damping * torch.eye(8, dtype=a.dtype)
        by_normal_equations = relative_error(torch.linalg.solve(normal, a.T @ b), exact)
        assert error < 1e-4
        assert by_normal_equations > 1e-2


class TestKrylovBasis:
    def test_splits_into_inside_and_outside(self):
        basis, vectors = KrylovBasis(), random(3, 2, 4)
        basis.append(basis.split(vectors)[1])
        more = torch.cat([vectors[:1] + vectors[1:2], random(1, 2, 4, seed=1)])
        inside, new, outside = basis.split(more)
        assert len(new) == 1  # the first is inside already
        rebuilt = inside.T @ basis.rows + outside.T @ new
        assert torch.allclose(rebuilt, more.flatten(1))
        assert gram_error(torch.cat([basis.rows, new])) < 1e-12

    def test_of_orthonormal_vectors(self):
        vectors = torch.linalg.qr(random(8, 3))[0].T.view(3, 2, 4)
        basis = KrylovBasis.of(vectors)
        assert len(basis) == 3
        assert torch.equal(basis.rows, vectors.flatten(1))
        coefficients = random(3, 2)
        assert torch.allclose(basis.combine(coefficients), torch.tensordot(coefficients.T, vectors, 1))
        assert basis.combine(coefficients).shape == (2, 2, 4)

    def test_within_its_capacity_it_stays_where_it_is_in_memory(self):
        basis = KrylovBasis(capacity=6)
        basis.append(basis.split(random(1, *SHAPE[1:]))[1])
        address = basis.rows.data_ptr()
        for seed in range(1, 6):
            basis.append(basis.split(random(1, *SHAPE[1:], seed=seed))[1])
            assert basis.rows.data_ptr() == address
        assert len(basis) == 6
        assert gram_error(basis.rows) < 1e-12

    @pytest.mark.parametrize("capacity", [0, 1, 2, 5])
    def test_past_its_capacity_it_grows_and_loses_nothing(self, capacity):
        basis, added = KrylovBasis(capacity), []
        for number in range(7):
            added.append(basis.split(random(1 + number % 2, *SHAPE[1:], seed=number))[1])
            basis.append(added[-1])
        assert torch.equal(basis.rows, torch.cat(added))
        assert len(basis) == 10
        assert gram_error(basis.rows) < 1e-12

    def test_a_block_larger_than_the_capacity(self):
        basis = KrylovBasis(2)
        _, new, _ = basis.split(random(9, *SHAPE[1:]))
        basis.append(new)
        assert torch.equal(basis.rows, new)

    def test_vectors_that_depend_on_one_another_count_once(self):
        v = random(1, 2, 4)
        _, new, outside = KrylovBasis().split(torch.cat([v, -3 * v, torch.zeros_like(v)]))
        assert new.shape == (1, 8)
        assert torch.allclose(outside, torch.tensor([[1.0, -3.0, 0.0]], dtype=torch.float64) * v.norm())
