"""What directions do at an encoded picture: runs `core` at its noisy latent, for nodes that measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.denoiser import SOURCE, Denoiser
from ..core.search import FORWARD_ONLY, Search, Settings, check_evaluations
from .anchored import without_anchor
from .errors import InputError
from .host import run
from .prompts import negative_prompt
from .sockets import Inversion, check_family

Result = TypeVar("Result")
SETTINGS = Settings(derivatives=FORWARD_ONLY)


def at_picture(
    model: ModelPatcher,
    inversion: Inversion,
    body: Callable[[Search], Result],
    *,
    expected: float,
    block: int | None = None,
) -> tuple[Result, dict]:
    """Run `body` on a `Search` at the noisy latent of a picture.

    Its settings ask for no backward pass; a body that needs one takes it itself.

    Args:
        model: the MODEL; it is left as it was.
        inversion: of one picture; its sliders do not count.
        body: what is done there.
        expected: evaluations that it is expected to take beside one self-check, for the progress bar.
        block: the block whose features can be read, as `find_layer` numbers them; None for none.

    Returns:
        What `body` returned, and what goes into a report: the notes of the search, evaluations, seconds and memory.

    Raises:
        InputError: the model is of another family than that of the inversion, or there are several pictures.
    """
    _check(model, inversion)
    bare = without_anchor(model)
    prompts = {SOURCE: inversion.positive} | negative_prompt(bare, 1.0, inversion.negative or None)

    def searching(denoiser: Denoiser, x0: Tensor) -> tuple[Result, dict]:
        search = Search(denoiser, inversion.noisy(denoiser, x0), inversion.sigma, settings=SETTINGS)
        return body(search), search.notes

    evaluations = round(check_evaluations(SETTINGS, False) + expected)
    (result, notes), cost = run(
        bare, prompts, inversion.latent, inversion.sigma, searching, expected=evaluations, block=block
    )
    return result, notes | cost


def _check(model: ModelPatcher, inversion: Inversion) -> None:
    check_family(model, inversion)
    pictures = inversion.latent["samples"].shape[0]
    if pictures != 1:
        msg = (
            f"'inversion' holds {pictures} pictures, and what a move does is measured on one. Take one picture out of"
            " the batch (Latent From Batch) before Encode Picture."
        )
        raise InputError(msg)
