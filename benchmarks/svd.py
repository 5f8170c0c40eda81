"""Partial SVD of the denoiser's Jacobian: evaluations and time against textbook subspace iteration, and against dense.

    python -m benchmarks.svd [--quick] [--json FILE]

`ours` is Golub-Kahan-Lanczos with a residual stop test, started as in Find Directions: from the products, and on the
graph, of the self-check that every search begins with, whose evaluations stand apart in `self_check_evaluations`.
`forward_only` is the SVD inside a Krylov space of products J v, with its asymmetry and its largest principal angle to
ours.
Both baselines are one block subspace iteration as the papers' code has it, with as many columns as triplets and the
graph of J' built in every iteration: `subspace_published` stops on the signed vectors, as that code does,
`subspace_sign_safe` on vectors with their signs aligned. `evaluations_there` and `seconds_there` are what it took to a
residual as small as that of ours, the comparison at equal residual; empty where 50 iterations did not get there. At
k = 1 every problem is solved from five random starts.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.command import parser, write
from benchmarks.portraits import Bench
from benchmarks.small_models import sd3
from benchmarks.tables import print_table
from benchmarks.unet import trained_unet
from latent_directions.core.denoiser import Denoiser, EvaluationCounter
from latent_directions.core.jacobian_directions import first_start, forward_products
from latent_directions.core.krylov import ForwardKrylovSpace
from latent_directions.core.operators import Jacobian, RestrictedOperator, prediction_jacobian
from latent_directions.core.self_check import self_check
from latent_directions.core.svd import SingularTriplets, partial_svd
from latent_directions.demo.world import caption, draw, masks, sample_portrait
from latent_directions.nodes.host import run
from latent_directions.nodes.masks import covered_cells, soft_mask_on_latent

SEED, TOLERANCE, MOST_ITERATIONS = 80001, 1e-3, 50
LIMITS = {1: 12, 5: 20, 20: 60}  # pairs of products on trained models, by rank
STARTS = {1: 5}  # random starts at a rank, else one: at k = 1 a few pairs more or less are much


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


def demo_problems(bench: Bench, model: object, name: str, sigmas: tuple[float, ...]) -> list[Problem]:
    """A model of the demo's latents at a portrait of the demo world, its mouth as the mask."""
    portrait = sample_portrait(np.random.default_rng(SEED))
    latent = {"samples": bench.vae.encode(torch.from_numpy(draw(portrait).copy())[None].float() / 255)}
    mouth = torch.from_numpy(masks(portrait)["mouth"])[None]
    mouth = covered_cells(soft_mask_on_latent(mouth, latent["samples"].shape))
    positive = bench.prompt(caption(portrait, attributes=[]))
    return [Problem(f"{name}, sigma {sigma}", True, model, positive, latent, sigma, mouth) for sigma in sigmas]


def problems(bench: Bench) -> list[Problem]:
    """The demo's diffusion transformer and a trained U-Net at two noise levels each, and a random SD3-shaped model."""
    found = demo_problems(bench, bench.model, "demo MMDiT", (0.6, 0.8))
    found += demo_problems(bench, trained_unet(), "U-Net", (1.5, 4.0))
    random = sd3()
    samples = torch.randn(random.latent_shape, generator=torch.Generator().manual_seed(SEED))
    latent = {"samples": random.model.get_model_object("latent_format").process_out(samples)}
    return [*found, Problem("random SD3", False, random.model, random.positive, latent, 0.7, found[0].mask)]


@dataclass(frozen=True)
class Iterated:
    """Where block power iteration stood when a stop test held, or at its end."""

    values: Tensor
    right: Tensor
    pairs: int
    evaluations: int
    seconds: float
    converged: bool


def subspace_iteration(
    matvec: Callable, rmatvec: Callable, start: Tensor, counter: EvaluationCounter, wanted: float, forget: Callable
) -> dict[str, Iterated]:
    """Block power iteration on J'J at k columns, noted where each stop test first holds, and at the end.

    "published" compares signed vectors, "sign_safe" aligned ones, and "residual" asks that the largest
    |J'u - s v| / s_1 of the vectors that an iteration starts from be `wanted` or less. `forget` is called before each.
    """
    v = torch.linalg.qr(start.flatten(1).T)[0].T  # (k, N)
    begun, before, noted = time.perf_counter(), counter.evaluations, {}
    for iteration in range(1, MOST_ITERATIONS + 1):
        forget()
        images = torch.cat([matvec(row.view(1, *start.shape[1:])) for row in v])
        products = torch.cat([rmatvec(row[None]) for row in images]).flatten(1)  # J'J v
        squares = images.flatten(1).square().sum(1, keepdim=True)
        residual = ((products - squares * v).norm(dim=1) / squares[:, 0].sqrt()).max() / squares.max().sqrt()
        _, s, new = torch.linalg.svd(products, full_matrices=False)
        aligned = new * (new * v).sum(1, keepdim=True).sign()
        tests = {
            "published": (new - v).abs().max() < TOLERANCE,
            "sign_safe": (aligned - v).abs().max() < TOLERANCE,
            "residual": residual <= wanted,
        }
        for test, holds in tests.items():
            if test not in noted and (holds or iteration == MOST_ITERATIONS):
                spent = counter.evaluations - before, time.perf_counter() - begun
                noted[test] = Iterated(s.sqrt(), new, iteration * len(v), *spent, bool(holds))
        if len(noted) == len(tests):
            break
        v = new
    return noted


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


def dense(jacobian: Jacobian) -> Tensor:
    """J' from every column of J: products in the model's precision, (N, N)."""
    n = jacobian.x.numel()
    blocks = [block.view(-1, *jacobian.x.shape[1:]) for block in torch.eye(n).split(64)]
    return torch.cat([jacobian.matvec(block).flatten(1) for block in blocks])


def singular_values(transposed: Tensor, mask: Tensor | None, like: Tensor) -> Tensor:
    """Those of P J in float64, from J' and a mask that fits `like`."""
    transposed = transposed.double()
    return torch.linalg.svdvals(transposed if mask is None else transposed * mask.expand_as(like).flatten())


def solve(problem: Problem, ranks: list[int], with_dense: bool) -> list[dict]:
    """All methods on one problem, inside ComfyUI's sampling."""

    def body(denoiser: Denoiser, x0: Tensor) -> list[dict]:
        generator = torch.Generator().manual_seed(SEED)
        x = denoiser.noised(x0, torch.randn(x0.shape, generator=generator), problem.sigma)
        rows, transposed = [], dense(prediction_jacobian(denoiser, x, problem.sigma)) if with_dense else None
        for start in range(max(STARTS.get(k, 1) for k in ranks)):
            before = denoiser.counter.evaluations
            candidate = prediction_jacobian(denoiser, x, problem.sigma)
            check = self_check(candidate, SEED + 1 + start)  # of SEED is the noise in x
            labels = {"start": start, "self_check_evaluations": denoiser.counter.evaluations - before}
            for mask in (None, problem.mask):
                exact = singular_values(transposed, mask, x) if with_dense else None
                for k in (k for k in ranks if start < STARTS.get(k, 1)):
                    rows += [r | labels for r in compare(problem, check, mask, k, exact, generator)]
        return rows

    rows, _ = run(problem.model, {"source": problem.positive}, problem.latent, problem.sigma, body)
    return rows


def compare(problem, check, mask, k, exact, generator) -> list[dict]:
    """One rank, every method: pairs, evaluations, seconds, true residual, error to dense."""
    jacobian, probe = check.jacobian, check.probe
    operator, counter = RestrictedOperator(jacobian, mask), jacobian.counter
    matvec, rmatvec = operator.matvec, operator.rmatvec

    def timed(method: Callable) -> tuple[object, dict]:
        before, begun = counter.evaluations, time.perf_counter()
        result = method()
        seconds = time.perf_counter() - begun
        return result, {"evaluations": counter.evaluations - before, "seconds": round(seconds, 3)}

    def row(method: str, result: SingularTriplets | Iterated, cost: dict) -> dict:
        error = None
        if exact is not None and len(result.values) == k:
            error = float((result.values.double() - exact[:k]).abs().max() / exact[0])
        return {
            "problem": problem.name,
            "trained": problem.trained,
            "k": k,
            "masked": mask is not None,
            "method": method,
            "pairs": result.pairs,
            **cost,
            "residual": true_residual(matvec, rmatvec, result.right, jacobian.x.shape[1:]),
            "dense_error": error,
            "converged": bool(result.converged),
        }

    rmatvec(probe.image)  # the graph is kept after the self-check; the baselines before this have freed it

    def search() -> SingularTriplets:
        start = first_start(jacobian, probe, mask)
        return partial_svd(matvec, rmatvec, start, k, tol=TOLERANCE, max_pairs=6 * k + 60)

    ours, cost = timed(search)
    rows = [row("ours", ours, cost)]
    size = 1 + forward_products(
        7, jacobian.approximate_cost, k, 0
    )  # 7 evaluations of a self-check without a backward pass
    known = {"image": probe.image, "mask": mask}
    space, space_cost = timed(lambda: ForwardKrylovSpace(jacobian.approximate_matvec, probe.vector, size, **known))
    inside, svd_cost = timed(lambda: space.triplets(k, mask))
    rows.append(
        row("forward_only", inside, {key: space_cost[key] + svd_cost[key] for key in space_cost})
        | {"asymmetry": space.asymmetry, "angle_degrees": largest_angle(ours.right, inside.right)}
    )
    start = torch.randn(k, *jacobian.x.shape[1:], generator=generator)
    iterated = subspace_iteration(matvec, rmatvec, start, counter, rows[0]["residual"], jacobian.release)
    there = iterated["residual"]
    shared = {
        "evaluations_there": there.evaluations if there.converged else None,
        "seconds_there": round(there.seconds, 3) if there.converged else None,
    }
    for test in ("published", "sign_safe"):
        found = iterated[test]
        cost = {"evaluations": found.evaluations, "seconds": round(found.seconds, 3)}
        rows.append(row(f"subspace_{test}", found, cost) | shared)
    return rows


def within_limits(row: dict) -> bool:
    """Whether a row converged within the pairs that its rank allows."""
    return row["converged"] and row["residual"] <= 1.01 * TOLERANCE and row["pairs"] <= LIMITS[row["k"]]


def largest_angle(first: Tensor, second: Tensor) -> float:
    """Largest principal angle in degrees between the spans of two sets of orthonormal vectors."""
    cosines = torch.linalg.svdvals(first.flatten(1).double() @ second.flatten(1).double().T)
    return float(torch.rad2deg(torch.acos(cosines.min().clamp(max=1))))


def against(rows: list[dict]) -> list[dict]:
    """One line a problem, rank and mask, over all starts: how many times more each baseline spends than ours."""
    lines = []
    for key in dict.fromkeys((r["problem"], r["k"], r["masked"]) for r in rows):
        by_method = {}
        for r in rows:
            if (r["problem"], r["k"], r["masked"]) == key:
                by_method.setdefault(r["method"], []).append(r)
        ours = by_method["ours"]
        line = dict(zip(("problem", "k", "masked"), key, strict=True))
        line |= {column: mean(ours, column) for column in ("pairs", "evaluations")}
        for column in ("residual", "dense_error"):
            line[column] = max((r[column] for r in ours if r[column] is not None), default=None)
        for name in ("published", "sign_safe"):
            others = by_method[f"subspace_{name}"]
            sign = "" if all(r["converged"] for r in others) else "> "
            for cost in ("evaluations", "seconds"):
                line[f"{name}: {cost}"] = f"{sign}{mean(others, cost) / mean(ours, cost):.1f} x"
        baseline = by_method["subspace_published"]
        sign = "" if all(r["evaluations_there"] for r in baseline) else "> "
        for cost in ("evaluations", "seconds"):
            spent = [{cost: r[cost] if r[f"{cost}_there"] is None else r[f"{cost}_there"]} for r in baseline]
            line[f"equal residual: {cost}"] = f"{sign}{mean(spent, cost) / mean(ours, cost):.1f} x"
        lines.append(line)
    return lines


def mean(rows: list[dict], key: str) -> float:
    """The mean of a column."""
    return sum(r[key] for r in rows) / len(rows)


def forward_only(rows: list[dict]) -> list[dict]:
    """One line a problem, rank and mask, the first start: what the Krylov space without a backward pass contains."""
    keys = ("problem", "k", "masked", "pairs", "evaluations", "residual", "asymmetry", "angle_degrees")
    return [{key: r[key] for key in keys} for r in rows if r["method"] == "forward_only" and not r["start"]]


def in_words(lines: list[dict]) -> list[dict]:
    """Lines as they are printed."""
    small = ("residual", "dense_error")
    return [{k: f"{v:.1e}" if k in small and v is not None else v for k, v in line.items()} for line in lines]


def main() -> None:
    """Run the benchmark and print its table."""
    options = parser(__doc__, "ranks 1 and 5, without the dense SVD").parse_args()
    with torch.inference_mode():
        bench = Bench()
        ranks = [1, 5] if options.quick else list(LIMITS)
        rows = []
        for problem in problems(bench):
            print(problem.name, file=sys.stderr, flush=True)
            rows += solve(problem, ranks, not options.quick)
    print_table(in_words(against(rows)))
    print("\nWithout a backward pass:\n")
    print_table(in_words(forward_only(rows)))
    write(rows, options.json)
    beyond = [r for r in rows if r["method"] == "ours" and r["trained"] and not within_limits(r)]
    if beyond:
        msg = f"Not converged, or beyond {LIMITS} pairs: {beyond}"
        raise SystemExit(msg)


if __name__ == "__main__":
    main()
