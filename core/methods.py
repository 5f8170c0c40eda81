"""The methods of finding directions, one row each; nodes, progress bars and help read this table.

To add one: write its file beside core/hessian_directions.py, with a `Method` at its end, and add it here. Then
`python scripts/node_help.py` writes it into the help page.
"""

from .exploration import EXPLORE
from .hessian_directions import DDS, HSDS, LOW_PASS
from .jacobian_directions import LOCO, T_LOCO
from .pullback import PULLBACK
from .search import Method

TEXT = Method(
    name="text",
    label="words",
    summary="moves the words alone, by what the model predicts for source and target at every sampling step; needs no"
    " derivatives",
    run=None,
    evaluations=lambda settings, masked: 0,
    reads=(),
    moves_words=True,
)

METHODS: dict[str, Method] = {
    method.name: method for method in (TEXT, HSDS, T_LOCO, LOCO, EXPLORE, PULLBACK, DDS, LOW_PASS)
}


def names_of_methods_that_read(setting: str) -> str:
    """The names of the methods that read a setting, as words: "LOCO and T-LOCO"."""
    return in_words([method.name for method in METHODS.values() if setting in method.reads])


def in_words(names: list[str]) -> str:
    """Names as a list in a sentence: "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
