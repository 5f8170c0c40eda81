"""Named errors. Each message says what is wrong, with the numbers; what to do about it is the host's to say."""

import unicodedata

LONGEST_MESSAGE = 1000  # characters


class LatentDirectionsError(ValueError):
    """Base of all errors of this package, whose messages can be printed, logged and sent, whatever they quote."""

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class MissingPackageError(LatentDirectionsError):
    """A Python package that a part of this package needs is not installed, or too old."""


class UnknownPromptError(LatentDirectionsError):
    """A denoiser was asked for a prompt or a guidance that it does not have."""


class UnknownNameError(LatentDirectionsError):
    """A method or a setting has no such name."""


class NoiseLevelsError(LatentDirectionsError):
    """The noise levels of an inversion descend, or start where there is no noise."""


class NotFiniteError(LatentDirectionsError):
    """A latent or a prediction holds values that are not numbers."""


class LatentNotFiniteError(NotFiniteError):
    """The latent that is to be encoded holds values that are not numbers."""


class EmbeddingError(NotFiniteError):
    """The embedding of a picture or of words is zero, or holds values that are not numbers."""


class ShapeError(LatentDirectionsError):
    """Two things that belong together differ in size."""


class NothingToMoveError(LatentDirectionsError):
    """A search is left without anything to move along."""


class EqualPredictionsError(NothingToMoveError):
    """The model predicts the same under the source and the target prompt."""


class EverythingKeptError(NothingToMoveError):
    """What is to be kept covers the whole of the wanted change."""


class EverythingRuledOutError(NothingToMoveError):
    """All moves change what lies outside the mask, and are ruled out."""


class NothingInsideError(NothingToMoveError):
    """The prediction does not change inside the mask."""


class CutOffError(NothingToMoveError):
    """A move lies in a part of the picture that is cut off at another size."""


class NothingLeftError(NothingToMoveError):
    """A combination of directions leaves no move."""


class NoChangeError(LatentDirectionsError):
    """Two prompts give the same picture, so that a measure has nothing to compare with."""


class DerivativeError(LatentDirectionsError):
    """A derivative could not be taken, or failed its self-check."""


class NotFiniteDerivativeError(DerivativeError):
    """A derivative holds values that are not numbers."""


class ZeroDerivativeError(DerivativeError):
    """A derivative came out as zero although its vector is not."""


class NotRepeatableError(DerivativeError):
    """Two equal calls of a function gave different answers."""


class NoTrustedModeError(DerivativeError):
    """No mode of differentiation passed the self-check.

    Attributes:
        asked_for: whether central differences were the only mode that was asked for.
    """

    def __init__(self, message: str, *, asked_for: bool):
        super().__init__(message)
        self.asked_for = asked_for


class NoBackwardError(DerivativeError):
    """A method needs products with J', and those failed their self-check."""


class NoFeaturesError(LatentDirectionsError):
    """A method looks at features inside the network, and the host reads none."""


class FeaturesShapeError(LatentDirectionsError):
    """The features at a layer are not one set of numbers for each latent."""


class EqualFeaturesError(LatentDirectionsError):
    """The features are the same at two points that are compared."""


class BasisError(LatentDirectionsError):
    """Vectors that should be an orthonormal basis are none."""


class NothingInCommonError(LatentDirectionsError):
    """A change of the features has no part among those that another picture can make."""


class TooFewSamplesError(LatentDirectionsError):
    """There are not enough samples for a statistic."""


class DecodedBackwardError(NoBackwardError):
    """Directions of decoded pictures need products with J', and there are none."""


class TargetDerivativeError(DerivativeError):
    """Products passed their self-check under the source prompt, but disagree under the target prompt."""


class DirectionFileError(LatentDirectionsError):
    """A direction file cannot be read."""


class DirectionTooLargeError(LatentDirectionsError):
    """A direction is larger than a direction file may be."""


class DirectionNotSavedError(LatentDirectionsError):
    """A direction holds what no direction file may hold."""


class SeveralMasksError(LatentDirectionsError):
    """A direction has a mask for each of several pictures, where one is wanted."""


class DirectionNotWrittenError(LatentDirectionsError):
    """A direction file could not be written."""


class DirectionFormatError(DirectionFileError):
    """A direction file is of a format that this version does not know."""


class ZeroOperatorError(LatentDirectionsError):
    """An operator maps the start vector of a solver to zero."""


def printable(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """A text, shortened in its middle to about `longest` characters, with escapes for what cannot be printed.

    A lone surrogate, for example, raises an error where it is logged, which stops ComfyUI's worker thread.
    """

    def cut(text: str) -> str:
        return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-(longest // 2) :]}"

    def shown(character: str) -> str:
        # spaces of other scripts, and the joiners inside words and emoji, can be printed; Python says they cannot
        if character.isprintable() or character in "\n\u200c\u200d" or unicodedata.category(character) == "Zs":
            return character
        return character.encode("unicode_escape").decode()

    return cut("".join(map(shown, cut(text))))


def has_surrogates(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no encoding has: half of a character."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def size_in_words(tensor) -> str:
    """A tensor's shape as "4 x 64 x 64"."""
    return " x ".join(str(n) for n in tensor.shape)
