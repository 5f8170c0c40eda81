"""Directions by Hessian score distillation: what the words change, filtered by the Hessian of log p.

The target signal is q = D(x, target) - D(x, source), a delta denoising score with paired noise in x0 units. K = a J is
the scaled Hessian of log p. Each filter f(K) turns q into a move d in x0 units; the latent moves by a d. The
published HSDS formula was not available to us: the filters here, their names and their use of keep prompts are our own
derivation from the gradient of delta score distillation (arXiv 2304.07090), in the spirit of arXiv 2411.08196.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anchor import orthonormal_span, project_off
from .bank import ForwardBank
from .denoiser import Denoiser
from .errors import InputError
from .jacobian_directions import Move, inside, text_difference, text_move
from .operators import Jacobian, masked, scaled_hessian
from .svd import least_squares


def score_difference(
    denoiser: Denoiser, source: Jacobian, keep: int, mask: Tensor | None, guidance: float
) -> tuple[Tensor, dict]:
    """q, with what it shares with the keep prompts projected off, inside the mask; and the cosines with each.

    Keep pair k is named "keep k present" and "keep k absent" among the denoiser's prompts; it costs 2 evaluations.

    Raises:
        InputError: the keep prompts hold on to all of q.
    """
    q = text_difference(denoiser, source, guidance)
    notes: dict = {}
    if keep:
        changes = [
            denoiser(source.x, source.sigma, f"keep {k} present", guidance)
            - denoiser(source.x, source.sigma, f"keep {k} absent", guidance)
            for k in range(keep)
        ]
        notes["keep_cosines"] = [float(torch.cosine_similarity(q.flatten(), p.flatten(), dim=0)) for p in changes]
        whole = q.norm()
        q = project_off(q, orthonormal_span(changes))
        if q.norm() <= 1e-3 * whole:  # what is left is rounding
            msg = (
                "'keep' holds still all that 'target' would change, so nothing is left to move. Keep only what is to"
                " stay as it is beside the wanted change."
            )
            raise InputError(msg)
    return inside(q, mask), notes


def delta_score(q: Tensor) -> Tensor:
    """f(K) = 1: the delta denoising score itself, d = q (arXiv 2304.07090), the control without a Hessian."""
    return q


def low_pass(free: Jacobian, q: Tensor) -> Tensor:
    """H1, f(K) = K: d = K q, K at the prompt that leaves the target unnamed (ours)."""
    return scaled_hessian(free)(q)


def newton(jacobian: Jacobian, q: Tensor, mask: Tensor | None, damping: float, max_pairs: int) -> tuple[Tensor, dict]:
    """H5: the smallest d whose effect K d on the denoised prediction is q: min |P (K d - q)|^2 + damping |d|^2 (ours).

    Solved by least squares on the Golub-Kahan bidiagonalisation, started at q.
    """
    a, _ = jacobian.denoiser.scale(jacobian.sigma)
    matvec, rmatvec = masked(jacobian, mask)
    d, pairs, residual = least_squares(
        lambda v: a * matvec(v), lambda u: a * rmatvec(u), q, damping=damping, max_pairs=max_pairs
    )
    return d, {"pairs": pairs, "least_squares_residual": residual}


def newton_forward(
    jacobian: Jacobian, q: Tensor, mask: Tensor | None, damping: float, max_products: int
) -> tuple[Tensor, dict]:
    """H5 without a backward pass: the same least squares inside the Krylov space of K and q, as damped GMRES (ours)."""
    bank = ForwardBank(scaled_hessian(jacobian, rough=True), q, max_products)
    d, residual = bank.least_squares(q, damping, mask)
    notes = {"products": bank.products, "products_by": jacobian.rough_way}
    return d, {**notes, "relative_misfit": residual, "asymmetry": bank.asymmetry}


def move_by(jacobian: Jacobian, d: Tensor, q: Tensor, mask: Tensor | None, notes: dict) -> Move:
    """The latent's move for d, with the step at which its linear effect is as large as q (one J v)."""
    return text_move(jacobian, d / d.norm(), q, mask, notes)
