"""The claims of the SVD benchmark on the demo model, and its baselines on a matrix."""

import torch

from benchmarks.portraits import Bench
from benchmarks.svd import (
    LIMITS,
    SEED,
    TOLERANCE,
    demo_problems,
    dense,
    singular_values,
    subspace_iteration,
    true_residual,
)
from latent_directions.core.denoiser import EvaluationCounter
from latent_directions.core.operators import RestrictedOperator, prediction_jacobian
from latent_directions.core.self_check import self_check
from latent_directions.core.svd import partial_svd
from latent_directions.nodes.host import run


@torch.inference_mode()
def test_few_pairs_give_the_dense_singular_values_of_the_demo_model():
    bench = Bench()
    (problem,) = demo_problems(bench, bench.model, "demo MMDiT", (0.8,))

    def body(denoiser, x0):
        generator = torch.Generator().manual_seed(SEED)
        x = denoiser.noised(x0, torch.randn(x0.shape, generator=generator), 0.8)
        check = self_check(prediction_jacobian(denoiser, x, 0.8))
        transposed = dense(check.jacobian)
        for mask in (None, problem.mask):
            exact, operator = singular_values(transposed, mask, x), RestrictedOperator(check.jacobian, mask)
            for k, limit in LIMITS.items():
                found = partial_svd(operator.matvec, operator.rmatvec, check.probe.back, k, tol=TOLERANCE)
                assert found.converged
                assert found.pairs <= limit
                residual = true_residual(operator.matvec, operator.rmatvec, found.right, x.shape[1:])
                assert residual <= 1.01 * TOLERANCE
                assert float((found.values - exact[:k]).abs().max() / exact[0]) <= TOLERANCE

    run(problem.model, {"source": problem.positive}, problem.latent, problem.sigma, body)


def test_subspace_iteration_notes_where_each_test_holds():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    matrix = (u * 0.5 ** torch.arange(30.0, dtype=torch.float64)) @ v.T
    start = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    freed = []
    noted = subspace_iteration(
        lambda x: x @ matrix.T,
        lambda y: y @ matrix,
        start,
        EvaluationCounter(),
        TOLERANCE,
        lambda: freed.append(1),
    )
    assert 3 * len(freed) == max(found.pairs for found in noted.values())
    assert noted["sign_safe"].pairs <= noted["published"].pairs
    assert all(noted[test].converged for test in ("sign_safe", "residual"))
    assert torch.allclose(noted["sign_safe"].values, 0.5 ** torch.arange(3.0, dtype=torch.float64), rtol=1e-3)
    right = noted["residual"].right
    images = right @ matrix.T
    values = images.norm(dim=1, keepdim=True)
    assert ((images / values) @ matrix - values * right).norm(dim=1).max() <= TOLERANCE
