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
