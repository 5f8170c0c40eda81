"""Identify: one entry for all methods, from a denoiser and an encoded picture to moves of the latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError
from .hessian_directions import delta_score, low_pass, move_by, newton, score_difference
from .jacobian_directions import Move, loco, t_loco
from .operators import Jacobian

LOCO, T_LOCO, HSDS, LOW_PASS, DDS, TEXT = "LOCO", "T-LOCO", "HSDS", "HSDS low-pass", "DDS", "text"
METHODS = (HSDS, TEXT, T_LOCO, LOCO, DDS, LOW_PASS)
NEEDS_TEXT = (HSDS, LOW_PASS, DDS, T_LOCO, TEXT)
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
    """

    method: str
    count: int = 1
    null_rank: int = 5
    keep: int = 0
    guidance: float = 1.0
    damping: float = 0.01
    max_pairs: int = 16
    seed: int = 0


def find_moves(
    denoiser: Denoiser, x: Tensor, sigma: float, mask: Tensor | None, settings: Settings
) -> tuple[list[Move], dict]:
    """Moves of the noisy latent x (1, C, H, W) at sigma, found by `settings.method`, and notes for the report.

    The denoiser answers to the prompts "source" and, as the method needs them, "target", "free" and the keep pairs.
    """
    source = Jacobian(denoiser, x, sigma)
    check = source.check(settings.seed)
    notes = {
        "self_check": {
            "sentence": check.sentence,
            "way": check.way,
            "difference": check.difference,
            "adjoint": check.adjoint,
            "repeat": check.repeat,
        }
    }
    try:
        moves = _moves(denoiser, source, mask, settings, notes)
    finally:
        source.release()
    for move in moves:
        if not torch.isfinite(move.vector).all() or not 0 < move.step < float("inf"):
            msg = (
                "The direction came out empty: source and target say the same to this model at this level. Write"
                " prompts that differ more, or raise 'level' of Invert Image."
            )
            raise InputError(msg)
    return moves, notes


def _moves(denoiser: Denoiser, source: Jacobian, mask: Tensor | None, settings: Settings, notes: dict) -> list[Move]:
    if settings.method == LOCO:
        return loco(source, mask, settings.count, settings.null_rank, settings.seed)
    if settings.method == T_LOCO:
        target = Jacobian(denoiser, source.x, source.sigma, "target")
        target.way = source.way
        return [t_loco(denoiser, source, target, mask, settings.null_rank, settings.seed, guidance=settings.guidance)]
    q, score_notes = score_difference(denoiser, source, settings.keep, mask, settings.guidance)
    notes |= score_notes
    if settings.method == HSDS:
        d, solver_notes = newton(source, q, mask, settings.damping, settings.max_pairs)
        return [move_by(source, d, q, mask, solver_notes)]
    if settings.method == LOW_PASS:
        free = Jacobian(denoiser, source.x, source.sigma, "free")
        free.way = source.way
        return [move_by(source, low_pass(free, q), q, mask, {})]
    return [move_by(source, delta_score(q), q, mask, {})]
