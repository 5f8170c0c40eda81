"""Identify: one entry for all methods, from a denoiser and an encoded picture to moves of the latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import DerivativeError, InputError, ZeroOperatorError
from .hessian_directions import delta_score, low_pass, move_by, newton, newton_forward, score_difference
from .jacobian_directions import EMPTY, NOTHING_INSIDE, Move, forward_products, loco, t_loco
from .operators import DIFFERENCES, DOUBLE_BACKWARD, FORWARD_AD, Jacobian
from .self_check import SelfCheck, self_check

LOCO, T_LOCO, HSDS, LOW_PASS, DDS, TEXT = "LOCO", "T-LOCO", "HSDS", "HSDS low-pass", "DDS", "text"
METHODS = (HSDS, TEXT, T_LOCO, LOCO, DDS, LOW_PASS)
NEEDS_TEXT = (HSDS, LOW_PASS, DDS, T_LOCO, TEXT)
AUTOMATIC, FORWARD_ONLY = "automatic", "forward only"
DERIVATIVES = (AUTOMATIC, FORWARD_ONLY, DIFFERENCES, DOUBLE_BACKWARD)
HAS_TEXT_PART = (HSDS, LOW_PASS, DDS, TEXT)


@dataclass(frozen=True)
class Settings:
    """How to look for directions.

    Attributes:
        method: one of METHODS.
        count: directions to find (LOCO; the text methods find one).
        null_rank: directions outside the mask that LOCO and T-LOCO project off.
        keep: number of keep pairs among the denoiser's prompts ("keep k present", "keep k absent").
        guidance: guidance of the differences between prompts.
        damping: damping of the least-squares method, relative to K = 1.
        max_pairs: bound on the products with J and J' of the least-squares method.
        seed: of the solvers' start vectors.
        derivatives: AUTOMATIC, FORWARD_ONLY (no backward pass), DIFFERENCES (neither that nor forward AD: memory as in
            sampling) or DOUBLE_BACKWARD (no forward AD). T-LOCO takes a backward pass with any of them.
    """

    method: str
    count: int = 1
    null_rank: int = 5
    keep: int = 0
    guidance: float = 1.0
    damping: float = 0.01
    max_pairs: int = 16
    seed: int = 0
    derivatives: str = AUTOMATIC


def find_moves(
    denoiser: Denoiser, x: Tensor, sigma: float, mask: Tensor | None, settings: Settings
) -> tuple[list[Move], dict]:
    """Moves of the noisy latent x (1, C, H, W) at sigma, found by `settings.method`, and notes for the report.

    The denoiser answers to the prompts "source" and, as the method needs them, "target", "free" and the keep pairs.
    """
    forced = settings.derivatives in (DIFFERENCES, DOUBLE_BACKWARD)
    source = Jacobian(denoiser, x, sigma, way=settings.derivatives if forced else FORWARD_AD)
    with_reverse = settings.derivatives in (AUTOMATIC, DOUBLE_BACKWARD)
    wants_reverse = settings.method == T_LOCO or (settings.method in (LOCO, HSDS) and with_reverse)
    try:
        check = self_check(source, settings.seed, wants_reverse)
        if settings.method == T_LOCO and not check.reverse:
            msg = (
                "Method 'T-LOCO' needs a backward pass, and this model has none that can be trusted."
                f" {check.sentence} Use 'HSDS' or 'LOCO', which can do without."
            )
            raise DerivativeError(msg)
        notes = {"self_check": check.report()}
        moves = _moves(denoiser, source, mask, settings, check, notes)
        if not all(torch.isfinite(move.vector).all() and 0 < move.step < float("inf") for move in moves):
            raise ZeroOperatorError
    except ZeroOperatorError as error:
        raise InputError(NOTHING_INSIDE if settings.method == LOCO else EMPTY) from error
    finally:
        source.release()
    return moves, notes


def _moves(
    denoiser: Denoiser, source: Jacobian, mask: Tensor | None, settings: Settings, check: SelfCheck, notes: dict
) -> list[Move]:
    count, null_rank = settings.count, settings.null_rank
    if settings.method == LOCO:
        products = 0 if check.reverse else forward_products(check.evaluations, source.rough_cost, count, null_rank)
        return loco(source, check.probe, mask, count, null_rank, products=products)
    if settings.method == T_LOCO:
        target = source.under("target")
        return [t_loco(denoiser, source, target, check.probe, mask, null_rank, guidance=settings.guidance)]
    q, score_notes = score_difference(denoiser, source, settings.keep, mask, settings.guidance)
    notes |= score_notes
    if settings.method == HSDS:
        solve = newton if check.reverse else newton_forward
        d, solver_notes = solve(source, q, mask, settings.damping, settings.max_pairs)
        return [move_by(source, d, q, mask, solver_notes)]
    if settings.method == LOW_PASS:
        free = source.under("free")
        notes["self_check_free"] = self_check(free, settings.seed, reverse=False).report()
        return [move_by(source, low_pass(free, q), q, mask, {})]
    return [move_by(source, delta_score(q), q, mask, {})]
