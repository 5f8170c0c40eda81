"""What the nodes add to errors of `core`: a sentence on what to do, which names inputs and nodes of ComfyUI."""

import inspect
import re

import pytest

from latent_directions.core import errors
from latent_directions.nodes.errors import ADVICE, InputError, advice_on, with_advice


def raised(error: Exception) -> Exception:
    @with_advice()
    def execute():
        raise error

    with pytest.raises(type(error)) as caught:
        execute()
    return caught.value


def core_errors() -> list[type]:
    """The errors of `core` that reach an artist."""
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.LatentDirectionsError)
        and kind is not errors.LatentDirectionsError
        and not kind.__subclasses__()
        # the nodes give right prompts, names and levels, and searches say why an operator is zero
        and kind
        not in (errors.UnknownPromptError, errors.UnknownNameError, errors.NoiseLevelsError, errors.ZeroOperatorError)
    ]


@pytest.mark.parametrize("kind", core_errors())
def test_every_error_of_core_gets_one_sentence_of_advice(kind):
    error = kind("It is wrong.", asked_for=False) if kind is errors.NoTrustedModeError else kind("It is wrong.")
    said = str(raised(error))
    assert said.startswith("It is wrong. ")
    assert re.fullmatch(r"It is wrong\. [A-Z].*\.", said)


def test_the_most_specific_advice_counts():
    assert advice_on(errors.LatentNotFiniteError("")) == ADVICE[errors.LatentNotFiniteError]
    assert advice_on(errors.NotFiniteError("")) == ADVICE[errors.NotFiniteError]
    assert advice_on(errors.NotFiniteDerivativeError("")) == ADVICE[errors.NotFiniteDerivativeError]


def test_asking_for_central_differences_where_they_fail():
    error = errors.NoTrustedModeError("Nothing can be trusted.", asked_for=True)
    assert str(raised(error)) == (
        "Nothing can be trusted. Set 'derivatives' to 'automatic', or set 'method' of Find Directions to 'words' ("
        "'text' in the API), which needs no derivatives."
    )


def test_errors_of_the_nodes_stay_as_they_are():
    assert str(raised(InputError("'level' is 7. Set it lower."))) == "'level' is 7. Set it lower."
    assert str(raised(RuntimeError("shape mismatch"))) == "shape mismatch"
