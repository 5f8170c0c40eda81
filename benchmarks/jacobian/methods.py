"""The methods: each gives unit moves of the noisy latent, the first of which is its direction."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from latent_directions.core.denoiser import SOURCE
from latent_directions.core.direction import Direction
from latent_directions.core.geometry import principal_components, pulled_back
from latent_directions.core.linalg import KrylovBasis
from latent_directions.core.local_basis import checked_features
from latent_directions.core.methods import METHODS as OF_THE_PACK
from latent_directions.core.operators import Jacobian
from latent_directions.core.search import CHANGE, PROJECT_AFTER, Search, Settings
from latent_directions.core.svd import partial_svd
from latent_directions.nodes.host import family_of

from .measures import linearity
from .subjects import Encoded

KEPT = 2  # moves of a method: its direction, and a second one for composability
CANDIDATES = 5  # moves that a method without a mask may choose from, and those that are mixed at random
EPS_PAIRS = 24  # of products with the Jacobian of the predicted noise: about what LOCO takes
FACTORS = (0.5, 1.0, 2.0, 4.0)  # strengths at which linearity is looked at
LONGEST = 1.0  # the longest move, as a share of the norm of the noise


@dataclass(frozen=True)
class Finder:
    """A method.

    Attributes:
        find: (search, encoded portrait, seed) -> moves (k, C, H, W), best first, of any norm.
        settings: of the search.
        masked: whether `find` sees the region; otherwise of CANDIDATES moves those are taken whose effect J v has the
            largest share of its energy inside the region, which favours the method.
        held: whether the slider acts inside the region alone at every sampling step.
    """

    find: Callable[[Search, Encoded, int], Tensor]
    settings: Settings = field(default_factory=lambda: Settings(count=KEPT))
    masked: bool = True
    held: bool = False


class Look(NamedTuple):
    """What is known of a direction before anything is sampled.

    Attributes:
        step: norm of the move at strength 1.
        share_inside: share of the energy of J v inside the region.
        linearity: of `linearity` at FACTORS.
    """

    step: float
    share_inside: float
    linearity: list[tuple[float, float, float]]


class Found(NamedTuple):
    """Directions of a method, the looks at them, and the evaluations and seconds of the search."""

    directions: list[Direction]
    looks: list[Look]
    evaluations: int
    seconds: float


def of_the_pack(name: str) -> Callable[[Search, Encoded, int], Tensor]:
    """The moves of one of the pack's own methods."""

    def find(search: Search, _here: Encoded, _seed: int) -> Tensor:
        return torch.cat([move.vector for move in OF_THE_PACK[name].run(search)])

    return find


def noise_jacobian(search: Search, here: Encoded, seed: int) -> Tensor:
    """Right singular vectors of the Jacobian of the predicted noise eps = (x - a D) / b, without a mask.

    The paper compares with them without mask and null space, with which hardly anything changed (appendix G.2 of arXiv
    2409.02374). All directions that D does not depend on have the singular value 1 / b, so the leading ones are close
    to each other and do not converge; the search ends after EPS_PAIRS pairs.
    """
    a, b = search.denoiser.scale(search.sigma)
    jacobian = search.jacobian()
    try:
        found = partial_svd(
            lambda v: (v - a * jacobian.matvec(v)) / b,
            lambda u: (u - a * jacobian.rmatvec(u)) / b,
            random_moves(search, here, seed)[:1],
            CANDIDATES,
            max_pairs=EPS_PAIRS,
        )
    finally:
        jacobian.release()
    return found.right


def feature_components(search: Search, here: Encoded, _seed: int) -> Tensor:
    """Principal components of the features over other portraits, each pulled back to a move J_h'u of this one.

    The components are those of Haas et al. (arXiv 2303.11073), who add them to the features while sampling; to move the
    latent in place of the features is ours, so that the method can be compared with the others.
    """
    noise = torch.randn(here.pool.shape, generator=torch.Generator().manual_seed(0))
    others = search.denoiser.noised(here.pool, noise, search.sigma).to(search.x)
    features = search.denoiser.features.read(others, search.sigma, SOURCE)
    components = principal_components(features, CANDIDATES).directions
    with checked_features(search) as check:
        return torch.cat([pulled_back(check.jacobian, component) for component in components.split(1)])


def random_moves(search: Search, _here: Encoded, seed: int) -> Tensor:
    """Orthonormal moves (KEPT, C, H, W) whose directions are uniformly distributed."""
    drawn = torch.randn(KEPT, *search.x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(search.x)
    return KrylovBasis().split(drawn)[1].view_as(drawn)


def random_in_subspace(search: Search, here: Encoded, seed: int) -> Tensor:
    """Random orthonormal mixes of the leading singular vectors of J inside the region, without a null space."""
    leading = LOCO(search, here, seed)
    mix = torch.linalg.qr(torch.randn(len(leading), KEPT, generator=torch.Generator().manual_seed(seed)))[0]
    return torch.einsum("ij,i...->j...", mix.to(leading), leading)


LOCO, ROTATED, PULLBACK = (of_the_pack(name) for name in ("LOCO", "explore", "pullback"))
NO_NULL_SPACE = Settings(count=KEPT, null_rank=0)
FINDERS = {
    "LOCO": Finder(LOCO),
    "LOCO, no null space": Finder(LOCO, NO_NULL_SPACE),
    "LOCO, projected after": Finder(LOCO, Settings(count=KEPT, projection=PROJECT_AFTER)),
    "LOCO, region held": Finder(LOCO, held=True),
    "rotated LOCO": Finder(ROTATED),
    "rotated LOCO, region held": Finder(ROTATED, held=True),
    "pullback": Finder(PULLBACK, Settings(count=CANDIDATES), masked=False),
    "d eps/dx": Finder(noise_jacobian, masked=False),
    "h-space PCA": Finder(feature_components, masked=False),
    "random in the subspace": Finder(random_in_subspace, replace(NO_NULL_SPACE, count=CANDIDATES)),
    "random": Finder(random_moves),
}


def found_by(finder: Finder, name: str, here: Encoded, seed: int) -> Found:
    """The directions of a method at an encoded portrait, with the step that all methods share.

    At strength 1 the root mean square change of D inside the region is, by J v, CHANGE standard deviations of D; the
    sign is the one that makes the mean change inside the region positive. Methods that differ only in where they act
    share a search.
    """
    key = finder.find, finder.settings, finder.masked, seed
    if key not in here.searches:
        here.searches[key] = here.searched(lambda search: _moves(finder, search, here, seed), finder.settings)
    moves, looks, evaluations, seconds = here.searches[key]
    mask = here.cells[0] if finder.held else None
    made = [
        Direction(name, name, family_of(here.bench.model), here.inversion.sigma, latent=move, step=look.step, mask=mask)
        for move, look in zip(moves, looks, strict=True)
    ]
    return Found(made, looks, evaluations, seconds)


def _moves(finder: Finder, search: Search, here: Encoded, seed: int) -> tuple[list[Tensor], list[Look], int, float]:
    """KEPT unit moves (C, H, W) with the looks at them, and the evaluations and CPU seconds that the method took."""
    counter, before, started = search.denoiser.counter, search.denoiser.counter.evaluations, time.process_time()
    moves = finder.find(search if finder.masked else replace(search, mask=None), here, seed)
    moves = moves / moves.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    jacobian = replace(search.jacobian(), checked=True)
    if not finder.masked:
        effects = jacobian.matvec(moves)
        order = inside_shares(effects, search.mask).argsort(descending=True)[:KEPT]
        moves, effects = moves[order], effects[order]
    evaluations, seconds = counter.evaluations - before, time.process_time() - started
    if finder.masked:
        moves = moves[:KEPT]
        effects = jacobian.matvec(moves)
    signs = torch.where((search.mask * effects).flatten(1).sum(1) < 0, -1.0, 1.0).view(-1, 1, 1, 1)
    moves, effects = signs * moves, signs * effects
    looks = [look_at(search, jacobian, *pair) for pair in zip(moves.split(1), effects.split(1), strict=True)]
    return list(moves.cpu()), looks, evaluations, seconds


def inside_shares(effects: Tensor, cells: Tensor) -> Tensor:
    """Share of the energy of effects (k, C, H, W) inside cells (1, 1, H, W), (k,)."""
    energy = effects.square()
    return (energy * cells).flatten(1).sum(1) / energy.flatten(1).sum(1).clamp_min(1e-30)


def look_at(search: Search, jacobian: Jacobian, move: Tensor, effect: Tensor) -> Look:
    """Step, share inside and linearity of a unit move (1, C, H, W) with the effect J v."""
    weights = search.mask.expand_as(effect)
    rms = float(((effect.square() * weights).sum() / weights.sum()).sqrt())
    step = CHANGE * float(jacobian.value.std()) / max(rms, 1e-12)
    lengths = [factor * step for factor in FACTORS]
    moved = search.denoiser(torch.cat([search.x + length * move for length in lengths]), search.sigma)
    linear = [linearity(jacobian.value, length * effect, one[None]) for length, one in zip(lengths, moved, strict=True)]
    return Look(step, float(inside_shares(effect, search.mask)), linear)


def longest_strength(here: Encoded, direction: Direction) -> float:
    """The strength at which a move is as long as the noise of the noisy latent, times LONGEST."""
    return LONGEST * here.inversion.scale[1] * direction.latent.numel() ** 0.5 / direction.step
