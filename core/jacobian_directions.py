"""Directions from the Jacobian of the denoised prediction: LOCO Edit and T-LOCO Edit (arXiv 2409.02374).

All tensors have the noisy latent's shape (1, C, H, W); masks have shape (1, 1, H, W) with values 0 to 1. Mask and
Jacobian live in the latent, where the paper has them in decoded pixels (ours: far cheaper).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import Bank, ForwardBank, RememberedProducts
from .denoiser import Denoiser
from .errors import InputError, ZeroOperatorError
from .operators import Jacobian, masked
from .svd import SingularTriplets, partial_svd

EMPTY = (
    "The direction came out empty: source and target say the same to this model at this level. Write prompts that"
    " differ more, or raise 'level' of Invert Image."
)
NOTHING_INSIDE = (
    "LOCO found nothing that moves inside the mask: the model's prediction does not change there. Paint a larger mask,"
    " or raise 'level' of Invert Image."
)
# Products of the forward-only mode, two evaluations each: with the self-check and D(x) they make 40.
FORWARD_PRODUCTS = 16


@dataclass(frozen=True)
class Move:
    """A unit-norm move of the latent, the step that strength 1 takes, and what is known of it."""

    vector: Tensor
    step: float
    notes: dict


def loco(
    jacobian: Jacobian,
    mask: Tensor | None,
    count: int,
    null_rank: int,
    seed: int,
    *,
    max_pairs: int = 60,
    forward_only: bool = False,
) -> list[Move]:
    """LOCO Edit: leading right singular vectors of J inside the mask, projected off those of J outside it.

    The step of strength 1 makes the root mean square change of D inside the mask 0.25 of the standard deviation of D
    (our convention, so that one number means about the same visible change on every model).

    With `forward_only` both come from one bank of FORWARD_PRODUCTS products J v, or twice `count` if that is more,
    with no backward pass.

    Source: arXiv 2409.02374, section 3 and algorithm 1. Signs: the mean change inside the mask is positive (ours).
    """
    if forward_only:
        found = _forward_only(jacobian, mask, count, null_rank, seed)
    else:
        found = _both_ways(jacobian, mask, count, null_rank, seed, max_pairs)
    deviation = float(jacobian.predict(jacobian.x).std())
    moves = []
    for i in range(len(found.inside.values)):
        vector, kept, effect = found.off_null_space(i)
        weight = torch.ones_like(effect) if mask is None else mask.expand_as(effect)
        if (effect * weight).sum() < 0:
            vector, effect = -vector, -effect
        rms = float(((effect * weight).square().sum() / weight.sum()).sqrt())
        if not rms:
            raise ZeroOperatorError
        moves.append(
            Move(
                vector,
                0.25 * deviation / rms,
                {
                    "singular_value": float(found.inside.values[i]),
                    "residual": None if forward_only else float(found.inside.residuals[i]),
                    "share_left_by_null_space": kept,
                    **found.notes,
                },
            )
        )
    return moves


@dataclass(frozen=True)
class _Search:
    """Singular directions inside the mask, and outside if they are to be held still, each with the bank it is from."""

    inside: SingularTriplets
    bank: Bank
    null: SingularTriplets | None
    null_bank: Bank | None
    notes: dict

    def off_null_space(self, i: int) -> tuple[Tensor, float, Tensor]:
        """Direction i off the null space (1, ...), the share of its norm that was left, and J of it from the banks."""
        right = self.inside.right[i : i + 1]
        effect = self.bank.apply(right)
        if self.null is None:
            return right, 1.0, effect
        vector, left = project_off_null_space(right, self.null)
        return vector, left, (effect - self.null_bank.apply(right - left * vector)) / left


def _both_ways(
    jacobian: Jacobian, mask: Tensor | None, count: int, null_rank: int, seed: int, max_pairs: int
) -> _Search:
    """By Golub-Kahan; the second search starts from the best guess that the bank of the first holds (ours)."""
    products = RememberedProducts(jacobian)
    start = _random(jacobian, seed)
    start = start if mask is None else mask * start
    inside = partial_svd(*masked(products, mask), start, count, max_pairs=max_pairs)
    bank, notes = products.bank(), {"converged": inside.converged, "pairs": inside.pairs}
    if not _holds_outside(mask, null_rank):
        return _Search(inside, bank, None, None, notes)
    products = RememberedProducts(jacobian)
    guess = bank.triplets(null_rank, 1 - mask).left.sum(dim=0, keepdim=True)
    null = partial_svd(*masked(products, 1 - mask), guess, null_rank, max_pairs=max_pairs)
    notes = {"converged": inside.converged and null.converged, "pairs": inside.pairs + null.pairs}
    return _Search(inside, bank, null, products.bank(), notes)


def _forward_only(jacobian: Jacobian, mask: Tensor | None, count: int, null_rank: int, seed: int) -> _Search:
    """Masked directions, null space and asymmetry of J from one forward-only bank."""
    bank = ForwardBank(jacobian.matvec, _random(jacobian, seed), max(FORWARD_PRODUCTS, 2 * count))
    null = bank.triplets(null_rank, 1 - mask) if _holds_outside(mask, null_rank) else None
    return _Search(
        bank.triplets(count, mask), bank, null, bank, {"asymmetry": bank.asymmetry, "products": bank.products}
    )


def t_loco(
    denoiser: Denoiser,
    source: Jacobian,
    target: Jacobian,
    mask: Tensor | None,
    null_rank: int,
    seed: int,
    *,
    guidance: float = 1.0,
    max_pairs: int = 60,
) -> Move:
    """T-LOCO Edit: v = J_target' q with q = P (D(x, target) - D(x, source)), projected off the outside of J_source.

    The step of strength 1 is where the linear change inside the mask is as large as q (ours).

    Source: arXiv 2409.02374, section 3.3 and algorithm 2.
    """
    q = text_difference(denoiser, source, guidance)
    q = q if mask is None else mask * q
    null = None
    if _holds_outside(mask, null_rank):
        null = partial_svd(
            *masked(source, 1 - mask), (1 - mask) * _random(source, seed), null_rank, max_pairs=max_pairs
        )
    source.release()  # one kept graph at a time
    vector, kept = project_off_null_space(target.rmatvec(q), null)
    target.release()
    notes = {"share_left_by_null_space": kept, "pairs": 0 if null is None else null.pairs}
    return text_move(target, vector, q, mask, notes)


def text_move(jacobian: Jacobian, vector: Tensor, q: Tensor, mask: Tensor | None, notes: dict) -> Move:
    """The move along a unit-norm vector, with the step at which its linear effect is as large as q (one J v)."""
    matvec, _ = masked(jacobian, mask)
    return Move(vector, float(q.norm() / matvec(vector).norm()), notes)


def text_difference(denoiser: Denoiser, source: Jacobian, guidance: float = 1.0) -> Tensor:
    """q = D(x, target) - D(x, source) at the same point: what the words change, in x0 units (2 evaluations).

    Raises:
        InputError: the words change nothing.
    """
    q = denoiser(source.x, source.sigma, "target", guidance) - denoiser(source.x, source.sigma, "source", guidance)
    if not q.any():
        raise InputError(EMPTY)
    return q


def project_off_null_space(vector: Tensor, null: SingularTriplets | None) -> tuple[Tensor, float]:
    """v - V'V''v, normalised, and the share of the norm that was left."""
    norm = vector.norm()
    if null is not None:
        basis = null.right.flatten(1)
        vector = vector - (basis.T @ (basis @ vector.flatten())).view_as(vector)
    left = vector.norm()
    return vector / left, float(left / norm)


def _holds_outside(mask: Tensor | None, rank: int) -> bool:
    """Whether there is an outside of the mask, and it is to be held still."""
    return mask is not None and rank > 0 and bool((mask < 1).any())


def _random(jacobian: Jacobian, seed: int) -> Tensor:
    return torch.randn(jacobian.x.shape, generator=torch.Generator().manual_seed(seed)).to(jacobian.x)
