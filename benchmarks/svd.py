"""Partial SVD of the denoiser's Jacobian: evaluations and time against textbook subspace iteration, and against dense.

    python -m benchmarks.svd [--quick] [--json FILE]

`ours` is Golub-Kahan-Lanczos with a residual stop test, `forward_only` the SVD inside a bank of products J v. Both
baselines are block subspace iteration with as many columns as triplets: `subspace_published` stops on the signed
vectors, as the papers' code does, `subspace_sign_safe` on vectors with their signs aligned.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.portraits import Bench
from benchmarks.small_models import sd3
from benchmarks.tables import print_table
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.jacobian_directions import FORWARD_PRODUCTS
from latent_directions.core.operators import Jacobian, masked
from latent_directions.core.svd import ForwardBank, SingularTriplets, partial_svd
from latent_directions.demo.world import caption, draw, masks, sample_portrait
from latent_directions.nodes.host import run
from latent_directions.nodes.masks import mask_on_latent

SEED, TOLERANCE, MOST_ITERATIONS = 80001, 1e-3, 50
LIMITS = {1: 12, 5: 20, 20: 60}


@dataclass(frozen=True)
class Problem:
    """A model, a clean latent, the noise level as sigma, and a mask on the latent."""

    name: str
    trained: bool
    model: object
    positive: list
    latent: dict
    sigma: float
    mask: Tensor


def problems(bench: Bench) -> list[Problem]:
    """The demo's diffusion transformer at two noise levels, and a random-weight SD3-shaped model."""
    portrait = sample_portrait(np.random.default_rng(SEED))
    latent = {"samples": bench.vae.encode(torch.from_numpy(draw(portrait).copy())[None].float() / 255)}
    mouth = mask_on_latent(torch.from_numpy(masks(portrait)["mouth"])[None], latent["samples"], "")
    positive = bench.prompt(caption(portrait, attributes=[]))
    found = [Problem(f"demo MMDiT, sigma {s}", True, bench.model, positive, latent, s, mouth) for s in (0.6, 0.8)]
    random = sd3()
    samples = torch.randn(random.latent_shape, generator=torch.Generator().manual_seed(SEED))
    samples = random.model.get_model_object("latent_format").process_out(samples)
    return [*found, Problem("random SD3", False, random.model, random.positive, {"samples": samples}, 0.7, mouth)]


def subspace_iteration(
    matvec: Callable, rmatvec: Callable, start: Tensor, sign_safe: bool
) -> tuple[SingularTriplets, int]:
    """Block power iteration on J'J at k columns, stopped on the change of the vectors."""
    v = torch.linalg.qr(start.flatten(1).T)[0].T  # (k, N)
    pairs, change = 0, torch.inf
    for _ in range(MOST_ITERATIONS):
        u = torch.cat([matvec(row.view(1, *start.shape[1:])) for row in v])
        products = torch.cat([rmatvec(row[None]) for row in u]).flatten(1)
        pairs += len(v)
        _, s, new = torch.linalg.svd(products, full_matrices=False)
        aligned = new * (new * v).sum(1, keepdim=True).sign() if sign_safe else new
        change, v = float((aligned - v).abs().max()), new
        if change < TOLERANCE:
            break
    values = s.sqrt()
    u = torch.cat([matvec(row.view(1, *start.shape[1:])) for row in v]).flatten(1) / values[:, None]
    return (
        SingularTriplets(u, values, v, torch.full((len(v),), torch.nan), pairs, change < TOLERANCE),
        pairs,
    )


def true_residual(matvec: Callable, rmatvec: Callable, right: Tensor, shape: torch.Size) -> float:
    """Largest |J'u - s v| / s_1 with u = J v / s, from fresh products."""
    worst, first = 0.0, None
    for row in right.flatten(1):
        image = matvec(row.view(1, *shape))
        s = float(image.norm())
        first = s if first is None else first
        back = rmatvec(image / s).flatten()
        worst = max(worst, float((back - s * row).norm()) / first)
    return worst


def dense(denoiser: Denoiser, jacobian: Jacobian, mask: Tensor | None) -> Tensor:
    """All singular values of P J, from every column of J, in float64."""
    n = jacobian.x.numel()
    columns = [jacobian.matvec(block.view(-1, *jacobian.x.shape[1:])).flatten(1) for block in torch.eye(n).split(64)]
    matrix = torch.cat(columns).double()  # (n, out) = J'
    if mask is not None:
        matrix = matrix * mask.expand_as(jacobian.x).flatten().double()
    return torch.linalg.svdvals(matrix)


def solve(problem: Problem, ranks: list[int], with_dense: bool) -> list[dict]:
    """All methods on one problem, inside ComfyUI's sampling."""

    def body(denoiser: Denoiser, x0: Tensor) -> list[dict]:
        generator = torch.Generator().manual_seed(SEED)
        x = denoiser.noised(x0, torch.randn(x0.shape, generator=generator), problem.sigma)
        jacobian = Jacobian(denoiser, x, problem.sigma)
        rows = []
        for mask in (None, problem.mask):
            exact = dense(denoiser, jacobian, mask) if with_dense else None
            for k in ranks:
                rows += compare(problem, denoiser, jacobian, mask, k, exact, generator)
        return rows

    rows, _ = run(problem.model, {"source": problem.positive}, problem.latent, problem.sigma, body)
    return rows


def compare(problem, denoiser, jacobian, mask, k, exact, generator) -> list[dict]:
    """One rank, every method: pairs, evaluations, seconds, true residual, error to dense."""
    matvec, rmatvec = masked(jacobian, mask)
    start = torch.randn(k, *jacobian.x.shape[1:], generator=generator)
    first = start[:1] if mask is None else mask * start[:1]
    methods = {
        "ours": lambda: partial_svd(matvec, rmatvec, first, k, tol=TOLERANCE, max_pairs=6 * k + 60),
        "forward_only": lambda: ForwardBank(jacobian.matvec, start[:1], max(FORWARD_PRODUCTS, 2 * k)).triplets(k, mask),
        "subspace_published": lambda: subspace_iteration(matvec, rmatvec, start, sign_safe=False)[0],
        "subspace_sign_safe": lambda: subspace_iteration(matvec, rmatvec, start, sign_safe=True)[0],
    }
    rows = []
    for name, method in methods.items():
        jacobian.release()
        before, started = denoiser.counter.evaluations, time.perf_counter()
        result = method()
        seconds, evaluations = time.perf_counter() - started, denoiser.counter.evaluations - before
        error = None
        if exact is not None and len(result.values) == k:
            error = float((result.values.double() - exact[:k]).abs().max() / exact[0])
        rows.append(
            {
                "problem": problem.name,
                "trained": problem.trained,
                "k": k,
                "masked": mask is not None,
                "method": name,
                "pairs": result.pairs,
                "evaluations": evaluations,
                "seconds": round(seconds, 3),
                "residual": true_residual(matvec, rmatvec, result.right, jacobian.x.shape[1:]),
                "dense_error": error,
                "converged": bool(result.converged),
            }
        )
    return rows


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ranks 1 and 5, without the dense SVD")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    options = parser.parse_args()
    with torch.inference_mode():
        bench = Bench()
        ranks = [1, 5] if options.quick else list(LIMITS)
        rows = [r for problem in problems(bench) for r in solve(problem, ranks, not options.quick)]
    print_table([{k: f"{v:.1e}" if k in ("residual", "dense_error") and v else v for k, v in r.items()} for r in rows])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
