"""How low the rank of the Jacobian is at each noise level, and how far the features bend between two portraits."""

import torch
from torch import Tensor

from benchmarks.jacobian.measures import PAPER_ENERGY
from benchmarks.jacobian.subjects import Subject
from latent_directions.core.denoiser import SOURCE
from latent_directions.core.geometry import curvedness, rank_share
from latent_directions.core.operators import Jacobian
from latent_directions.core.search import Search, Settings

LEVELS = (0.2, 0.4, 0.6, 0.8)
ENDS = (1, 2)  # portraits to which the features' lines go
BLOCK = 64  # columns at once


def dense(jacobian: Jacobian) -> Tensor:
    """J as a matrix (N, N), column by column, in blocks."""
    count = jacobian.x.numel()
    columns = []
    for first in range(0, count, BLOCK):
        block = torch.zeros(min(BLOCK, count - first), count)
        block[:, first : first + BLOCK].fill_diagonal_(1.0)
        columns.append(jacobian.matvec(block.view(-1, *jacobian.x.shape[1:]).to(jacobian.x)).flatten(1))
    return torch.cat(columns).T


def singular_values(matrix: Tensor) -> Tensor:
    """Those of a matrix, ascending, by the eigenvalues of A'A: the shares that are asked for need no more digits."""
    return torch.linalg.eigvalsh(matrix.T @ matrix).clamp_min(0).sqrt()


def measured(subject: Subject, level: float) -> dict:
    """Shares of singular values that hold 99 % and the paper's PAPER_ENERGY, of dD/dx and d eps/dx; and curvedness.

    The Jacobians are those of portrait 0; the lines go from it to the portraits of ENDS, all inverted to the level.
    """
    ends = [subject.encoded(number, level).searched(lambda search: search.x.clone(), Settings()) for number in ENDS]

    def work(search: Search) -> dict:
        denoiser, sigma = search.denoiser, search.sigma
        a, b = denoiser.scale(sigma)
        matrix = dense(search.jacobian())
        of_noise = (torch.eye(len(matrix)) - a * matrix) / b
        found = {name: singular_values(one) for name, one in (("D", matrix), ("eps", of_noise))}
        lines = [curvedness(lambda x: denoiser.features.read(x, sigma, SOURCE), search.x, end) for end in ends]
        return {
            "sigma": sigma,
            "dimensions": len(matrix),
            "D": rank_share(found["D"]),
            "D_paper": rank_share(found["D"], PAPER_ENERGY),
            "eps_paper": rank_share(found["eps"], PAPER_ENERGY),
            "curvedness": sum(lines) / len(lines),
        }

    return subject.encoded(0, level).searched(work, Settings())


def by_level(rows: list[dict]) -> list[dict]:
    """One line for a model and level."""
    return [
        {
            "model": row["key"]["model"],
            "level": row["key"]["at"],
            "sigma": row["sigma"],
            "dimensions": row["dimensions"],
            "share for 99 %": row["D"],
            "rank ratio of dD/dx": row["D_paper"],
            "rank ratio of d eps/dx": row["eps_paper"],
            "curvedness": row["curvedness"],
        }
        for row in rows
    ]
