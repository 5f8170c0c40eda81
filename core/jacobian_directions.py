"""Directions from the Jacobian of the denoised prediction: LOCO Edit and T-LOCO Edit (arXiv 2409.02374).

Moves have the noisy latent's shape (1, C, H, W). Where `Search.decode` is given, the Jacobian is that of the decoded
prediction (p, 3, H', W') and masks are in pixels, (1, 1, H', W'), as in the paper. Without it Jacobian and mask
(1, 1, H, W) live in the latent (ours: far cheaper). Masks have values 0 to 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import SOURCE
from .errors import (
    DecodedBackwardError,
    EverythingRuledOutError,
    NoBackwardError,
    NothingInsideError,
    NothingToMoveError,
    TargetDerivativeError,
    ZeroOperatorError,
)
from .krylov import ForwardKrylovSpace, KrylovSpace
from .linalg import project_off
from .operators import APPROXIMATE, Jacobian, RestrictedOperator
from .search import (
    CHANGE,
    CHANGE_NOTE,
    FEWER,
    NO_MOVE,
    PROJECT_AFTER,
    TARGET,
    FoundDirection,
    Method,
    Search,
    Settings,
    check_evaluations,
    guidance_evaluations,
    inside,
    matching_step,
    pairs_evaluations,
    words_difference,
    words_evaluations,
)
from .self_check import Probe
from .svd import SingularTriplets, partial_svd

FORWARD_EVALUATIONS = 40  # of a forward-only search with its self-check; with guidance twice as many
MAX_PAIRS = 60
# Above this asymmetry of J a search by products with J alone is far from its singular vectors. It is 0.09 to 0.17 on
# trained models and 0.4 to 0.5 on random weights (the table `forward_only` in benchmarks/README.md).
ASYMMETRIC = 0.3
NOTHING_LEFT = 1e-3  # what a projection leaves of a vector is rounding below this share of its norm
NOT_CONVERGED = (
    "The search stopped after {} pairs of products before it converged. The directions can be used, but there may be"
    " stronger ones, and what lies outside the mask may change more than 'hold_outside' allows."
)
TOO_ASYMMETRIC = (
    "Without a backward pass the search is only approximate here, because the model's Jacobian is far from symmetric"
    " (asymmetry {:.2f}). The directions can be used, but there are stronger ones, and what lies outside the mask may"
    " change more than 'hold_outside' allows. Set 'derivatives' to 'automatic' if memory allows."
)
RULED_OUT = "Nothing is left to move: all moves found change what lies outside the mask, and are ruled out."
DECODED_BACKWARD = (
    "Directions of the decoded picture need a backward pass: a move of the latent and its change of the picture differ"
    " in size, so that products in one direction alone do not lead to singular vectors."
)


def loco(search: Search, *, max_pairs: int = MAX_PAIRS) -> list[FoundDirection]:
    """LOCO Edit: what moves the inside of the mask most among the moves that leave the outside as it is.

    The moves are orthogonal to N, the `null_rank` leading right singular vectors of J outside the mask. With the
    projection PROJECT_AFTER they are v - N N'v, normalised, of the singular vectors v of the masked J, as in the
    paper. With RESTRICT_FIRST they are the singular vectors of the masked J restricted to the complement of N, so that
    each is the strongest possible (ours). Both are the same without a mask, or with rank 0. The directions come by
    falling singular value; by PROJECT_AFTER that is the value of v, before the projection.

    J is that of the prediction under the settings' `jacobian_guidance`, and of its picture where `search` has a
    `decode`. The step of strength 1 makes the root mean square change inside the mask 0.25 of the standard deviation of
    that prediction, or picture (our convention, so that one number means about the same visible change on every model).

    Without a backward pass both come from one Krylov space of products J v alone, which only approximates the singular
    vectors; where J is too far from symmetric for that, the report says so.

    Source: arXiv 2409.02374, section 3 and algorithm 1. Signs: the mean change inside the mask is positive (ours).

    Raises:
        DecodedBackwardError: a picture is to be looked at, and there is no backward pass.
        NothingInsideError: the prediction does not change inside the mask.
        EverythingRuledOutError: it changes only by moves that change the outside too.
    """
    settings, mask = search.settings, search.mask
    if search.decode is not None and not settings.backward:
        raise DecodedBackwardError(DECODED_BACKWARD)
    null_rank = settings.null_rank if has_outside(mask) else 0
    with search.checked(backward=settings.backward, as_chosen=True) as check:
        jacobian, probe = check.jacobian, check.probe
        if search.decode is not None and not check.backward:
            msg = f"{DECODED_BACKWARD} This model has none that can be trusted. {check.sentence}"
            raise DecodedBackwardError(msg)
        try:
            if check.backward:
                found = _by_svd(jacobian, probe, mask, settings, null_rank, max_pairs)
            else:
                checked = check.evaluations // guidance_evaluations(settings.jacobian_guidance)
                products = forward_products(checked, jacobian.approximate_cost, settings.count, null_rank)
                found = _forward_only(jacobian, probe, mask, settings, null_rank, products)
            search.remarks.extend(_remarks(found))
            is_plain = search.decode is None and settings.jacobian_guidance == 1.0
            precision = jacobian.precision if check.backward else APPROXIMATE
            moves = _moves_of(found, mask, float(jacobian.value.std()), precision, is_plain)
            if not moves and not (probe.image if mask is None else mask * probe.image).any():
                raise ZeroOperatorError
        except ZeroOperatorError as error:
            msg = "Nothing moves inside the mask: the model's prediction does not change there."
            raise NothingInsideError(msg) from error
    if not moves:
        raise EverythingRuledOutError(RULED_OUT)
    if len(moves) < settings.count:
        search.remarks.append(FEWER.format(len(moves), settings.count))
    return moves


def _remarks(found: _Found) -> list[str]:
    """What the report says of a search that did not come as far as it should."""
    remarks = []
    if found.stopped:
        remarks.append(NOT_CONVERGED.format(found.notes["pairs"]))
    if found.notes.get("asymmetry", 0.0) > ASYMMETRIC:
        remarks.append(TOO_ASYMMETRIC.format(found.notes["asymmetry"]))
    return remarks


def _moves_of(
    found: _Found, mask: Tensor | None, deviation: float, precision: float, is_plain: bool
) -> list[FoundDirection]:
    """What was found as moves, each with its sign and the step of strength 1; those of rounding are left out.

    Args:
        found: of the search.
        mask: where it looked.
        deviation: standard deviation of the prediction, or of its picture.
        precision: share of the largest effect below which values are rounding.
        is_plain: whether the effects are those on the prediction without guidance, which the moves' notes then tell.
    """
    moves, values, residuals = [], found.triplets.values, found.triplets.residuals
    for i in range(int((values > precision * found.largest).sum())):
        vector, effect = found.vectors[i : i + 1], found.effects[i : i + 1]
        seen = effect if mask is None else mask * effect
        left = 1.0 if found.left is None else float(found.left[i])
        if left <= NOTHING_LEFT or not float(seen.norm()) > precision * found.largest:
            continue
        if seen.sum() < 0:
            vector, effect = -vector, -effect
        inside_mask = torch.ones_like(effect) if mask is None else mask.expand_as(effect)
        rms = float(((effect.square() * inside_mask).sum() / inside_mask.sum()).sqrt())
        residual = float(residuals[i])
        own = {
            "singular_value": float(values[i]),
            "share_of_largest": float(values[i] / values[0]),
            "residual": None if math.isnan(residual) else residual,
        }
        if is_plain:  # a slider of the move acts everywhere
            own[CHANGE_NOTE] = CHANGE * float(effect.square().mean().sqrt()) / rms
        if found.left is not None:
            own["share_left_by_null_space"] = left
        moves.append(FoundDirection(vector, CHANGE * deviation / rms, own | found.notes))
    return moves


class _Found(NamedTuple):
    """What a search has found, and what is known of it.

    Attributes:
        triplets: of the masked J.
        vectors: their right singular vectors as moves, (k, ...) of unit norm.
        effects: J of these, not masked.
        left: share of each vector's norm that a projection after the search has left; None where there was none.
        largest: |J v| of the strongest move met.
        notes: for the report of every move.
        stopped: whether it was stopped before it converged.
    """

    triplets: SingularTriplets
    vectors: Tensor
    effects: Tensor
    left: Tensor | None
    largest: float
    notes: dict
    stopped: bool = False


def _by_svd(
    jacobian: Jacobian, probe: Probe, mask: Tensor | None, settings: Settings, null_rank: int, max_pairs: int
) -> _Found:
    """By Golub-Kahan; a restricted SVD inside starts from the best vector that the one outside has found (ours).

    In the paper's order it starts from the probe: what the search outside has found may lack moves of the inside alone.
    """
    converged, stopped, pairs, largest = True, False, 0, 0.0
    null, image, after = None, None, settings.projection == PROJECT_AFTER
    outside_start = first_start(jacobian, probe, 1 - mask) if null_rank else None
    if outside_start is not None and outside_start.any():  # else nothing changes outside of the mask
        outside = RestrictedOperator(jacobian, 1 - mask, record=True)
        triplets = _outside(outside, outside_start, null_rank, max_pairs)
        converged, pairs, largest = triplets.converged, triplets.pairs, float(triplets.values[0])
        stopped = _is_stopped(triplets, max_pairs)
        space, null = KrylovSpace.of(outside), triplets.right
        null_effects = space.apply(null)
        image = None if after else _best_inside(space, null, mask, settings.count)
        del outside, space  # and all that is recorded there
    null_space = None if null is None or after else _columns(null)
    operator = RestrictedOperator(jacobian, mask, null_space, record=True)
    if image is None:
        image = probe.image
    start = first_start(jacobian, probe, mask) if null is None else operator.rmatvec(image)
    found = partial_svd(operator.matvec, operator.rmatvec, start, settings.count, max_pairs=max_pairs)
    notes = {"converged": converged and found.converged, "pairs": pairs + found.pairs}
    stopped = stopped or _is_stopped(found, max_pairs)
    space = KrylovSpace.of(operator)
    largest = max(largest, float(space.images.norm(dim=1).max()))
    effects, left = space.apply(found.right), None
    vectors = found.right
    if after and null is not None:
        vectors, effects, left = _projected(vectors, effects, null, null_effects)
    return _Found(found, vectors, effects, left, largest, notes, stopped)


def _projected(vectors: Tensor, effects: Tensor, null: Tensor, null_effects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors (k, ...) off orthonormal ones (r, ...), normalised again, with J of them, by known products alone.

    Returns:
        The vectors, their effects, and the norms (k,) that the projection has left.
    """
    moved, changed = vectors.flatten(1), effects.flatten(1)
    for _ in range(2):  # one pass leaves rounding errors of the size of what it removes
        parts = moved @ null.flatten(1).T  # k r
        moved, changed = moved - parts @ null.flatten(1), changed - parts @ null_effects.flatten(1)
    left = moved.norm(dim=1)
    scale = left.clamp_min(1e-30)[:, None]
    return (moved / scale).view_as(vectors), (changed / scale).view_as(effects), left


def _is_stopped(found: SingularTriplets, max_pairs: int) -> bool:
    """Whether the bound on the pairs ended a search; one that has found all there is can end before it, too."""
    return not found.converged and found.pairs >= max_pairs


def _best_inside(space: KrylovSpace, null: Tensor, mask: Tensor, count: int) -> Tensor | None:
    """The image J v (1, ...) of the best moves inside that the search outside has come across; None where of none."""
    if len(space) <= len(null):
        return None
    return space.apply(space.off(null).triplets(count, mask).right.sum(dim=0, keepdim=True))


def _outside(outside: RestrictedOperator, start: Tensor, rank: int, max_pairs: int) -> SingularTriplets:
    """What changes the outside of the mask most."""
    return partial_svd(outside.matvec, outside.rmatvec, start, rank, max_pairs=max(max_pairs, rank + 20))


def _columns(vectors: Tensor) -> Tensor:
    """Vectors (r, ...) as columns (1, N, r)."""
    return vectors.flatten(1).T[None]


def first_start(jacobian: Jacobian, probe: Probe, mask: Tensor | None) -> Tensor:
    """The start (1, ...) of an SVD of P J: J'P J v with the probe v; without a mask the probe's J'w, which is known."""
    return probe.back if mask is None else jacobian.rmatvec(mask * probe.image)


def forward_products(checked: int, cost: int, count: int, null_rank: int) -> int:
    """Products, of `cost` evaluations each, of a forward-only search after a self-check of `checked` evaluations.

    As many as FORWARD_EVALUATIONS leave, and at least twice `count` beside the null space.
    """
    return max((FORWARD_EVALUATIONS - checked) // cost, 2 * count + null_rank - 1)


def _forward_only(
    jacobian: Jacobian, probe: Probe, mask: Tensor | None, settings: Settings, null_rank: int, products: int
) -> _Found:
    """Null space and masked directions from one Krylov space of approximate products, and the asymmetry of J."""
    space = ForwardKrylovSpace(jacobian.approximate_matvec, probe.vector, products + 1, image=probe.image, mask=mask)
    rank = max(0, min(null_rank, len(space) - settings.count))
    null, after = space.triplets(rank, 1 - mask).right if rank else None, settings.projection == PROJECT_AFTER
    found = (space if null is None or after else space.off(null)).triplets(settings.count, mask)
    notes = {"asymmetry": space.asymmetry, "products": space.products, "products_by": jacobian.approximate_mode}
    vectors, effects, left = found.right, space.apply(found.right), None
    if after and null is not None:
        vectors, effects, left = _projected(vectors, effects, null, space.apply(null))
    return _Found(found, vectors, effects, left, float(space.images.norm(dim=1).max()), notes)


def t_loco(search: Search, *, max_pairs: int = MAX_PAIRS) -> list[FoundDirection]:
    """T-LOCO Edit: v = J_target' q with q = P (D(x, target) - D(x, source)), projected off a null space.

    The null space is spanned by the leading right singular vectors of J_source outside the mask. Both Jacobians are
    those of the prediction under the settings' `jacobian_guidance`, and with a `decode` of `search` they and q are
    those of its picture; q has the guidance of the settings.
    The step of strength 1 is where the linear change inside the mask is as large as q (ours).

    Source: arXiv 2409.02374, section 3.3 and algorithm 2.

    Raises:
        NoBackwardError: there is no backward pass that can be trusted.
        TargetDerivativeError: forward and backward products under the target prompt do not agree.
        EqualPredictionsError: the words change nothing.
        NothingInsideError: they change nothing inside the mask.
        NothingToMoveError: no move of the latent brings about what they change.
    """
    mask, null_rank = search.mask, search.settings.null_rank
    with search.checked(backward=True, as_chosen=True) as check:
        if not check.backward:
            msg = f"T-LOCO needs a backward pass, and this model has none that can be trusted. {check.sentence}"
            raise NoBackwardError(msg)
        source, probe = check.jacobian, check.probe
        q = inside(words_difference(search, source.value, as_chosen=True), mask)
        null_space, notes = None, {"pairs": 0}
        if null_rank and has_outside(mask):
            outside = RestrictedOperator(source, 1 - mask)
            start = first_start(source, probe, 1 - mask)
            if start.any():  # else nothing changes outside of the mask
                null = _outside(outside, start, null_rank, max_pairs)
                null_space = _columns(null.right)
                notes = {"pairs": null.pairs, "converged": null.converged}
                if _is_stopped(null, max_pairs):
                    search.remarks.append(NOT_CONVERGED.format(null.pairs))
        source.release()  # one kept graph at a time
        target = search.jacobian(TARGET, like=source, as_chosen=True)
        vector, raw, image = _pulled_back(target, q, null_space, probe.tolerance)
        notes["share_left_by_null_space"] = float(vector.norm() / raw.norm())
    return [FoundDirection(vector / vector.norm(), matching_step(image, q, mask), notes)]


def _pulled_back(
    target: Jacobian, q: Tensor, null_space: Tensor | None, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """v = J'q off the null space, J'q itself, and J v / |v|, checked against each other."""
    raw = target.rmatvec(q)
    target.release()
    vector = raw if null_space is None else project_off(raw, null_space)
    if not raw.any():
        raise NothingToMoveError(NO_MOVE)
    if vector.norm() <= NOTHING_LEFT * raw.norm():
        raise EverythingRuledOutError(RULED_OUT)
    unit = vector / vector.norm()
    image = target.matvec(unit)
    disagreement = abs(float((q * image).sum() - (raw * unit).sum())) / float(raw.norm())
    if not disagreement <= tolerance:
        msg = (
            f"Derivatives passed their self-check under the prompt '{SOURCE}', but forward and backward products under"
            f" '{TARGET}' disagree by {disagreement:.1e}."
        )
        raise TargetDerivativeError(msg)
    return vector, raw, image


def has_outside(mask: Tensor | None) -> bool:
    """Whether anything lies outside a mask."""
    return mask is not None and bool((mask < 1).any())


def _loco_evaluations(settings: Settings, masked: bool) -> float:
    null_rank = settings.null_rank if masked else 0
    check, each = check_evaluations(settings, settings.backward), guidance_evaluations(settings.jacobian_guidance)
    if not settings.backward:
        return each * (check + forward_products(check, 1, settings.count, null_rank))
    return each * (check + pairs_evaluations(null_rank) + pairs_evaluations(settings.count))


def _t_loco_evaluations(settings: Settings, masked: bool) -> float:
    null_rank = settings.null_rank if masked else 0
    # and the backward pass and the check under the target prompt
    products = check_evaluations(settings, True) + pairs_evaluations(null_rank) + 5
    guidance = settings.jacobian_guidance
    return guidance_evaluations(guidance) * products + words_evaluations(settings, guidance)


LOCO = Method(
    name="LOCO",
    label="without words, by derivatives in a mask (LOCO)",
    summary="needs no words; finds the moves of the latent that change the masked part most and the rest least",
    run=loco,
    evaluations=_loco_evaluations,
    reads=("mask", "decode", "count", "null_rank", "projection", "guidance", "guided", "seed", "derivatives"),
    compares_words=False,
    finds_several=True,
)
T_LOCO = Method(
    name="T-LOCO",
    label="words, by derivatives in a mask (T-LOCO)",
    summary="moves the latent alone towards the words, and leaves what lies outside the mask nearly unchanged",
    run=t_loco,
    evaluations=_t_loco_evaluations,
    reads=("mask", "decode", "null_rank", "guidance", "guided", "seed", "words_source", "derivatives"),
)
