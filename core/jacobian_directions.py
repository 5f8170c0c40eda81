"""Directions from the Jacobian of the denoised prediction: LOCO Edit and T-LOCO Edit (arXiv 2409.02374).

All tensors have the noisy latent's shape (1, C, H, W); masks have shape (1, 1, H, W) with values 0 to 1. Mask and
Jacobian live in the latent, where the paper has them in decoded pixels (ours: far cheaper).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .anchor import project_off
from .bank import Bank, ForwardBank, RememberedProducts
from .denoiser import Denoiser
from .errors import DerivativeError, InputError, ZeroOperatorError
from .operators import Jacobian, Probe, masked
from .svd import SingularTriplets, partial_svd

EMPTY = (
    "The direction came out empty: source and target say the same to this model at this level. Write prompts that"
    " differ more, or raise 'level' of Invert Image."
)
ONLY_AT_SOURCE = (
    "The derivatives of this model passed their self-check under 'source', but forward and backward products under"
    " 'target' do not agree. Use the method 'HSDS' or 'LOCO', which take none there."
)
NOTHING_INSIDE = (
    "LOCO found nothing that moves inside the mask: the model's prediction does not change there. Paint a larger mask,"
    " or raise 'level' of Invert Image."
)
FORWARD_EVALUATIONS = 40  # of a forward-only search with its self-check


@dataclass(frozen=True)
class Move:
    """A unit-norm move of the latent, the step that strength 1 takes, and what is known of it."""

    vector: Tensor
    step: float
    notes: dict


def loco(
    jacobian: Jacobian,
    probe: Probe,
    mask: Tensor | None,
    count: int,
    null_rank: int,
    *,
    max_pairs: int = 60,
    products: int = 0,
) -> list[Move]:
    """LOCO Edit: what moves the inside of the mask most among the moves that hold the outside still.

    Held still are the `null_rank` leading right singular vectors of J outside the mask. The paper takes the singular
    vectors inside and projects them off these; here they are those of J restricted to what is orthogonal to these, so
    that each is the strongest of its kind (ours; without a mask, or with rank 0, the two are the same).

    The step of strength 1 makes the root mean square change of D inside the mask 0.25 of the standard deviation of D
    (our convention, so that one number means about the same visible change on every model).

    With `products` both come from one bank of so many products J v beside the probe's, with no backward pass.

    Source: arXiv 2409.02374, section 3 and algorithm 1. Signs: the mean change inside the mask is positive (ours).
    """
    null_rank = null_rank if _has_outside(mask) else 0
    search, limit = (_forward_only, products) if products else (_both_ways, max_pairs)
    found, bank, notes = search(jacobian, probe, mask, count, null_rank, limit)
    # below this a singular value is rounding: there are no more directions
    least = 1e-6 * float(bank.images.norm(dim=1).max())
    deviation = float(jacobian.value.std())
    moves = []
    for i in range(int((found.values > least).sum())):
        vector = found.right[i : i + 1]
        effect = bank.apply(vector)
        weight = torch.ones_like(effect) if mask is None else mask.expand_as(effect)
        if (effect * weight).sum() < 0:
            vector, effect = -vector, -effect
        rms = float(((effect * weight).square().sum() / weight.sum()).sqrt())
        residual = None if products else float(found.residuals[i])
        moves.append(
            Move(
                vector,
                0.25 * deviation / rms,
                {"singular_value": float(found.values[i]), "residual": residual, **notes},
            )
        )
    if not moves:
        raise ZeroOperatorError
    return moves


Found = tuple[SingularTriplets, Bank, dict]


def _both_ways(
    jacobian: Jacobian, probe: Probe, mask: Tensor | None, count: int, null_rank: int, max_pairs: int
) -> Found:
    """By Golub-Kahan; the search inside starts from the best guess that the bank of the one outside holds (ours)."""
    held, converged, pairs = None, True, 0
    if null_rank:
        products = RememberedProducts(jacobian)
        null, held = _null_space(products, probe, mask, null_rank, max_pairs)
        converged, pairs = null.converged, null.pairs
        bank, image = products.bank(), probe.image
        if len(bank) > len(null.right):  # the best moves inside that it holds already
            image = bank.apply(bank.off(null.right).triplets(count, mask).right.sum(dim=0, keepdim=True))
        start = masked(jacobian, mask, held)[1](image)
    else:
        start = first_start(jacobian, probe, mask)
    products = RememberedProducts(jacobian)
    inside = partial_svd(*masked(products, mask, held), start, count, max_pairs=max_pairs)
    return inside, products.bank(), {"converged": converged and inside.converged, "pairs": pairs + inside.pairs}


def forward_products(checked: int, cost: int, count: int, null_rank: int) -> int:
    """Products, of `cost` evaluations each, of a forward-only search after a self-check of `checked` evaluations.

    As many as FORWARD_EVALUATIONS leave, and enough to hold twice `count` beside the null space.
    """
    return max((FORWARD_EVALUATIONS - checked) // cost, 2 * count + null_rank - 1)


def _null_space(operator, probe: Probe, mask: Tensor, rank: int, max_pairs: int) -> tuple[SingularTriplets, Tensor]:
    """What changes the outside of the mask most, as triplets and as orthonormal columns (1, N, rank)."""
    start = first_start(operator, probe, 1 - mask)
    null = partial_svd(*masked(operator, 1 - mask), start, rank, max_pairs=max(max_pairs, rank + 20))
    return null, null.right.flatten(1).T[None]


def first_start(operator, probe: Probe, mask: Tensor | None) -> Tensor:
    """Where a search in P J starts: J'P J v (1, ...) of the probe v, which without a P costs nothing more."""
    return probe.back if mask is None else operator.rmatvec(mask * probe.image)


def _forward_only(
    jacobian: Jacobian, probe: Probe, mask: Tensor | None, count: int, null_rank: int, products: int
) -> Found:
    """Null space, masked directions and asymmetry of J from one forward-only bank, which rough products suffice for."""
    bank = ForwardBank(jacobian.rough_matvec, probe.vector, products + 1, image=probe.image, weight=mask)
    rank = max(0, min(null_rank, len(bank) - count))
    rest = bank.off(bank.triplets(rank, 1 - mask).right) if rank else bank
    notes = {"asymmetry": bank.asymmetry, "products": bank.products, "products_by": jacobian.rough_way}
    return rest.triplets(count, mask), bank, notes


def t_loco(
    denoiser: Denoiser,
    source: Jacobian,
    target: Jacobian,
    probe: Probe,
    mask: Tensor | None,
    null_rank: int,
    *,
    guidance: float = 1.0,
    max_pairs: int = 60,
) -> Move:
    """T-LOCO Edit: v = J_target' q with q = P (D(x, target) - D(x, source)), projected off the outside of J_source.

    The step of strength 1 is where the linear change inside the mask is as large as q (ours).

    Source: arXiv 2409.02374, section 3.3 and algorithm 2.
    """
    q = text_difference(denoiser, source, guidance)
    q = inside(q, mask)
    held, notes = None, {"pairs": 0}
    if null_rank and _has_outside(mask):
        null, held = _null_space(source, probe, mask, null_rank, max_pairs)
        notes = {"pairs": null.pairs}
    source.release()  # one kept graph at a time
    raw = target.rmatvec(q)
    target.release()
    vector = raw if held is None else project_off(raw, held)
    if not vector.any():
        raise ZeroOperatorError
    kept = float(vector.norm() / raw.norm())
    vector = vector / vector.norm()
    image = target.matvec(vector)
    if not abs(float((q * image).sum() - (raw * vector).sum())) <= probe.tolerance * float(raw.norm()):
        raise DerivativeError(ONLY_AT_SOURCE)
    return Move(vector, _matching_step(image, q, mask), {"share_left_by_null_space": kept, **notes})


def text_move(jacobian: Jacobian, vector: Tensor, q: Tensor, mask: Tensor | None, notes: dict) -> Move:
    """The move along a unit-norm vector, with the step at which its linear effect is as large as q (one J v)."""
    return Move(vector, _matching_step(jacobian.matvec(vector), q, mask), notes)


def _matching_step(image: Tensor, q: Tensor, mask: Tensor | None) -> float:
    """The step at which an effect, inside the mask, is as large as q."""
    return float(q.norm() / (image if mask is None else mask * image).norm())


def text_difference(denoiser: Denoiser, source: Jacobian, guidance: float = 1.0) -> Tensor:
    """q = D(x, target) - D(x, source) at the same point: what the words change, in x0 units.

    Raises:
        InputError: nothing.
    """
    before = source.value if guidance == source.guidance else denoiser(source.x, source.sigma, "source", guidance)
    return inside(denoiser(source.x, source.sigma, "target", guidance) - before, None)


def inside(q: Tensor, mask: Tensor | None) -> Tensor:
    """What the words change inside the mask; an InputError where that is nothing."""
    q = q if mask is None else mask * q
    if not q.any():
        raise InputError(EMPTY)
    return q


def _has_outside(mask: Tensor | None) -> bool:
    return mask is not None and bool((mask < 1).any())
