"""Geometry of subspaces of features: angles, transport from picture to picture, means over pictures, curvedness.

A basis is a tensor (k, ...) of k orthonormal vectors, which stand for the changes of the features h that a picture's
moves can bring about (`LocalBasis.changes` of core/local_basis.py), or for the moves themselves. All is computed in
float64 on the CPU; results have the type and the device of the first argument.

Sources: arXiv 2302.12469 and 2307.12868 with their released code for what is done with such bases; Bjorck and Golub,
Math. Comp. 27 (1973) for angles; Edelman, Arias and Smith, SIAM J. Matrix Anal. Appl. 20 (1998) for the Grassmannian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import (
    BasisError,
    EqualFeaturesError,
    NothingInCommonError,
    NothingToMoveError,
    ShapeError,
    TooFewSamplesError,
    size_in_words,
)
from .linalg import in_float64

# Inner products of a basis may be this far from those of an orthonormal one: half precision, not another basis.
ORTHONORMAL = 2e-2
# Shares of a vector below this are rounding of float32.
NOTHING = 1e-6
ENERGY = 0.99  # share of the energy that `rank_share` asks for


@dataclass(frozen=True)
class MatchedMean:
    """A mean of bases, vector by vector.

    Attributes:
        vectors: (k, ...), orthonormal.
        agreement: (k,) norms of the averages of the matched vectors: 1 where all bases have the same vector.
    """

    vectors: Tensor
    agreement: Tensor


@dataclass(frozen=True)
class SubspaceMean:
    """A mean of subspaces.

    Attributes:
        vectors: (k, ...), an orthonormal basis of the mean: the one nearest to the first basis.
        spread: root mean square of the distances of the subspaces to it, in radians.
        iterations: steps that were taken.
        converged: whether the last step was within the tolerance.
    """

    vectors: Tensor
    spread: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of features over samples.

    Attributes:
        mean: (...).
        directions: (k, ...), orthonormal, by descending deviation.
        deviations: (k,) standard deviations of the samples along them.
    """

    mean: Tensor
    directions: Tensor
    deviations: Tensor


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """The angles (min(j, k),) between two subspaces in radians, ascending, float64 on the CPU.

    Both cosines and sines are used, so that small angles keep all their digits (Bjorck and Golub 1973).

    Args:
        first: basis (j, ...).
        second: basis (k, ...) of vectors of the same size.

    Raises:
        BasisError: one is no orthonormal basis.
        ShapeError: the vectors differ in size.
    """
    large, small = _rows_of(first, second)
    if len(large) < len(small):
        large, small = small, large
    products = small @ large.T
    cosines = torch.linalg.svdvals(products)  # descending
    sines = torch.linalg.svdvals(small - products @ large).flip(0)  # ascending
    return torch.atan2(sines, cosines)


def grassmann_distance(first: Tensor, second: Tensor) -> float:
    """The length of the shortest path between two subspaces: the root of the sum of squared principal angles.

    Args and errors: as `principal_angles` has them. Between subspaces of different dimensions it is the distance of the
    smaller to the nearest part of the larger, which is no metric.
    """
    return float(principal_angles(first, second).norm())


def transport(frame: Tensor, to: Tensor) -> Tensor:
    """The orthonormal vectors (j, ...) of span(to) that are nearest to those of a frame, all together.

    It is the isometry of span(frame) into span(to) by the polar factor of their inner products (orthogonal Procrustes
    problem), and so where the geodesic between the two subspaces takes the frame. Where a vector of the frame is
    orthogonal to span(to), its image is not unique.

    Args:
        frame: basis (j, ...).
        to: basis (k, ...) with k >= j.

    Raises:
        BasisError: one is no orthonormal basis.
        ShapeError: the vectors differ in size, or span(to) has fewer dimensions.
    """
    rows, target = _rows_of(frame, to)
    if len(target) < len(rows):
        msg = f"{len(rows)} vectors do not fit into a subspace of {len(target)} dimensions."
        raise ShapeError(msg)
    return _shaped(_polar(rows @ target.T) @ target, frame)


def carried(change: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """A change of the features as far as another picture can make it: its projection U U'u, normalised.

    Source: arXiv 2302.12469 and 2307.12868, transport of a direction between pictures.

    Args:
        change: u (1, ...).
        basis: U (k, ...), the changes that the other picture can make.

    Returns:
        the unit change (1, ...), and the cosine |U'u| / |u| by which it is what was asked for: 1 where it carries over
        whole.

    Raises:
        NothingInCommonError: the projection is zero.
        BasisError: U is no orthonormal basis.
        ShapeError: u is of another size.
    """
    coefficients, cosine, rows = _coefficients(change, basis)
    return _shaped(coefficients @ rows, change), cosine


def carried_move(change: Tensor, basis: Tensor, moves: Tensor) -> tuple[Tensor, float]:
    """The move of another picture that makes a change of the features: V U'u, normalised.

    Source: arXiv 2302.12469 and 2307.12868. The singular values are left out, as there.

    Args:
        change: u (1, ...).
        basis: U (k, ...), the changes that the other picture can make.
        moves: V (k, C, H, W), the moves that make them.

    Returns:
        the unit move (1, C, H, W), and the cosine of `carried`.

    Raises:
        NothingInCommonError, BasisError, ShapeError: as `carried`.
    """
    if len(moves) != len(basis):
        msg = f"There are {len(moves)} moves for {len(basis)} changes of the features."
        raise ShapeError(msg)
    coefficients, cosine, _ = _coefficients(change, basis)
    (rows,) = _rows_of(moves)
    return _shaped(coefficients @ rows, moves), cosine


def matched_mean(bases: Sequence[Tensor]) -> MatchedMean:
    """The mean of bases whose vectors are matched one to one, up to sign, to those of the first.

    The pairs with the largest |cosine| are matched first (greedy, where the papers' code solves the assignment problem;
    ours). Of the averages the nearest orthonormal vectors are taken: the extrinsic mean.

    Args:
        bases: each (k, ...).

    Raises:
        TooFewSamplesError: there is none.
        BasisError: one is no orthonormal basis, or the averages are no k independent vectors.
        ShapeError: they differ in size.
    """
    first, *others = _all_rows(bases)
    total = first.clone()
    for other in others:
        cosines = first @ other.T
        open_pairs = cosines.abs()
        for _ in range(len(first)):
            i, j = divmod(int(open_pairs.argmax()), len(first))
            total[i] += torch.sign(cosines[i, j]) * other[j]
            open_pairs[i], open_pairs[:, j] = -1.0, -1.0
    average = total / len(bases)
    if torch.linalg.svdvals(average)[-1] <= NOTHING:
        msg = f"The directions of the {len(bases)} pictures are too different to be averaged one by one."
        raise BasisError(msg)
    return MatchedMean(_shaped(_polar(average), bases[0]), average.norm(dim=1))


def frechet_mean(bases: Sequence[Tensor], *, tolerance: float = 1e-9, iterations: int = 200) -> SubspaceMean:
    """The subspace whose squared distances to those of the bases have the smallest sum (Karcher mean).

    It does not depend on which basis of a subspace is given. Each step follows the mean of the directions towards the
    subspaces; it starts from the leading part of all bases together. Subspaces far apart may have several such means.

    Args:
        bases: each (k, ...).
        tolerance: length of the last step in radians.
        iterations: the most steps.

    Raises:
        TooFewSamplesError: there is none.
        BasisError: one is no orthonormal basis.
        ShapeError: they differ in size.
    """
    every = _all_rows(bases)
    size = len(every[0])
    _, _, span = torch.linalg.svd(torch.cat(every), full_matrices=False)  # the mean lies in the span of all
    inside = [rows @ span.T for rows in every]
    mean = torch.eye(size, len(span), dtype=torch.float64)  # the leading rows of the span
    length, taken = float("inf"), 0
    while True:
        step = torch.stack([_logarithm(mean, rows) for rows in inside]).mean(0)
        length = float(step.norm())
        if length <= tolerance or taken == iterations:
            break
        mean, taken = _exponential(mean, step), taken + 1
    squares = [float(_logarithm(mean, rows).square().sum()) for rows in inside]
    vectors = _polar(inside[0] @ mean.T) @ mean @ span
    spread = (sum(squares) / len(squares)) ** 0.5
    return SubspaceMean(_shaped(vectors, bases[0]), spread, taken, length <= tolerance)


def curvedness(read: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, samples: int = 16) -> float:
    """How far features bend along a straight line: the length of its image over the distance of the image's ends.

    1 where the image is straight. The line is cut into `samples` pieces, and every point costs one evaluation.

    Args:
        read: x (1, C, H, W) -> h (1, ...).
        start: x at one end.
        end: x at the other.
        samples: pieces, at least 1.

    Raises:
        EqualFeaturesError: the features at both ends are the same.
    """
    before = first = in_float64(read(start))
    length = 0.0
    for number in range(1, samples + 1):
        here = in_float64(read(torch.lerp(start, end, number / samples)))
        length, before = length + float((here - before).norm()), here
    distance = float((before - first).norm())
    if distance <= NOTHING * float(first.norm()):
        msg = "The features of the network are the same at both ends of the line."
        raise EqualFeaturesError(msg)
    return length / distance


def turning(bases: Sequence[Tensor]) -> float:
    """How far local bases turn along a path: the sum of the Grassmann distances from each to the next, in radians.

    Args and errors: as `grassmann_distance` has them for two.
    """
    return sum(grassmann_distance(*pair) for pair in zip(bases, bases[1:], strict=False))


def principal_components(features: Tensor, count: int) -> PrincipalComponents:
    """Principal components of features over samples, as Haas et al. (arXiv 2303.11073) take them of a mid block.

    Args:
        features: h of n samples, (n, ...).
        count: how many; at most n - 1 are found.

    Raises:
        TooFewSamplesError: there are fewer than two samples.
        EqualFeaturesError: all samples are the same.
    """
    if len(features) < 2:
        msg = f"Principal components need at least two samples, but there are {len(features)}."
        raise TooFewSamplesError(msg)
    flat = in_float64(features.flatten(1))
    mean = flat.mean(0)
    _, values, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    found = min(count, int((values > NOTHING * float(flat.norm())).sum()))
    if not found:
        msg = f"The features of all {len(features)} samples are the same."
        raise EqualFeaturesError(msg)
    deviations = values[:found] / (len(flat) - 1) ** 0.5
    directions = _shaped(directions[:found], features)
    return PrincipalComponents(mean.to(features).view(features.shape[1:]), directions, deviations)


def pulled_back(jacobian, change: Tensor) -> Tensor:
    """The unit move J'u / |J'u| (1, C, H, W) that changes features along u most: 2 evaluations, 3 without a graph.

    With it a direction of features over all pictures is brought to one picture.

    Args:
        jacobian: of the features at that picture, checked.
        change: u (1, ...).

    Raises:
        NothingToMoveError: J'u is zero.
    """
    move = jacobian.rmatvec(change)
    if not move.any():
        msg = "No move of the latent changes the features of this picture in the wanted way."
        raise NothingToMoveError(msg)
    return move / move.norm()


def rank_share(values: Tensor, energy: float = ENERGY) -> float:
    """Low-rankness: the smallest share of singular values that holds a share `energy` of the sum of their squares.

    Args:
        values: all singular values (n,), in any order, not all of them 0.
        energy: 0 to 1.
    """
    squares = in_float64(values).square().sort(descending=True).values.cumsum(0)
    return (int((squares < energy * squares[-1]).sum()) + 1) / len(values)


def _logarithm(base: Tensor, rows: Tensor) -> Tensor:
    """The direction (k, N), orthogonal to `base`, in which the shortest path from its span to that of `rows` starts.

    Its singular values are the principal angles. Without the inverse of the inner products, which need not exist.
    """
    w, cosines, xh = torch.linalg.svd(base @ rows.T)
    offsets = xh @ rows - cosines[:, None] * (w.T @ base)
    sines = offsets.norm(dim=1)
    ratio = torch.where(sines > 1e-12, torch.atan2(sines, cosines) / sines.clamp_min(1e-300), torch.ones_like(sines))
    return w @ (ratio[:, None] * offsets)


def _exponential(base: Tensor, direction: Tensor) -> Tensor:
    """The end (k, N) of the path from `base` that starts in a direction orthogonal to it, as an orthonormal basis."""
    w, angles, qh = torch.linalg.svd(direction, full_matrices=False)
    return _polar(w @ (angles.cos()[:, None] * (w.T @ base) + angles.sin()[:, None] * qh))


def _polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows (j, N), j <= N."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def _coefficients(change: Tensor, basis: Tensor) -> tuple[Tensor, float, Tensor]:
    """U'u normalised, (1, k); |U'u| / |u|; and U as rows."""
    (rows,) = _rows_of(basis)
    vector = in_float64(change.reshape(1, -1))
    if vector.shape[1] != rows.shape[1]:
        msg = f"The change of the features is {size_in_words(change[0])}, but those here are {size_in_words(basis[0])}."
        raise ShapeError(msg)
    coefficients = vector @ rows.T
    cosine = float(coefficients.norm() / vector.norm().clamp_min(1e-300))
    if not cosine > NOTHING:
        msg = "The change of the features has no part that this picture can make."
        raise NothingInCommonError(msg)
    return coefficients / coefficients.norm(), min(cosine, 1.0), rows


def _all_rows(bases: Sequence[Tensor]) -> list[Tensor]:
    """Bases of one shape as rows."""
    if not len(bases):
        msg = "There is no basis to take the mean of."
        raise TooFewSamplesError(msg)
    for basis in bases:
        if len(basis) != len(bases[0]):
            msg = f"One basis has {len(basis)} vectors, another {len(bases[0])}."
            raise ShapeError(msg)
    return _rows_of(*bases)


def _rows_of(*bases: Tensor) -> list[Tensor]:
    """Bases as matrices (k, N) in float64 with exactly orthonormal rows."""
    made = []
    for basis in bases:
        if basis.shape[1:] != bases[0].shape[1:]:
            msg = f"Vectors of one basis are {size_in_words(basis[0])}, of another {size_in_words(bases[0][0])}."
            raise ShapeError(msg)
        rows = in_float64(basis.flatten(1))
        off = float((rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).abs().max()) if len(rows) else 1.0
        if not off <= ORTHONORMAL:  # NaN is not either
            msg = f"{len(rows)} vectors are no orthonormal basis: their inner products are off by {off:.2g}."
            raise BasisError(msg)
        made.append(_polar(rows))
    return made


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    """Rows (j, N) as vectors shaped as those of `like`, on its device and of its type."""
    return rows.to(like).view(-1, *like.shape[1:])
