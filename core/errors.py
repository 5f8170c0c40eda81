"""Named errors; every message is a sentence an artist can act on."""


class LatentDirectionsError(ValueError):
    """Base of all errors of this pack: says what is wrong, why, and what to do."""


class InputError(LatentDirectionsError):
    """An input of a node cannot be used as it is."""


class UnsupportedModelError(LatentDirectionsError):
    """The model's noise process or code path is outside what the formulas hold for."""


class UnsupportedSamplerError(LatentDirectionsError):
    """The sampler leaves the reference path, so strength 0 would not return the picture."""


class DerivativeError(LatentDirectionsError):
    """A derivative through the model failed its self-check or could not be taken."""


class CachedModelError(LatentDirectionsError):
    """The model answers from a cache where it is asked to run."""


class DirectionFileError(LatentDirectionsError):
    """A direction file cannot be read, or does not belong to the loaded model."""


class ZeroOperatorError(ValueError):
    """A matrix-free operator is zero on all that a solver may start from."""
