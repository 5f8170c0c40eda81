"""Exploring a picture without words: moves that each change one thing, from one set of products with the Jacobian.

A right singular vector of J = dD/dx changes several things at once where singular values are close to each other. Any
orthonormal mix of the leading ones spans the same moves, and the mix by `varimax_by_cell` makes their effects J v
sparse, each large in few cells of the picture and near zero elsewhere. Each move then acts where its effect is, at
every sampling step. Ours; rotating principal components towards sparsity is Kaiser's varimax (1958).

Moves and effects have the noisy latent's shape (k, C, H, W) or (k, C, 1, H, W); masks have one channel.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack

import torch
from torch import Tensor

from .errors import EverythingRuledOutError, NothingInsideError
from .jacobian_directions import ASYMMETRIC, RULED_OUT, TOO_ASYMMETRIC, has_outside
from .krylov import ForwardKrylovSpace, KrylovSpace
from .linalg import KrylovBasis, in_float64
from .operators import APPROXIMATE, RestrictedOperator
from .search import CHANGE_NOTE, FoundDirection, Method, Search, Settings, check_evaluations
from .self_check import SelfCheck
from .svd import partial_svd
from .words import COARSE, soft_mask

# What a search may spend on products: pairs with J and J', or evaluations where no backward pass is taken.
PAIRS, FORWARD_EVALUATIONS = 32, 60
MOST = 16  # singular vectors that are mixed, or `count` where that is more
WEAK = 0.12  # those with a singular value below this share of the largest are left out of the mix
SAME = 0.9  # |cosine| of two effects above which the weaker one is dropped
STEP = 0.125  # change of D at strength 1 in its standard deviations, half of LOCO's: strengths up to 3 stay plausible
FARTHEST = 0.075  # the longest step of strength 1, as a share of the noise's norm
NOTHING_INSIDE = "Nothing moves inside the mask: the model's prediction does not change there."
VALUE, MOVES, IMAGES, ASYMMETRY = "value", "moves", "images", "asymmetry"  # what is known of a picture
ROWS, COLUMNS = ("upper", "lower"), ("left", "right")
FEWER = "Only {} directions with a clear effect of their own were found, in place of the {} that were asked for."


def varimax_by_cell(effects: Tensor, *, iterations: int = 500, tolerance: float = 1e-7) -> Tensor:
    """The rotation R (k, k) that makes effects sparse over the cells of a picture, float64 on the CPU.

    With e_jp the energy, summed over channels, of effect sum_i R_ij E_i in cell p, it maximises `sparsity`, the sum
    over j of the variance of e_jp over the cells. It starts from R = 1, so that it repeats, and takes the polar
    decomposition of the gradient for the next R until the change is below a relative `tolerance`, and gives the best R.

    Source: varimax (Kaiser 1958), with the energy of a cell in place of a squared loading (ours); the iteration is that
    of Jennrich (2001).

    Args:
        effects: E (k, C, ..., H, W).
        iterations: the most that are taken.
        tolerance: see above.
    """
    products = products_by_cell(effects)
    best = rotation = torch.eye(len(effects), dtype=torch.float64)
    largest = before = sparsity(products, rotation)
    for _ in range(iterations):
        energy = _energies(products, rotation)
        gradient = torch.einsum("pik,kj,pj->ij", products, rotation, energy - energy.mean(0))
        u, _, vh = torch.linalg.svd(gradient)
        rotation = u @ vh
        now = sparsity(products, rotation)
        if now > largest:  # the iteration may also lose: energies are squares, unlike varimax's loadings
            best, largest = rotation, now
        if abs(now - before) <= tolerance * before:
            break
        before = now
    return best


def sparsity(products: Tensor, rotation: Tensor) -> float:
    """What `varimax_by_cell` maximises: the variance of each effect's energy over the cells, summed over the effects.

    Args:
        products: (P, k, k) of `products_by_cell`.
        rotation: (k, k).
    """
    return float(_energies(products, rotation).var(0, unbiased=False).sum())


def products_by_cell(effects: Tensor) -> Tensor:
    """The inner products (P, k, k) of effects (k, C, ..., H, W) within each of P cells, float64 on the CPU.

    A cell is one of the latent, or a part of a larger latent that is divided into at most COARSE on each side.
    """
    grid = [min(cells, COARSE) for cells in effects.shape[-2:]]
    flat = in_float64(effects.flatten(1, -3))
    rows = [torch.nn.functional.adaptive_avg_pool2d((flat * one).sum(1), grid).flatten(1) for one in flat]
    return torch.stack(rows).permute(2, 0, 1)


def _energies(products: Tensor, rotation: Tensor) -> Tensor:
    """(P, k): of each effect in each cell."""
    return torch.einsum("ij,pik,kj->pj", rotation, products, rotation)


def explore(search: Search) -> list[FoundDirection]:
    """Moves that each change mainly one part of the picture, those first whose effect is large and in one place.

    The leading singular vectors of J are mixed by `varimax_by_cell`; with a mask those of the masked J, restricted to
    the complement of the `null_rank` leading ones outside the mask, as LOCO has them. Each move has a mask: that of the
    search, or where there is none its own, where its effect is. Moves whose effect is that of a larger one are dropped,
    and the others are ordered by `ranking`.

    The step at strength 1 is the largest for which the root mean square change of D, both in the move's mask and over
    the whole picture, is at most STEP standard deviations of D, and whose norm is at most FARTHEST times the noise's.
    Both were chosen on tuning portraits of the demo model; at longer steps more than one thing changed at strengths 2
    and 3.

    Products are taken of J without a mask, so that a later search at the same point with the same cache reuses them
    all, whatever its mask, its null space and, up to MOST, its count. For a larger count it takes those that are
    missing. It looks at the latent and the plain prediction, whatever `decode` and guidance there are.

    Raises:
        NothingInsideError: the prediction does not change inside the mask.
        EverythingRuledOutError: it changes only by moves that change the outside too.
    """
    settings, mask = search.settings, search.mask
    value, space = _products(search)
    if "self_check" not in search.notes:
        search.notes["products_reused"] = True
    vectors = _leading(space, mask, settings)
    effects = space.apply(vectors)
    rotation = varimax_by_cell(effects if mask is None else mask * effects)
    vectors, effects = (torch.einsum("ij,i...->j...", rotation.to(these), these) for these in (vectors, effects))
    farthest = FARTHEST * search.denoiser.scale(search.sigma)[1] * search.x.numel() ** 0.5
    moves = []
    for i in largest_first(effects if mask is None else mask * effects):
        effect = effects[i : i + 1]
        acts = own_mask(effect) if mask is None else mask
        largest = max(_root_mean_square(effect, acts), _root_mean_square(effect, torch.ones_like(acts)))
        sign = -1.0 if (acts * effect).sum() < 0 else 1.0
        step = min(STEP * float(value.std()) / largest, farthest)
        energy = (acts * effect).square().flatten(0, -3).sum(0)
        inside = float((acts * effect).norm() / effect.norm()) ** 2
        change = step * _root_mean_square(effect, acts) / float(value.std())
        notes = {"effect": float(effect.norm()), "share_inside": inside, "place": place_of(energy), CHANGE_NOTE: change}
        moves.append(FoundDirection(sign * vectors[i : i + 1], step, notes, acts, sign * effect))
    moves.sort(key=lambda move: ranking(move.notes["effect"], move.notes["share_inside"]), reverse=True)
    if len(moves) < settings.count:
        search.remarks.append(FEWER.format(len(moves), settings.count))
    return moves[: settings.count]


def ranking(effect: float, share_inside: float) -> float:
    """What moves are ordered by: the norm of the effect in its mask, times the share of the effect's energy there.

    Args:
        effect: its norm, as in the notes of a move.
        share_inside: the share of its energy inside the mask, as in the notes.
    """
    return effect * share_inside**1.5


def own_mask(effect: Tensor) -> Tensor:
    """Where an effect (1, C, ..., H, W) is, with one channel and values 0 to 1 (see `soft_mask`)."""
    energy = effect.square().flatten(1, -3).mean(1, keepdim=True)  # 1 1 H W
    return soft_mask(energy).view(1, *[1] * (effect.ndim - 3), *effect.shape[-2:])


def place_of(energy: Tensor) -> str:
    """Where in the picture an effect is, in words such as "upper left", "middle" or "edges".

    Args:
        energy: of the effect in every cell, (H, W), not 0 everywhere.
    """
    weights = in_float64(energy) / in_float64(energy).sum()
    if 1 / weights.square().sum() > 0.6 * weights.numel():  # that many cells share the effect
        return "everywhere"
    down, right = (torch.arange(count, dtype=torch.float64).add(0.5) / count - 0.5 for count in weights.shape)
    vertical, horizontal = float(weights.sum(1) @ down), float(weights.sum(0) @ right)
    words = [names[c > 0] for c, names in ((vertical, ROWS), (horizontal, COLUMNS)) if abs(c) > 1 / 6]
    inner = (down.abs() < 0.25)[:, None] & (right.abs() < 0.25)
    return " ".join(words) or ("edges" if weights[inner].sum() < 0.125 else "middle")


def _products(search: Search) -> tuple[Tensor, KrylovSpace]:
    """D at the point, and the space of the moves whose products with J are known, from the cache where it has them.

    It holds what MOST directions need, and after that what a larger count needs besides, so that it is the same
    whatever was asked for before.
    """
    settings, place = search.settings, ("explore", search.sigma, search.key)
    with ExitStack() as stack:
        check = functools.cache(lambda: stack.enter_context(search.checked(backward=settings.backward)))

        def first(missing: list) -> list[Tensor]:
            space = _space(search, check())
            # with a backward pass it does not matter how far J is from symmetric
            asymmetry = torch.tensor(0.0 if check().backward else space.asymmetry)
            found = _parts(search, space) | {VALUE: check().jacobian.value, ASYMMETRY: asymmetry}
            return [found[part] for part, *_ in missing]

        def more(missing: list) -> list[Tensor]:
            found = _parts(search, _larger(search, check(), space), len(space))
            return [found[part] for part, *_ in missing]

        keys = [(part, MOST, settings.derivatives, settings.seed) for part in (VALUE, MOVES, IMAGES, ASYMMETRY)]
        value, moves, images, asymmetry = search.cache.get(place, keys, first)
        space = KrylovSpace(KrylovBasis.of(moves), images)
        if settings.count > MOST and 2 * settings.count > len(space):
            keys = [(part, settings.count, *rest) for part, _, *rest in keys if part in (MOVES, IMAGES)]
            further, their_images = search.cache.get(place, keys, more)
            space = KrylovSpace(KrylovBasis.of(torch.cat([moves, further])), torch.cat([images, their_images]))
    if asymmetry > 0:
        search.notes["asymmetry"] = float(asymmetry)
    if asymmetry > ASYMMETRIC:
        search.remarks.append(TOO_ASYMMETRIC.format(float(asymmetry)))
    return value, space


def _parts(search: Search, space: KrylovSpace, after: int = 0) -> dict[str, Tensor]:
    """What is stored of a space: its vectors and images after the first so many."""
    return {MOVES: space.basis.rows[after:].view(-1, *search.x.shape[1:]), IMAGES: space.images[after:]}


def _space(search: Search, check: SelfCheck) -> KrylovSpace:
    """The space that MOST directions are taken from."""
    jacobian, probe = check.jacobian, check.probe
    if check.backward:
        recorded = RestrictedOperator(jacobian, None, record=True)
        found = partial_svd(recorded.matvec, recorded.rmatvec, probe.back, MOST, tol=1e-2, max_pairs=PAIRS)
        search.notes |= {"pairs": found.pairs, "converged": found.converged}
        return KrylovSpace.of(recorded)
    left = (FORWARD_EVALUATIONS - check.evaluations) // jacobian.approximate_cost
    space = ForwardKrylovSpace(jacobian.approximate_matvec, probe.vector, max(left, 2 * MOST) + 1, image=probe.image)
    search.notes |= {"products": space.products, "products_by": jacobian.approximate_mode}
    return space


def _larger(search: Search, check: SelfCheck, space: KrylovSpace) -> KrylovSpace:
    """A space grown to twice `count` vectors.

    Its last image leads on: what J' makes of it, off the space, is the next right vector of the same Golub-Kahan
    process, and without a backward pass the image itself, off the space, that of the same Krylov process.
    """
    jacobian, size = check.jacobian, 2 * search.settings.count
    shape = search.x.shape[1:]
    if not check.backward:
        last = space.images[-1:].view(1, *shape)
        larger = ForwardKrylovSpace(jacobian.approximate_matvec, last, size + 1, smaller=space)
        search.notes["products"] = search.notes.get("products", 0) + larger.products
        search.notes["products_by"] = jacobian.approximate_mode
        return larger
    basis, images = KrylovBasis(size), [space.images]
    basis.append(space.basis.rows)
    while len(basis) < size:
        _, new, _ = basis.split(jacobian.rmatvec(images[-1][-1:].view(1, *shape)))
        if not len(new):  # the space holds all that moves
            break
        basis.append(new)
        images.append(jacobian.matvec(new.view(1, *shape)).flatten(1))
    search.notes["pairs"] = search.notes.get("pairs", 0) + len(images) - 1
    return KrylovSpace(basis, torch.cat(images))


def _leading(space: KrylovSpace, mask: Tensor | None, settings: Settings) -> Tensor:
    """The leading moves (k, ...) inside the mask, off those that change the outside most."""
    strongest = float(space.images.norm(dim=1).max())
    if not (space.images if mask is None else space.masked(space.images, mask)).any():
        raise NothingInsideError(NOTHING_INSIDE)
    null = None
    if has_outside(mask) and settings.null_rank:
        outside = space.triplets(settings.null_rank, 1 - mask)
        null = outside.right[outside.values > APPROXIMATE * strongest]
        space = space.off(null) if len(null) < len(space) else None
    found = None if space is None else space.triplets(max(MOST, settings.count), mask)
    if found is None or found.values[0] <= APPROXIMATE * strongest:
        if null is None or not len(null):
            raise NothingInsideError(NOTHING_INSIDE)
        raise EverythingRuledOutError(RULED_OUT)
    return found.right[found.values > WEAK * found.values[0]]


def largest_first(effects: Tensor) -> list[int]:
    """Numbers of effects (k, ...), the largest first, without those whose cosine with a larger one is above SAME."""
    flat = effects.flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    chosen: list[int] = []
    for i in flat.norm(dim=1).argsort(descending=True).tolist():
        if not any(abs(float(unit[i] @ unit[j])) > SAME for j in chosen):
            chosen.append(i)
    return chosen


def _root_mean_square(effect: Tensor, mask: Tensor) -> float:
    """Of an effect (1, C, ..., H, W) over the cells of a mask."""
    weights = mask.expand_as(effect)
    return float(((effect.square() * weights).sum() / weights.sum()).sqrt())


def _evaluations(settings: Settings, _masked: bool) -> float:
    check = check_evaluations(settings, settings.backward)
    pairs = 26 if settings.count <= MOST else 2 * settings.count
    return check + 4 * pairs if settings.backward else max(FORWARD_EVALUATIONS, check + 2 * max(MOST, settings.count))


EXPLORE = Method(
    name="explore",
    label="explore, without words",
    summary="needs no words; finds moves of the latent that each change mainly one part of the picture, and act there"
    " alone",
    run=explore,
    evaluations=_evaluations,
    reads=("mask", "count", "null_rank", "seed", "derivatives"),
    compares_words=False,
    finds_several=True,
    is_named=True,
)
