"""The local basis of the latent: the moves that change the features inside the network most, at one point.

h(x) are features of the network, such as those of a U-Net's mid block, and J_h = dh/dx. The right singular vectors v_i
of J_h are the local basis, and u_i = J_h v_i / s_i the changes of the features that they make.

Source: arXiv 2302.12469 and 2307.12868. They take block subspace iteration; here it is Golub-Kahan (ours: fewer
products).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from .denoiser import SOURCE
from .errors import FeaturesShapeError, NoBackwardError, NoFeaturesError, NothingToMoveError, ZeroOperatorError
from .jacobian_directions import MAX_PAIRS
from .operators import Jacobian
from .search import Search
from .self_check import SelfCheck
from .svd import partial_svd

NO_FEATURES = "The pullback method looks at features inside the network, and none can be read of this model."


@dataclass(frozen=True)
class LocalBasis:
    """The moves of the latent that change the features most, at one point.

    Attributes:
        moves: v_i (k, C, H, W), orthonormal; the entry of largest magnitude of each is positive, so that runs repeat.
        changes: u_i = J_h v_i / s_i (k, ...), orthonormal.
        values: s_i (k,), descending, float64 on the CPU.
        residuals: |J_h'u_i - s_i v_i| / s_1 (k,).
        converged: whether all vectors that were asked for were found to the tolerance.
        pairs: pairs of products with J_h and J_h' that were spent.
    """

    moves: Tensor
    changes: Tensor
    values: Tensor
    residuals: Tensor
    converged: bool
    pairs: int

    def __len__(self) -> int:
        return len(self.values)


def features_jacobian(search: Search, prompt: str = SOURCE) -> Jacobian:
    """J_h of the features at the search's point, under a prompt, in the mode that the settings ask for.

    Features in half precision are taken as float32, or what the latent has, so that the solver does not round.

    Raises:
        NoFeaturesError: the host reads no features.
        FeaturesShapeError: a call of the product's function gave not one set of features for each latent.
    """
    denoiser, features = search.denoiser, search.denoiser.features
    if features is None:
        raise NoFeaturesError(NO_FEATURES)

    def read(points: Tensor) -> Tensor:
        h = features.read(points, search.sigma, prompt)
        if h.ndim < 2 or len(h) != len(points):
            msg = (
                f"The features at layer '{features.layer}' have the shape {tuple(h.shape)} for {len(points)} latents,"
                " in place of one set of numbers for each."
            )
            raise FeaturesShapeError(msg)
        return h.to(points.dtype)

    return Jacobian(
        read,
        search.x,
        mode=search.settings.mode,
        counter=denoiser.counter,
        differentiable=denoiser.differentiable,
    )


@contextmanager
def checked_features(search: Search, prompt: str = SOURCE) -> Iterator[SelfCheck]:
    """J_h after its self-check, as `Search.checked` gives J; its backward products can be trusted.

    Raises:
        NoFeaturesError: the host reads no features.
        NoBackwardError: there is no backward pass that can be trusted.
    """
    with search.checking(features_jacobian(search, prompt), backward=True) as check:
        if not check.backward:
            msg = (
                "The pullback method needs a backward pass through the network's features, and this model has none that"
                f" can be trusted. {check.sentence}"
            )
            raise NoBackwardError(msg)
        yield check


def local_basis(search: Search, count: int, *, prompt: str = SOURCE, max_pairs: int = MAX_PAIRS) -> LocalBasis:
    """The `count` leading singular triplets of J_h, or fewer where J_h has fewer, with a self-check before.

    Args:
        search: the point.
        count: how many.
        prompt: under which the features are read; another one gives the basis of other words.
        max_pairs: bound on the pairs of products.

    Raises:
        NoFeaturesError, NoBackwardError, NothingToMoveError: see `checked_features` and `basis_at`.
    """
    with checked_features(search, prompt) as check:
        return basis_at(check.jacobian, check.probe.back, count, max_pairs=max_pairs)


def basis_at(
    jacobian: Jacobian, start: Tensor, count: int, *, tolerance: float = 1e-3, max_pairs: int = MAX_PAIRS
) -> LocalBasis:
    """The local basis by the products of J_h, without the singular vectors that are rounding.

    Args:
        jacobian: J_h, checked.
        start: where the solver starts, (1, C, H, W), best in the range of J_h'.
        count: how many vectors.
        tolerance: of the residuals.
        max_pairs: bound on the pairs of products.

    Raises:
        NothingToMoveError: no move changes the features.
    """
    try:
        found = partial_svd(jacobian.matvec, jacobian.rmatvec, start, count, tol=tolerance, max_pairs=max_pairs)
    except ZeroOperatorError as error:
        msg = "No move of the latent changes the features of the network here."
        raise NothingToMoveError(msg) from error
    kept = int((found.values > jacobian.precision * found.values[0]).sum())
    moves, changes = found.right[:kept], found.left[:kept]
    flat = moves.flatten(1)
    signs = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True)).sign()  # (k, 1)
    return LocalBasis(
        moves=(signs * flat).view_as(moves),
        changes=(signs.to(changes) * changes.flatten(1)).view_as(changes),
        values=found.values[:kept],
        residuals=found.residuals[:kept],
        converged=found.converged,
        pairs=found.pairs,
    )
