"""The pullback method: moves of the noisy latent that change the features inside the network most.

They are the local basis of core/local_basis.py, along which a path may bend. Moves have the noisy latent's shape
(1, C, H, W) or (1, C, 1, H, W), changes of the features that of the features (1, ...).

Source: arXiv 2302.12469 and 2307.12868, with the code released for the second. core/geometry.py compares the bases of
pictures.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .errors import NothingToMoveError, ShapeError, size_in_words
from .geometry import carried, carried_move
from .jacobian_directions import MAX_PAIRS
from .local_basis import basis_at, checked_features
from .operators import DIFFERENCE_STEP, DIFFERENCES, Jacobian
from .search import (
    CHANGE,
    CHANGE_NOTE,
    FEWER,
    GEODESIC,
    GUIDED,
    STRAIGHT,
    FoundDirection,
    Method,
    Search,
    Settings,
    check_evaluations,
    pairs_evaluations,
)
from .self_check import AGREEMENT, DIFFERENCE_STEPS, SelfCheck

SHOTS = 4  # the most steps of geodesic shooting, each of which but the first needs a basis of its own
RANK = 5  # the fewest vectors of these bases, on which a change of the features is projected
SHOT_TOLERANCE = 1e-2  # of their residuals
OTHER_RANK = 20  # vectors of the basis on which a direction of another picture is projected; the papers take 50
NOT_CONVERGED = (
    "The search stopped after {} pairs of products before it converged. The directions can be used, but there may be"
    " stronger ones."
)


def pullback(search: Search, *, shots: int = SHOTS, max_pairs: int = MAX_PAIRS) -> list[FoundDirection]:
    """The leading local basis of the latent, as moves by the path of the settings.

    STRAIGHT: the move is v_i.

    GUIDED, x-space guidance: see `guided_path`; `path_steps` steps of the settings' `path_delta` and `path_gamma`.
    Where the model rounds so much that a probe of that length would be lost in the rounding, a longer one is taken
    (ours); the notes tell it.

    GEODESIC, geodesic shooting: see `geodesic_path`; `path_steps` steps, at most `shots`. The path is as long as the
    straight move of strength 1 (ours).

    A slider is linear in its strength, and a bent path is not: the path is walked once, and the move is the straight
    line to its end, stretched, and mirrored for the other sign. The notes say at which strength that line ends where
    the path did (`path_strength`; negative where the path went to the other side), and the cosine of the move and v_i
    (`path_cosine`) (ours).

    The step of strength 1 makes the root mean square change of D CHANGE standard deviations of D, and the mean change
    is positive, as LOCO has both without a mask. There is no mask in this method.

    `feature` of each direction is u_i with the sign of the move, also where the path bends: what carries the direction
    over to other pictures. Moves of the basis that change nothing of the prediction are left out.

    Args:
        search: the point.
        shots: see above.
        max_pairs: bound on the pairs of products of a basis.

    Raises:
        NoFeaturesError: the host reads no features.
        NoBackwardError: there is no backward pass that can be trusted.
        NothingToMoveError: nothing that changes the features changes the prediction.
        NothingInCommonError: a direction has no part among those a step further on.
    """
    settings, moves = search.settings, []
    with checked_features(search) as check:
        jacobian = check.jacobian
        basis = basis_at(jacobian, check.probe.back, settings.count, max_pairs=max_pairs)
        jacobian.release()  # one kept graph at a time
        if not basis.converged and basis.pairs >= max_pairs:
            search.remarks.append(NOT_CONVERGED.format(basis.pairs))
        with search.checked(backward=False, like=jacobian, note="prediction_check") as of_prediction:
            delta = _probe_length(settings.path_delta, of_prediction, search)
            for number in range(len(basis)):
                own = slice(number, number + 1)
                notes = {
                    "singular_value": float(basis.values[number]),
                    "residual": float(basis.residuals[number]),
                    "converged": basis.converged,
                    "pairs": basis.pairs,
                }
                found = _found(of_prediction, basis.moves[own], basis.changes[own], notes)
                if found is not None and settings.path == GUIDED:
                    steps, gamma = settings.path_steps, settings.path_gamma
                    end = guided_path(search, found.vector, steps=steps, delta=delta, gamma=gamma)
                    told = {"path_steps": settings.path_steps, "path_delta": delta}
                    found = _bent(of_prediction, found, end, told)
                elif found is not None and settings.path == GEODESIC:
                    steps, rank = min(settings.path_steps, shots), max(RANK, settings.count)
                    end, cosines = geodesic_path(jacobian, found, steps=steps, rank=rank, max_pairs=max_pairs)
                    found = _bent(of_prediction, found, end, {"path_steps": steps, "path_cosines": cosines})
                if found is not None:
                    moves.append(replace(found, notes=found.notes | {"path": settings.path}))
    if not moves:
        msg = "The moves that change the features of the network do not change its prediction."
        raise NothingToMoveError(msg)
    if len(moves) < settings.count:
        search.remarks.append(FEWER.format(len(moves), settings.count))
    return moves


def carry_over(search: Search, change: Tensor, *, rank: int = OTHER_RANK, max_pairs: int = MAX_PAIRS) -> FoundDirection:
    """A direction of another picture, or a mean over pictures, as a move of this one, by its change of the features.

    The move is V U'u of the local basis here, normalised; its step is that of `pullback`, its sign that of the change.
    The notes tell the cosine |U'u|, by which it is what was asked for, and `feature` is the part that carried over.

    Source: arXiv 2302.12469 and 2307.12868.

    Args:
        search: the point; of its settings, those of the self-check count.
        change: u (1, ...), of the layer that the search's features are of.
        rank: vectors of the local basis.
        max_pairs: bound on the pairs of products, raised to `rank` and some more.

    Raises:
        ShapeError: the change is not of the features' size here.
        NothingInCommonError: no move of this picture makes any part of it.
        NothingToMoveError: what carries over does not change the prediction here.
        NoFeaturesError, NoBackwardError: as `pullback`.
    """
    with checked_features(search) as check:
        jacobian = check.jacobian
        if change.shape != jacobian.value.shape:
            here, given = (size_in_words(one[0]) for one in (jacobian.value, change))
            msg = f"The direction changes features of the size {given}, but those of this picture are {here}."
            raise ShapeError(msg)
        change = change.to(jacobian.value)
        # from J'u the solver meets first what the change has to do with
        start = jacobian.rmatvec(change)
        basis = basis_at(
            jacobian, start if start.any() else check.probe.back, rank, max_pairs=max(max_pairs, rank + 20)
        )
        jacobian.release()
        move, cosine = carried_move(change, basis.changes, basis.moves)
        notes = {"cosine": cosine, "rank": len(basis), "pairs": basis.pairs, "converged": basis.converged}
        with search.checked(backward=False, like=jacobian, note="prediction_check") as of_prediction:
            part, _ = carried(change, basis.changes)
            found = _found(of_prediction, move, part, notes, signed=False)
    if found is None:
        msg = "What carries over of the direction does not change the prediction for this picture."
        raise NothingToMoveError(msg)
    return found


@torch.no_grad()
def guided_path(search: Search, move: Tensor, *, steps: int, delta: float, gamma: float) -> Tensor:
    """Where x-space guidance along a unit move v leads: the end of the path minus x, (1, C, H, W).

    x <- x + c gamma (eps(x + c delta v) - eps(x)) is repeated `steps` times, with the predicted noise
    eps = (x - a D) / b of the source prompt without guidance, and c = (a^2 + b^2)^(1/2), which turns the papers'
    lengths, those of a latent with a^2 + b^2 = 1, into the model's own. Each step evaluates both points at once.

    Source: arXiv 2307.12868 (x-space guidance) and its released code.
    """
    denoiser, sigma = search.denoiser, search.sigma
    a, b = denoiser.scale(sigma)
    unit = (a * a + b * b) ** 0.5
    x = search.x
    for _ in range(steps):
        points = torch.cat([x, x + unit * delta * move])
        noise = denoiser.noise_of(points, denoiser(points, sigma), sigma)
        x = x + unit * gamma * (noise[1:] - noise[:1])
    return x - search.x


@torch.no_grad()
def geodesic_path(
    jacobian: Jacobian, first: FoundDirection, *, steps: int, rank: int, max_pairs: int = MAX_PAIRS
) -> tuple[Tensor, list[float]]:
    """Where geodesic shooting from a move leads: the end of the path minus x, and how well u carried over each time.

    After each of `steps` steps of equal length, whose sum is `first.step`, the basis is found anew, u is projected on
    its changes, and the next step goes along the move of the projection (`carried_move`). The cosines are those of it.

    Source: arXiv 2302.12469 (geodesic shooting); number and length of the steps are ours.

    Args:
        jacobian: J_h at x, checked.
        first: the move to start with, its step, and its change of the features.
        steps: pieces of the path.
        rank: vectors of the basis at each point.
        max_pairs: bound on the pairs of products of each basis.
    """
    x, move, change, cosines = jacobian.x, first.vector, first.feature, []
    for number in range(steps):
        if number:
            here = replace(jacobian, x=x)
            try:
                start = here.rmatvec(change)
                basis = basis_at(here, start, rank, tolerance=SHOT_TOLERANCE, max_pairs=max_pairs)
            finally:
                here.release()
            move, cosine = carried_move(change, basis.changes, basis.moves)
            change, _ = carried(change, basis.changes)
            cosines.append(cosine)
        x = x + (first.step / steps) * move
    return x - jacobian.x, cosines


def _bent(of_prediction: SelfCheck, straight: FoundDirection, end: Tensor, notes: dict) -> FoundDirection | None:
    """The move to the end of a path that began along `straight`; None where it does not change the prediction."""
    found = _found(of_prediction, end, straight.feature, straight.notes | notes)
    if found is None:
        return None
    cosine = float((found.vector * straight.vector).sum())
    walked = float((found.vector * end).sum())  # below 0 where the sign of the move is not that of the path
    told = found.notes | {"path_strength": walked / found.step, "path_cosine": cosine}
    # no other move of the basis changes the features along u_i, so the part along v_i has the sign of u_i
    return replace(found, notes=told, feature=-straight.feature if cosine < 0 else straight.feature)


def _found(
    of_prediction: SelfCheck, move: Tensor, change: Tensor, notes: dict, *, signed: bool = True
) -> FoundDirection | None:
    """A move with its step, and with `signed` its sign; None where it does not change the prediction.

    Args:
        of_prediction: J of the prediction and its self-check, whose random vector says what effect is rounding.
        move: (1, C, H, W) of any length.
        change: of the features.
        notes: for the report.
        signed: whether move and change get the sign for which the mean change of D is positive.
    """
    length = move.norm()
    if length == 0:
        return None
    vector = move / length
    jacobian, probe = of_prediction.jacobian, of_prediction.probe
    effect = jacobian.matvec(vector)
    if effect.norm() <= jacobian.precision * probe.image.norm() / probe.vector.norm():
        return None
    size = float(effect.square().mean().sqrt())
    sign = -1.0 if signed and effect.sum() < 0 else 1.0
    step, notes = CHANGE * float(jacobian.value.std()) / size, notes | {CHANGE_NOTE: CHANGE}
    return FoundDirection(sign * vector, step, notes, feature=sign * change)


def _probe_length(delta: float, check: SelfCheck, search: Search) -> float:
    """`delta`, or where the prediction is rounded, a step at which its differences are not lost in the rounding."""
    step = DIFFERENCE_STEP
    if check.jacobian.mode == DIFFERENCES:
        step = check.jacobian.difference_step
    elif check.probe.tolerance > AGREEMENT:
        step = DIFFERENCE_STEPS[-1]
    if step == DIFFERENCE_STEP:
        return delta
    a, b = search.denoiser.scale(search.sigma)
    return max(delta, step * float(search.x.norm()) / (a * a + b * b) ** 0.5)


def _evaluations(settings: Settings, _masked: bool) -> float:
    one = 2.0  # the effect of a move
    if settings.path != STRAIGHT:
        one *= 2
    if settings.path == GUIDED:
        one += 2 * settings.path_steps
    elif settings.path == GEODESIC:
        bases = min(settings.path_steps, SHOTS) - 1
        one += bases * (3 + pairs_evaluations(max(RANK, settings.count)))
    checks = check_evaluations(settings, True) + check_evaluations(settings, False)
    return checks + pairs_evaluations(settings.count) + settings.count * one


PULLBACK = Method(
    name="pullback",
    label="without words, by derivatives inside the network (pullback)",
    summary="needs no words; finds the moves of the latent that change the features inside the network most, which can"
    " be carried over to other pictures",
    run=pullback,
    evaluations=_evaluations,
    reads=("count", "seed", "derivatives", "path", "path_steps", "path_delta", "path_gamma", "features"),
    compares_words=False,
    finds_several=True,
)
