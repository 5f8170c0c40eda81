"""Our own methods, in the same form as the peers: (bench, case, **setting) -> edit, and edit(strengths) -> pictures."""

from benchmarks.eim.peers import Edit
from benchmarks.portraits import Bench, Case


def slider(
    bench: Bench,
    case: Case,
    *,
    level: float,
    noise: str,
    method: str = "text",
    keep: bool = False,
    recorded: bool = False,
    **options,
) -> Edit:
    """The pack's own nodes.

    Args:
        bench: the demo model.
        case: what to move.
        level: of Invert Image.
        noise: its method.
        method: of Find Directions.
        keep: whether the case's own keep prompts are given.
        recorded: whether words are taken on the reference path.
        options: further inputs of Find Directions.
    """
    inversion, sigmas = bench.encode(case, level, noise)
    direction, _ = bench.find(case, inversion, method, keep=case.keep if keep else "", **options)
    return lambda strengths: bench.edit(inversion, sigmas, direction, strengths, recorded=recorded)
