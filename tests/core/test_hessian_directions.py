"""Hessian score distillation against the same constructions in dense float64 linear algebra."""

import pytest
import torch
from analytic import EYE, SIZE, cosine, rows_of

from latent_directions.core.errors import EqualPredictionsError, EverythingKeptError
from latent_directions.core.hessian_directions import (
    dds,
    hsds,
    low_pass,
    score_difference,
    solve_by_bidiagonalisation,
    solve_in_krylov_space,
)
from latent_directions.core.search import matching_step


def signal(model, mask=None) -> torch.Tensor:
    """q inside the mask."""
    q = model.exact("target") - model.exact("source")
    return q if mask is None else mask * q


def kept_signal(model, mask) -> torch.Tensor:
    """q without its part along what the keep pair changes, inside the mask, as a vector."""
    kept = (model.exact("keep 0 present") - model.exact("keep 0 absent")).flatten()
    q = signal(model).flatten()
    return rows_of(mask) @ (q - kept * (kept @ q) / (kept @ kept))


def krylov_basis(matrix: torch.Tensor, start: torch.Tensor, size: int) -> torch.Tensor:
    """An orthonormal basis (N, size) of start, A start, A A start ..."""
    basis = [start / start.norm()]
    while len(basis) < size:
        columns = torch.stack(basis, dim=1)
        following = matrix @ basis[-1]
        for _ in range(2):  # rounding would leave it oblique
            following = following - columns @ (columns.T @ following)
        basis.append(following / following.norm())
    return torch.stack(basis, dim=1)


def smallest_inside(basis: torch.Tensor, k: torch.Tensor, q: torch.Tensor, damping: float) -> torch.Tensor:
    """The d in the span of `basis` that minimises |K d - q|^2 + damping |d|^2."""
    images = k @ basis
    normal = images.T @ images + damping * torch.eye(basis.shape[1], dtype=q.dtype)
    return basis @ torch.linalg.solve(normal, images.T @ q)


def masked_hessian(model, mask, prompt="source") -> torch.Tensor:
    """P K, K = a J."""
    return rows_of(mask) @ (model.a * model.jacobian(prompt))


class TestScoreDifference:
    def test_inside_the_mask(self, model, mask):
        search = model.search(mask)
        q = score_difference(search, model.operator())
        assert torch.allclose(q, signal(model, mask))
        assert search.notes == {}

    def test_guidance(self, model):
        """Both prompts share the negative, so that q grows with the guidance."""
        q = score_difference(model.search(guidance=2.5), model.operator())
        assert torch.allclose(q, 2.5 * signal(model))

    def test_keep_takes_off_its_difference_and_nothing_else(self, model, mask):
        search = model.search(mask, keep=1)
        q = score_difference(search, model.operator())
        kept = (model.exact("keep 0 present") - model.exact("keep 0 absent")).flatten()
        raw = signal(model).flatten()
        assert torch.allclose(q.flatten(), rows_of(mask) @ (raw - kept * (kept @ raw) / (kept @ kept)))
        assert search.notes["keep_cosines"] == pytest.approx([cosine(raw, kept)])
        assert 0.1 < search.notes["keep_cosines"][0] < 0.99

    def test_several_keep_pairs(self, model):
        model.prompts["keep 1 present"], model.prompts["keep 1 absent"] = model.prompts["free"], model.prompts["source"]
        search = model.search(keep=2)
        q = score_difference(search, model.operator()).flatten()
        changes = [model.exact(f"keep {k} present") - model.exact(f"keep {k} absent") for k in (0, 1)]
        span = torch.linalg.qr(torch.stack([c.flatten() for c in changes], dim=1))[0]
        raw = signal(model).flatten()
        assert torch.allclose(q, raw - span @ (span.T @ raw))
        assert search.notes["keep_cosines"] == pytest.approx([cosine(raw, c) for c in changes])

    def test_keep_that_leaves_nothing(self, model):
        model.prompts["keep 0 present"], model.prompts["keep 0 absent"] = (
            model.prompts["target"],
            model.prompts["source"],
        )
        with pytest.raises(EverythingKeptError, match="covers all that the target prompt would change"):
            score_difference(model.search(keep=1), model.operator())


class TestNewton:
    @pytest.mark.parametrize("damping", [0.01, 0.3])
    def test_solves_the_normal_equations(self, model, mask, damping):
        k, q = masked_hessian(model, mask), signal(model, mask)
        d, notes = solve_by_bidiagonalisation(model.search(mask, damping=damping, max_pairs=40), model.operator(), q)
        normal = k.T @ k + damping * EYE
        gradient = (normal @ d.flatten() - k.T @ q.flatten()).norm() / (k.T @ q.flatten()).norm()
        assert notes["least_squares_residual"] == pytest.approx(float(gradient), rel=1e-6)
        assert gradient <= 1e-2
        exact = torch.linalg.solve(normal, k.T @ q.flatten())
        assert (d.flatten() - exact).norm() < 0.15 * exact.norm()
        assert cosine(d, exact) > 0.99

    def test_a_bound_on_the_pairs(self, model):
        _, notes = solve_by_bidiagonalisation(model.search(damping=1e-6, max_pairs=3), model.operator(), signal(model))
        assert notes["pairs"] == 3

    @pytest.mark.parametrize("damping", [0.0, 0.01, 0.3])
    @pytest.mark.parametrize("pairs", [1, 2, 4])
    def test_is_the_best_move_inside_the_space_of_its_products(self, model, mask, pairs, damping):
        """LSQR after m pairs: the minimum over K'q, (K'K) K'q ... exactly, whatever it stops at."""
        k, q = masked_hessian(model, mask), signal(model, mask)
        search = model.search(mask, damping=damping, max_pairs=pairs)
        d, notes = solve_by_bidiagonalisation(search, model.operator(), q)
        basis = krylov_basis(k.T @ k, k.T @ q.flatten(), notes["pairs"])
        exact = smallest_inside(basis, k, q.flatten(), damping)
        assert (d.flatten() - exact).norm() < 1e-6 * exact.norm()
        assert notes["pairs"] <= pairs

    @pytest.mark.parametrize("damping", [1e-8, 0.01, 0.3])
    @pytest.mark.parametrize("products", [2, 5])
    def test_without_a_backward_pass_it_is_the_best_inside_its_space(self, model, mask, products, damping):
        """Damped GMRES after m products with K, which is symmetric here: the minimum over q, K q ... exactly."""
        k, q = masked_hessian(model, mask), signal(model, mask)
        d, notes = solve_in_krylov_space(model.search(mask, damping=damping, max_pairs=products), model.operator(), q)
        basis = krylov_basis(model.a * model.jacobian(), q.flatten(), notes["products"])
        exact = smallest_inside(basis, k, q.flatten(), damping)
        assert (d.flatten() - exact).norm() < 1e-6 * exact.norm()

    @pytest.mark.parametrize("solve", [solve_by_bidiagonalisation, solve_in_krylov_space])
    def test_much_damping_gives_the_gradient(self, model, mask, solve):
        """d -> K'q / damping, the direction of T-LOCO; without a backward pass with K for K', and no mask."""
        mask = mask if solve is solve_by_bidiagonalisation else None
        k, q = masked_hessian(model, mask), signal(model, mask)
        d, _ = solve(model.search(mask, damping=1e6, max_pairs=SIZE), model.operator(), q)
        assert torch.allclose(1e6 * d.flatten(), k.T @ q.flatten(), rtol=1e-4, atol=1e-6)

    def test_little_damping_gives_the_inverse(self, model):
        """d -> K^-1 q on what K does not all but erase."""
        k, q = masked_hessian(model, None), signal(model)
        d, _ = solve_in_krylov_space(model.search(damping=1e-14, max_pairs=SIZE), model.operator(), q)
        assert torch.allclose(k @ d.flatten(), q.flatten(), atol=1e-5)
        weak = solve_in_krylov_space(model.search(damping=0.3, max_pairs=SIZE), model.operator(), q)[0]
        assert d.norm() > weak.norm()

    def test_without_a_backward_pass(self, model, mask):
        k, q = masked_hessian(model, mask), signal(model, mask)
        d, notes = solve_in_krylov_space(model.search(mask, max_pairs=SIZE), model.operator(), q)
        exact = torch.linalg.solve(k.T @ k + 0.01 * EYE, k.T @ q.flatten())
        assert torch.allclose(d.flatten(), exact, atol=1e-6)
        assert notes["relative_misfit"] == pytest.approx(float((k @ exact - q.flatten()).norm() / q.norm()), rel=1e-4)
        assert notes["asymmetry"] < 1e-8
        assert (notes["products"], notes["products_by"]) == (SIZE, "forward AD")

    def test_hits_the_signal_where_the_model_is_linear(self, model):
        """Small damping, no mask: J v step = q, so strength 1 changes the prediction by what the words change."""
        q = signal(model)
        d, _ = solve_in_krylov_space(model.search(damping=1e-12, max_pairs=SIZE), model.operator(), q)
        vector = d / d.norm()
        effect = model.jacobian() @ vector.flatten() * matching_step(model.operator().matvec(vector), q, None)
        assert torch.allclose(effect, q.flatten(), atol=1e-5)


class TestFilters:
    def test_low_pass(self, model, mask):
        (move,) = low_pass(model.search(mask))
        expected = model.a * model.jacobian("free") @ signal(model, mask).flatten()
        assert cosine(move.vector, expected) > 1 - 1e-10
        assert move.notes == {}

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only", "double backward", "central differences"])
    @pytest.mark.parametrize("run", [hsds, low_pass, dds])
    def test_with_something_to_keep(self, model, mask, run, derivatives):
        """The whole way from the prompts to the unit move and its step, by every kind of derivatives."""
        (move,) = run(model.search(mask, keep=1, damping=0.3, max_pairs=SIZE, derivatives=derivatives))
        k, q = masked_hessian(model, mask), kept_signal(model, mask)
        expected = {
            hsds: torch.linalg.solve(k.T @ k + 0.3 * EYE, k.T @ q),
            low_pass: model.a * model.jacobian("free") @ q,
            dds: q,
        }[run]
        # least squares by bidiagonalisation stops at a relative gradient of 1e-2
        assert cosine(move.vector, expected) > 1 - (1e-3 if run is hsds else 1e-8)
        effect = rows_of(mask) @ model.jacobian() @ move.vector.flatten()
        assert move.step == pytest.approx(float(q.norm() / effect.norm()), rel=1e-4)

    def test_low_pass_checks_the_jacobian_of_the_free_prompt_too(self, model):
        search = model.search()
        low_pass(search)
        assert {"self_check", "self_check_free"} <= set(search.notes)
        assert search.notes["self_check_free"]["difference"] != search.notes["self_check"]["difference"]

    def test_delta_score(self, model, mask):
        (move,) = dds(model.search(mask))
        assert torch.allclose(move.vector, signal(model, mask) / signal(model, mask).norm())

    @pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
    def test_hsds(self, model, mask, derivatives):
        (move,) = hsds(model.search(mask, max_pairs=SIZE, derivatives=derivatives))
        k, q = masked_hessian(model, mask), signal(model, mask)
        exact = torch.linalg.solve(k.T @ k + 0.01 * EYE, k.T @ q.flatten())
        assert cosine(move.vector, exact) > 0.99
        assert ("least_squares_residual" in move.notes) == (derivatives == "automatic")
        assert ("asymmetry" in move.notes) == (derivatives == "forward only")

    @pytest.mark.parametrize("run", [hsds, low_pass, dds])
    def test_step_makes_the_linear_effect_as_large_as_the_signal(self, model, mask, run):
        (move,) = run(model.search(mask))
        assert float(move.vector.norm()) == pytest.approx(1)
        effect = rows_of(mask) @ model.jacobian() @ move.vector.flatten() * move.step
        assert float(effect.norm()) == pytest.approx(float(signal(model, mask).norm()))


@pytest.mark.parametrize("run", [hsds, low_pass, dds])
@pytest.mark.parametrize("derivatives", ["automatic", "forward only"])
def test_a_target_that_says_the_same(model, run, derivatives):
    model.prompts["target"] = model.prompts["source"]
    with pytest.raises(EqualPredictionsError, match="no direction between them"):
        run(model.search(derivatives=derivatives))
