"""Errors of the nodes, and what to do in ComfyUI about the errors of `core`: which input or node they concern."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..core import errors
from ..core.errors import LatentDirectionsError


class InputError(LatentDirectionsError):
    """An input of a node cannot be used as it is."""


class UnsupportedModelError(LatentDirectionsError):
    """The model's noise process or code path is outside what the formulas hold for."""


class UnsupportedSamplerError(LatentDirectionsError):
    """The sampler leaves the reference path, so strength 0 would not return the picture."""


class CachedModelError(LatentDirectionsError):
    """The model answers from a cache where it is asked to run."""


USE_WORDS = "Set 'method' of Find Directions to 'words' ('text' in the API), which needs no derivatives."
# The most specific class of an error counts.
ADVICE: dict[type[LatentDirectionsError], str] = {
    errors.MissingPackageError: "Install it into ComfyUI's Python: pip install --upgrade matplotlib.",
    errors.NotFiniteError: "Run the model in a higher precision (start ComfyUI with --fp32-unet, say).",
    errors.LatentNotFiniteError: "Encode the picture again.",
    errors.EmbeddingError: (
        "Start ComfyUI with --fp32-text-enc; if that does not help, load another file for 'clip' or 'clip_vision'."
    ),
    errors.NotFiniteDerivativeError: "Try a higher precision for the model.",
    errors.ZeroDerivativeError: USE_WORDS,
    errors.NotRepeatableError: "Remove nodes that add randomness to the MODEL.",
    errors.NoTrustedModeError: USE_WORDS,
    errors.NoBackwardError: (
        "Use the method 'HSDS' or 'LOCO' of Find Directions, which can do without; in Find Common Directions set 'how'"
        " to 'principal components'."
    ),
    errors.NoFeaturesError: "Use the method 'LOCO' or 'explore', which need no words either.",
    errors.FeaturesShapeError: "Choose another 'block', or use the method 'LOCO' or 'explore' of Find Directions.",
    errors.EqualFeaturesError: "Give Encode Picture pictures that differ more, or choose another 'block'.",
    errors.BasisError: "Set 'how' to 'mean of subspaces', lower 'count', or use pictures that are more alike.",
    errors.CutOffError: "Use a picture of another shape, or find the direction again on this one.",
    errors.NothingLeftError: "Choose other directions for 'others', or another 'amount'.",
    errors.NothingInCommonError: "Find the direction on this picture itself, or raise 'level' of Encode Picture.",
    errors.TooFewSamplesError: "Give more pictures.",
    errors.DecodedBackwardError: (
        "Let the search look at the latent in place of the decoded picture, or set 'derivatives' to 'automatic'."
    ),
    errors.TargetDerivativeError: "Use the method 'HSDS' or 'LOCO', which take none there.",
    errors.NothingToMoveError: "Raise 'level' of Encode Picture.",
    errors.EqualPredictionsError: (
        "Write 'source' and 'target' so that they differ more, or raise 'level' of Encode Picture."
    ),
    errors.EverythingKeptError: (
        "Name in 'keep' only what is to stay as it is beside the wanted change, or set 'find_keeps' to 'nothing'."
    ),
    errors.EverythingRuledOutError: "Lower 'hold_outside', or paint a larger 'mask'.",
    errors.NothingInsideError: "Paint a larger 'mask', or raise 'level' of Encode Picture.",
    errors.NoChangeError: "Write 'target' so that it differs more from 'positive', or raise 'level'.",
    errors.DirectionNotWrittenError: (
        "Look at the free space and the write permission of models/latent_directions, or choose another 'name'."
    ),
    errors.DirectionNotSavedError: "Find the direction again, if need be with the model in a higher precision.",
    errors.SeveralMasksError: "Find it on one picture, or with 'where' on 'everywhere'.",
    errors.DirectionTooLargeError: (
        "Find the direction again; fewer lines in 'keep' and shorter prompts make the file smaller."
    ),
    errors.ShapeError: (
        "Put Transfer Direction before this node, with this 'inversion', or find the direction again on a picture of"
        " this size."
    ),
    errors.DirectionFormatError: "Update the pack: the file was saved by a newer version.",
    errors.DirectionFileError: "Choose a file made by Save Direction, or save the direction again.",
}


@contextmanager
def with_advice() -> Iterator[None]:
    """Decorates a node's `execute`: errors of `core` get a sentence on what to do about them in ComfyUI."""
    try:
        yield
    except LatentDirectionsError as error:
        advice = advice_on(error)
        if advice:
            error.args = (f"{error} {advice}",)
        raise


def advice_on(error: LatentDirectionsError) -> str:
    """What to do about an error of `core`; empty for errors of the nodes, which say so themselves."""
    advice = next((ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE), "")
    if isinstance(error, errors.NoTrustedModeError) and error.asked_for:
        return f"Set 'derivatives' to 'automatic', or {advice[0].lower()}{advice[1:]}"
    return advice
