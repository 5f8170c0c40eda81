"""What directions do to the prediction at an encoded picture, by products with its Jacobian that were checked first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.denoiser import SOURCE, Denoiser
from ..core.search import FORWARD_ONLY, Search, Settings, check_evaluations
from ..core.self_check import SelfCheck
from .anchored import without_anchor
from .errors import InputError
from .host import family_of, run
from .prompts import negative_prompt
from .sockets import Inversion

Result = TypeVar("Result")
SETTINGS = Settings(derivatives=FORWARD_ONLY)


def at_picture(
    model: ModelPatcher,
    inversion: Inversion,
    body: Callable[[Denoiser, SelfCheck], Result],
    *,
    products: int,
    more: int = 0,
) -> tuple[Result, dict]:
    """Run `body` with the checked Jacobian of the prediction at the noisy latent of a picture.

    Args:
        model: the MODEL; it is left as it was.
        inversion: of one picture; its sliders do not count.
        body: (denoiser, self-check) -> result. No backward products are taken.
        products: the products it is expected to take, for the progress bar.
        more: evaluations that it is expected to take beside them.

    Returns:
        What `body` returned, and what goes into a report: the self-check, evaluations, seconds and memory.

    Raises:
        InputError: the model is of another family than that of the inversion, or there are several pictures.
    """
    _check(model, inversion)
    bare = without_anchor(model)
    prompts = {SOURCE: inversion.positive} | negative_prompt(bare, 1.0, inversion.negative or None)

    def with_jacobian(denoiser: Denoiser, x0: Tensor) -> tuple[Result, dict]:
        x = denoiser.noised(x0, inversion.paths.base.to(x0), inversion.sigma)
        search = Search(denoiser, x, inversion.sigma, settings=SETTINGS)
        with search.checked(backward=False) as check:
            return body(denoiser, check), search.notes

    expected = check_evaluations(SETTINGS, False) + 2 * products + more
    (result, notes), cost = run(bare, prompts, inversion.latent, inversion.sigma, with_jacobian, expected=expected)
    return result, notes | cost


def _check(model: ModelPatcher, inversion: Inversion) -> None:
    if family_of(model) != inversion.family:
        msg = (
            f"'model' is of the family {family_of(model)}, but the picture was inverted with {inversion.family}."
            " Connect the model that Invert Image used."
        )
        raise InputError(msg)
    pictures = inversion.latent["samples"].shape[0]
    if pictures != 1:
        msg = (
            f"'inversion' holds {pictures} pictures, and what a move does is measured on one. Take one picture out of"
            " the batch (Latent From Batch) before Invert Image."
        )
        raise InputError(msg)
