"""Geometry of subspaces against dense constructions, and what must hold for any bases."""

import math
from itertools import permutations, product

import pytest
import torch
from analytic import SHAPE, analytic, cosine
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_directions.core.errors import (
    BasisError,
    EqualFeaturesError,
    NothingInCommonError,
    NothingToMoveError,
    ShapeError,
    TooFewSamplesError,
)
from latent_directions.core.geometry import (
    carried,
    carried_move,
    curvedness,
    frechet_mean,
    grassmann_distance,
    matched_mean,
    principal_angles,
    principal_components,
    pulled_back,
    rank_share,
    transport,
    turning,
)
from latent_directions.core.local_basis import features_jacobian

N = 12  # numbers of the vectors below, which have the shape (3, 4)
SEEDS = st.integers(0, 10_000)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(k: int, seed: int = 0) -> torch.Tensor:
    """A random orthonormal basis (k, 3, 4)."""
    return torch.linalg.qr(random(N, k, seed=seed))[0].T.reshape(k, 3, 4)


def near(first: torch.Tensor, size: float, seed: int) -> torch.Tensor:
    """An orthonormal basis near another."""
    moved = first.flatten(1) + size * random(len(first), N, seed=seed)
    u, _, vh = torch.linalg.svd(moved, full_matrices=False)
    return (u @ vh).view_as(first)


def mixed(first: torch.Tensor, seed: int) -> torch.Tensor:
    """Another orthonormal basis of the same subspace."""
    rotation = torch.linalg.qr(random(len(first), len(first), seed=seed))[0]
    return (rotation @ first.flatten(1)).view_as(first)


def gram(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.flatten(1) @ vectors.flatten(1).T


def projector(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.flatten(1).T @ vectors.flatten(1)


class TestAngles:
    def test_of_planes_with_known_angles(self):
        """Two planes in four dimensions, turned by 1e-9 and by 1 radian."""
        angles = torch.tensor([1e-9, 1.0], dtype=torch.float64)
        first, other = torch.eye(4, dtype=torch.float64).split(2)
        second = angles.cos()[:, None] * first + angles.sin()[:, None] * other
        assert principal_angles(first, second).tolist() == pytest.approx(angles.tolist(), rel=1e-6)
        assert grassmann_distance(first, second) == pytest.approx(1.0)

    @given(SEEDS, st.integers(1, 5), st.integers(1, 5))
    def test_dense(self, seed, j, k):
        """The cosines are the singular values of the product of the projectors."""
        first, second = basis(j, seed), basis(k, seed + 1)
        expected = torch.linalg.svdvals(projector(first) @ projector(second))[: min(j, k)]
        angles = principal_angles(first, second)
        assert torch.allclose(angles.cos(), expected, atol=1e-7)
        assert (angles.diff() >= -1e-7).all()

    @given(SEEDS, st.integers(1, 5))
    def test_it_is_a_metric(self, seed, k):
        a, b, c = basis(k, seed), near(basis(k, seed), 0.3, seed + 1), basis(k, seed + 2)
        assert grassmann_distance(a, a) == pytest.approx(0, abs=1e-9)
        assert grassmann_distance(a, b) == pytest.approx(grassmann_distance(b, a), abs=1e-9)
        assert grassmann_distance(a, c) <= grassmann_distance(a, b) + grassmann_distance(b, c) + 1e-9

    @given(SEEDS, st.integers(1, 5))
    def test_it_is_of_subspaces_not_of_bases(self, seed, k):
        a, b = basis(k, seed), basis(k, seed + 1)
        assert grassmann_distance(mixed(a, seed), mixed(b, seed + 5)) == pytest.approx(grassmann_distance(a, b))
        assert grassmann_distance(a, mixed(a, seed)) == pytest.approx(0, abs=1e-9)

    def test_half_precision(self):
        a, b = basis(4), basis(4, 1)
        exact = grassmann_distance(a, b)
        assert grassmann_distance(a.half(), b.bfloat16()) == pytest.approx(exact, rel=1e-2)


class TestTransport:
    @given(SEEDS, st.integers(1, 5), st.integers(0, 3))
    def test_it_is_an_isometry_into_the_other_subspace(self, seed, j, more):
        frame, to = basis(j, seed), basis(j + more, seed + 1)
        moved = transport(frame, to)
        assert moved.shape == frame.shape
        assert torch.allclose(gram(moved), torch.eye(j, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(moved.flatten(1) @ projector(to), moved.flatten(1), atol=1e-9)

    @given(SEEDS, st.integers(1, 5))
    def test_it_does_not_depend_on_the_other_basis(self, seed, k):
        frame = basis(k, seed)
        to = near(frame, 0.3, seed + 1)
        assert torch.allclose(transport(frame, to), transport(frame, mixed(to, seed)), atol=1e-7)
        assert torch.allclose(transport(frame, mixed(frame, seed)), frame, atol=1e-9)

    def test_no_other_isometry_is_nearer(self):
        frame, to = basis(2), basis(2, 1)
        turns, mirrors = torch.linspace(0, 2 * math.pi, 2000, dtype=torch.float64), torch.tensor([1.0, -1.0]).double()
        first = torch.stack([turns.cos(), turns.sin()], dim=1).expand(2, -1, 2)
        second = mirrors[:, None, None] * torch.stack([-turns.sin(), turns.cos()], dim=1)
        rotations = torch.stack([first, second], dim=2)  # all rotations of a plane, and all reflections
        nearest = float((rotations @ to.flatten(1) - frame.flatten(1)).flatten(2).norm(dim=2).min())
        best = float((transport(frame, to) - frame).norm())
        assert best <= nearest
        assert best == pytest.approx(nearest, abs=1e-5)

    def test_it_ends_the_geodesic(self):
        """The frame, carried in small steps along the geodesic between the two subspaces."""
        frame = basis(3)
        to = near(frame, 0.4, 1)
        w, cosines, xh = torch.linalg.svd(frame.flatten(1) @ to.flatten(1).T)
        start, end = w.T @ frame.flatten(1), xh @ to.flatten(1)
        away = torch.linalg.qr((end - cosines[:, None] * start).T)[0].T
        away = away * (away * end).sum(1, keepdim=True).sign()
        angles, carried_along = cosines.arccos()[:, None], frame
        for t in torch.linspace(0, 1, 200, dtype=torch.float64):
            here = (t * angles).cos() * start + (t * angles).sin() * away
            projected = carried_along.flatten(1) @ here.T @ here
            u, _, vh = torch.linalg.svd(projected, full_matrices=False)
            carried_along = (u @ vh).view_as(frame)
        assert torch.allclose(transport(frame, to), carried_along, atol=1e-9)

    def test_into_fewer_dimensions(self):
        with pytest.raises(ShapeError, match="3 vectors do not fit into a subspace of 2 dimensions"):
            transport(basis(3), basis(2))


class TestCarried:
    def test_dense(self):
        change, u, v = 3 * random(1, 3, 4), basis(4, 1), basis(4, 2).view(4, 2, 6)
        coefficients = u.flatten(1) @ change.flatten()
        unit, share = carried(change, u)
        expected = u.flatten(1).T @ coefficients
        assert share == pytest.approx(float(expected.norm() / change.norm()))
        assert torch.allclose(unit.flatten(), expected / expected.norm())
        move, same = carried_move(change, u, v)
        assert same == share
        assert torch.allclose(move.flatten(), v.flatten(1).T @ coefficients / coefficients.norm())
        assert (unit.shape, move.shape) == ((1, 3, 4), (1, 2, 6))

    @given(SEEDS, st.integers(1, 6))
    def test_whole_where_the_subspace_has_it(self, seed, k):
        u = basis(k, seed)
        change = mixed(u, seed + 1)[:1]
        unit, share = carried(change, u)
        assert share == pytest.approx(1)
        assert torch.allclose(unit, change, atol=1e-9)

    def test_a_change_that_no_move_makes(self):
        u = basis(4)
        with pytest.raises(NothingInCommonError, match="no part that this picture can make"):
            carried(u[:1], u[1:])

    def test_sizes(self):
        with pytest.raises(ShapeError, match="is 2 x 3, but those here are 3 x 4"):
            carried(random(1, 2, 3), basis(2))
        with pytest.raises(ShapeError, match="2 moves for 3 changes"):
            carried_move(random(1, 3, 4), basis(3), basis(2))


class TestMatchedMean:
    def test_finds_the_best_assignment(self):
        """Against all assignments and signs, where the bases are near each other."""
        first = basis(3)
        others = [near(first, 0.1, seed)[torch.tensor([2, 0, 1])] for seed in (1, 2)]
        others[1][1] *= -1
        total = first.clone()
        for other in others:
            candidates = [
                torch.tensor(signs, dtype=torch.float64)[:, None, None] * other[list(order)]
                for order in permutations(range(3))
                for signs in product((1, -1), repeat=3)
            ]
            total += max(candidates, key=lambda candidate: float((candidate * first).sum()))
        u, s, vh = torch.linalg.svd((total / 3).flatten(1), full_matrices=False)
        mean = matched_mean([first, *others])
        assert torch.allclose(mean.vectors.flatten(1), u @ vh)
        assert torch.allclose(mean.agreement, (total / 3).flatten(1).norm(dim=1))

    @given(SEEDS, st.integers(1, 5), st.integers(1, 4))
    def test_the_mean_of_one_is_itself(self, seed, k, count):
        one = basis(k, seed)
        mean = matched_mean([one] * count)
        assert torch.allclose(mean.vectors, one, atol=1e-9)
        assert torch.allclose(mean.agreement, torch.ones(k, dtype=torch.float64))

    @given(SEEDS, st.integers(1, 5), st.randoms(use_true_random=False))
    def test_order_and_signs_of_the_others_do_not_matter(self, seed, k, shuffle):
        bases = [basis(k, seed), *(near(basis(k, seed), 0.2, seed + i) for i in (1, 2))]
        order = list(range(k))
        shuffle.shuffle(order)
        signs = torch.tensor([shuffle.choice((1.0, -1.0)) for _ in order], dtype=torch.float64)[:, None, None]
        changed = [bases[0], *((signs * other)[order] for other in bases[1:])]
        mean, other = matched_mean(bases), matched_mean(changed)
        assert torch.allclose(mean.vectors, other.vectors, atol=1e-9)
        assert torch.allclose(gram(mean.vectors), torch.eye(k, dtype=torch.float64), atol=1e-9)
        assert (mean.agreement <= 1 + 1e-9).all()

    def test_what_has_no_mean(self):
        with pytest.raises(TooFewSamplesError, match="no basis"):
            matched_mean([])
        with pytest.raises(ShapeError, match="One basis has 2 vectors, another 3"):
            matched_mean([basis(3), basis(2)])


class TestFrechetMean:
    @settings(max_examples=30)
    @given(SEEDS, st.integers(1, 4))
    def test_is_where_the_distances_are_least(self, seed, k):
        """No subspace near it has a smaller sum of squared distances."""
        bases = [near(basis(k, seed), 0.25, seed + i) for i in range(1, 5)]
        mean = frechet_mean(bases)
        assert mean.converged

        def spread(candidate) -> float:
            return math.sqrt(sum(grassmann_distance(candidate, one) ** 2 for one in bases) / len(bases))

        assert mean.spread == pytest.approx(spread(mean.vectors))
        for number in range(8):
            for size in (1e-3, 1e-1):
                assert spread(near(mean.vectors, size, seed + 10 + number)) >= mean.spread - 1e-12

    @given(SEEDS, st.integers(1, 5), st.integers(1, 3))
    def test_the_mean_of_one_is_itself(self, seed, k, count):
        one = basis(k, seed)
        mean = frechet_mean([one] * count)
        assert torch.allclose(mean.vectors, one, atol=1e-9)
        assert mean.spread == pytest.approx(0, abs=1e-9)

    @settings(max_examples=30)
    @given(SEEDS, st.integers(1, 4))
    def test_bases_of_the_subspaces_and_their_order_do_not_matter(self, seed, k):
        bases = [near(basis(k, seed), 0.25, seed + i) for i in range(1, 4)]
        mean = frechet_mean(bases)
        other = frechet_mean([mixed(one, seed + i) for i, one in enumerate(reversed(bases))])
        assert torch.allclose(projector(mean.vectors), projector(other.vectors), atol=1e-7)
        assert torch.allclose(gram(mean.vectors), torch.eye(k, dtype=torch.float64), atol=1e-9)

    @given(SEEDS, st.integers(1, 5))
    def test_of_two_it_lies_halfway(self, seed, k):
        first = basis(k, seed)
        second = near(first, 0.25, seed + 1)
        middle, whole = frechet_mean([first, second]).vectors, grassmann_distance(first, second)
        assert grassmann_distance(first, middle) == pytest.approx(whole / 2, rel=1e-5)
        assert grassmann_distance(middle, second) == pytest.approx(whole / 2, rel=1e-5)

    def test_subspaces_that_fill_all_there_is(self):
        mean = frechet_mean([basis(N, 1), basis(N, 2)])
        assert mean.converged
        assert torch.allclose(mean.vectors, basis(N, 1), atol=1e-9)

    def test_a_bound_on_the_steps(self):
        mean = frechet_mean([near(basis(3), 0.3, seed) for seed in range(1, 5)], iterations=1)
        assert (mean.iterations, mean.converged) == (1, False)


class TestPaths:
    def test_curvedness_of_half_a_circle(self):
        """Its length is pi/2 times the distance of its ends."""

        def read(x):
            return torch.stack([(math.pi * x).cos(), (math.pi * x).sin()], dim=1)

        start, end = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        assert curvedness(read, start, end, 1000) == pytest.approx(math.pi / 2, rel=1e-5)
        assert curvedness(read, start, end, 1) == pytest.approx(1)
        assert curvedness(lambda x: 3 * x[:, None], start, end) == pytest.approx(1)

    def test_curvedness_takes_one_evaluation_a_point(self):
        model = analytic()
        features, counter = model.denoiser.features, model.denoiser.counter
        bent = curvedness(lambda x: features.read(x, model.sigma, "source"), model.x, model.x0, 6)
        assert counter.evaluations == 7
        assert bent >= 1

    def test_a_line_along_which_nothing_changes(self):
        with pytest.raises(EqualFeaturesError, match="the same at both ends"):
            curvedness(torch.ones_like, random(1, 3), random(1, 3, seed=1))

    def test_turning(self):
        a, b, c = (basis(3, seed) for seed in range(3))
        assert turning([a, b, c]) == pytest.approx(grassmann_distance(a, b) + grassmann_distance(b, c))
        assert turning([a]) == 0


class TestPrincipalComponents:
    def test_dense(self):
        features = random(9, 3, 4) * torch.linspace(1, 3, N, dtype=torch.float64).view(3, 4)
        found = principal_components(features, 4)
        flat = features.flatten(1)
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        assert torch.allclose(found.mean, features.mean(0))
        assert torch.allclose(found.deviations.square(), values.flip(0)[:4])
        for direction, expected in zip(found.directions, vectors.T.flip(0), strict=False):
            assert abs(cosine(direction, expected)) == pytest.approx(1)
        assert found.directions.shape == (4, 3, 4)

    def test_no_more_than_the_samples_have(self):
        assert len(principal_components(random(3, 3, 4), 50).directions) == 2

    def test_samples_without_any(self):
        with pytest.raises(TooFewSamplesError, match="at least two samples, but there are 1"):
            principal_components(random(1, 3, 4), 2)
        with pytest.raises(EqualFeaturesError, match="all 5 samples are the same"):
            principal_components(random(1, 3, 4).expand(5, 3, 4), 2)


class TestPulledBack:
    def test_dense(self):
        model = analytic()
        change = random(1, 5, 2)
        jacobian = features_jacobian(model.search())
        move = pulled_back(jacobian, change)
        expected = model.features_jacobian().T @ change.flatten()
        assert move.shape == SHAPE
        assert torch.allclose(move.flatten(), expected / expected.norm())
        assert model.denoiser.counter.evaluations == 3

    def test_a_change_that_no_move_makes(self):
        jacobian = features_jacobian(analytic().search())
        with pytest.raises(NothingToMoveError, match="No move of the latent changes"):
            pulled_back(jacobian, torch.zeros(1, 5, 2, dtype=torch.float64))


def test_rank_share():
    assert rank_share(torch.ones(100)) == pytest.approx(0.99)
    assert rank_share(torch.tensor([0.1, 10.0, 0.1, 0.1])) == 0.25
    assert rank_share(torch.tensor([3.0, 4.0]), energy=0.64) == 0.5
    assert rank_share(torch.tensor([3.0, 4.0]), energy=0.65) == 1


@pytest.mark.parametrize("call", [principal_angles, transport, lambda a, b: matched_mean([a, b])])
class TestWhatIsNoBasis:
    def test_vectors_that_are_not_orthonormal(self, call):
        with pytest.raises(BasisError, match="3 vectors are no orthonormal basis: their inner products are off by 3"):
            call(basis(3), 2 * basis(3))
        with pytest.raises(BasisError, match="off by nan"):
            call(basis(3), basis(3) * float("nan"))

    def test_vectors_of_another_size(self, call):
        with pytest.raises(ShapeError, match="Vectors of one basis are 4 x 3, of another 3 x 4"):
            call(basis(3), basis(3).view(3, 4, 3))

    def test_type_and_shape(self, call):
        made = call(basis(3).float(), basis(3, 1).float())
        vectors = made if isinstance(made, torch.Tensor) else made.vectors
        assert vectors.dtype == (torch.float64 if call is principal_angles else torch.float32)


def test_an_empty_basis():
    with pytest.raises(BasisError, match="0 vectors are no orthonormal basis"):
        principal_angles(basis(2)[:0], basis(2))
