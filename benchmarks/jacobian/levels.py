"""How low the rank of the Jacobian is at each noise level."""

import torch
from torch import Tensor

from benchmarks.jacobian.measures import ENERGY, PAPER_ENERGY, rank_share
from benchmarks.jacobian.subjects import Subject
from latent_directions.core.operators import Jacobian
from latent_directions.core.search import Search, Settings

LEVELS = (0.2, 0.4, 0.6, 0.8)
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


def energies(matrix: Tensor) -> Tensor:
    """Squared singular values of a matrix, ascending, in float64."""
    matrix = matrix.double()
    return torch.linalg.eigvalsh(matrix.T @ matrix)


def measured(subject: Subject, number: int, level: float) -> dict:
    """Shares of singular values that hold ENERGY and the paper's PAPER_ENERGY, of dD/dx and of d eps/dx."""

    def work(search: Search) -> dict:
        a, b = search.denoiser.scale(search.sigma)
        matrix = dense(search.jacobian())
        of_noise = (torch.eye(len(matrix)) - a * matrix) / b
        found = {name: energies(one) for name, one in (("D", matrix), ("eps", of_noise))}
        return {
            "sigma": search.sigma,
            "dimensions": len(matrix),
            "D": rank_share(found["D"], ENERGY),
            "D_paper": rank_share(found["D"], PAPER_ENERGY),
            "eps_paper": rank_share(found["eps"], PAPER_ENERGY),
        }

    return subject.encoded(number, level).searched(work, Settings())


def by_level(rows: list[dict]) -> list[dict]:
    """One line for a model and level."""
    return [
        {
            "model": row["key"]["model"],
            "level": row["key"]["rank at"],
            "sigma": row["sigma"],
            "dimensions": row["dimensions"],
            "share for 99 %": row["D"],
            "rank ratio of dD/dx": row["D_paper"],
            "rank ratio of d eps/dx": row["eps_paper"],
        }
        for row in rows
    ]
