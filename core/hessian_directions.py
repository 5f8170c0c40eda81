"""Directions by Hessian score distillation: what the words change, filtered by the Hessian of log p.

The target signal is q = D(x, target) - D(x, source), a delta denoising score with paired noise in x0 units. Each filter
f(K) of K = a J = I + b^2 Hessian of log p (core/operators.py) turns q into a move d in x0 units; the latent moves by
a d. The published HSDS formula was not available to us: the filters here, their names and their use of keep prompts are
our own derivation from the gradient of delta score distillation (arXiv 2304.07090), in the spirit of arXiv 2411.08196.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import EverythingKeptError, NothingToMoveError, ZeroOperatorError
from .krylov import ForwardKrylovSpace
from .linalg import orthonormal_span, project_off
from .operators import Jacobian, RestrictedOperator, scaled_hessian
from .search import (
    FREE,
    NO_MOVE,
    FoundDirection,
    Method,
    Search,
    Settings,
    check_evaluations,
    inside,
    keep_prompts,
    matching_step,
    prediction,
    words_difference,
    words_evaluations,
)
from .svd import least_squares


def dds(search: Search) -> list[FoundDirection]:
    """f(K) = 1: the delta denoising score itself, d = q (arXiv 2304.07090), the control without a Hessian."""
    with search.checked(backward=False) as check:
        q = score_difference(search, check.jacobian)
        return [_move_along(q, check.jacobian, q, search.mask, {})]


def low_pass(search: Search) -> list[FoundDirection]:
    """f(K) = K: d = K q, K at the prompt that leaves the target unnamed (ours)."""
    with search.checked(backward=False) as check:
        q = score_difference(search, check.jacobian)
        with search.checked(backward=False, prompt=FREE, like=check.jacobian, note="self_check_free") as free:
            d = scaled_hessian(free.jacobian, search.denoiser, search.sigma)(q)
        return [_move_along(d, check.jacobian, q, search.mask, {})]


def hsds(search: Search) -> list[FoundDirection]:
    """The smallest d whose effect K d on the denoised prediction is q: min |P (K d - q)|^2 + damping |d|^2 (ours).

    Raises:
        EqualPredictionsError: the words change nothing.
        NothingToMoveError: no move of the latent brings about what they change.
    """
    with search.checked(backward=search.settings.backward) as check:
        q = score_difference(search, check.jacobian)
        solve = solve_by_bidiagonalisation if check.backward else solve_in_krylov_space
        try:
            d, notes = solve(search, check.jacobian, q)
        except ZeroOperatorError as error:
            raise NothingToMoveError(NO_MOVE) from error
        return [_move_along(d, check.jacobian, q, search.mask, notes)]


def solve_by_bidiagonalisation(search: Search, jacobian: Jacobian, q: Tensor) -> tuple[Tensor, dict]:
    """The least-squares problem of `hsds` solved on the Golub-Kahan bidiagonalisation, started at q."""
    a, _ = search.denoiser.scale(search.sigma)
    settings, masked = search.settings, RestrictedOperator(jacobian, search.mask)
    d, pairs, gradient = least_squares(
        lambda v: a * masked.matvec(v),
        lambda u: a * masked.rmatvec(u),
        q,
        damping=settings.damping,
        max_pairs=settings.max_pairs,
    )
    return d, {"pairs": pairs, "least_squares_residual": gradient}


def solve_in_krylov_space(search: Search, jacobian: Jacobian, q: Tensor) -> tuple[Tensor, dict]:
    """That problem without a backward pass: solved inside the Krylov space of K and q, as damped GMRES (ours)."""
    settings = search.settings
    product = scaled_hessian(jacobian, search.denoiser, search.sigma, approximate=True)
    space = ForwardKrylovSpace(product, q, settings.max_pairs)
    d, misfit = space.least_squares(q, settings.damping, search.mask)
    notes = {"products": space.products, "products_by": jacobian.approximate_mode}
    return d, {**notes, "relative_misfit": misfit, "asymmetry": space.asymmetry}


def score_difference(search: Search, source: Jacobian) -> Tensor:
    """q inside the mask, with what it shares with the keep prompts projected off; the report tells the cosines.

    A keep pair costs 2 evaluations, 4 with guidance.

    Raises:
        NotFiniteError: a prediction holds values that are not numbers.
        EqualPredictionsError: the words change nothing.
        NothingInsideError: they change nothing inside the mask.
        EverythingKeptError: what the keep prompts change covers all of q.
    """
    q = words_difference(search, source.value)
    if search.settings.keep:
        changes = []
        for number in range(search.settings.keep):
            present, absent = (prediction(search, prompt) for prompt in keep_prompts(number))
            changes.append(present - absent)
        search.notes["keep_cosines"] = [
            float(torch.cosine_similarity(q.flatten(), change.flatten(), dim=0)) for change in changes
        ]
        whole = q.norm()
        q = project_off(q, orthonormal_span(changes))
        if q.norm() <= 1e-3 * whole:  # what is left is rounding
            msg = "What is to be kept covers all that the target prompt would change, so nothing is left to move."
            raise EverythingKeptError(msg)
    return inside(q, search.mask)


def _move_along(d: Tensor, jacobian: Jacobian, q: Tensor, mask: Tensor | None, notes: dict) -> FoundDirection:
    """The latent's move along d, with the step at which its linear effect is as large as q (one J v)."""
    if not d.any():
        raise NothingToMoveError(NO_MOVE)
    vector = d / d.norm()
    return FoundDirection(vector, matching_step(jacobian.matvec(vector), q, mask), notes)


def _hsds_evaluations(settings: Settings, masked: bool) -> float:
    solver = 32 if settings.backward else 16
    return check_evaluations(settings, settings.backward) + words_evaluations(settings) + solver + 2


def _low_pass_evaluations(settings: Settings, masked: bool) -> float:
    return 2 * check_evaluations(settings, False) + words_evaluations(settings) + 4


def _dds_evaluations(settings: Settings, masked: bool) -> float:
    return check_evaluations(settings, False) + words_evaluations(settings) + 2


_READS = ("mask", "keep", "guidance", "seed", "words_source", "derivatives")
HSDS = Method(
    name="HSDS",
    label="words, by second derivatives (HSDS)",
    summary="moves words and latent; the latent by the smallest move whose linear effect on the prediction is what the"
    " words change",
    run=hsds,
    evaluations=_hsds_evaluations,
    reads=(*_READS, "damping", "max_pairs"),
    moves_words=True,
)
LOW_PASS = Method(
    name="HSDS low-pass",
    label="words, by second derivatives, smoothed (HSDS low-pass)",
    summary="as HSDS, but the latent moves by the Hessian times that change; for comparison",
    run=low_pass,
    evaluations=_low_pass_evaluations,
    reads=(*_READS, "free"),
    moves_words=True,
)
DDS = Method(
    name="DDS",
    label="words, latent moved without derivatives (DDS)",
    summary="as HSDS, but the latent moves by that change itself; for comparison",
    run=dds,
    evaluations=_dds_evaluations,
    reads=_READS,
    moves_words=True,
)
