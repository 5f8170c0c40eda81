"""Attention with derivatives against plain attention in float64: value, forward AD, reverse, double backward."""

import pytest
import torch
from torch.autograd import forward_ad

from latent_directions.core import attention
from latent_directions.core.attention import (
    DifferentiableFunctions,
    differentiable_attention,
    scaled_dot_product_attention,
)
from latent_directions.core.operators import DOUBLE_BACKWARD, FORWARD_AD, Jacobian

B, H, L, S, E = 2, 3, 7, 5, 4


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(q, k, v, mask=None, scale=None):
    """softmax(q k' scale + mask) v, straight from the definition."""
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1) @ v


def inputs() -> tuple[torch.Tensor, ...]:
    return random(B, H, L, E, seed=0), random(B, H, S, E, seed=1), random(B, H, S, E, seed=2)


def masks() -> dict:
    keys = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keys[1, ..., -2:] = False
    pairs = random(L, S, seed=3) > -0.5
    pairs[:, 0] = True  # no query without a key
    return {
        "none": None,
        "keys": keys,
        "pairs": pairs,
        "added": random(B, H, L, S, seed=4),
        "added row": random(1, S, seed=5),
    }


@pytest.fixture(params=["whole", "in chunks"])
def chunks(request, monkeypatch):
    if request.param == "in chunks":  # two queries at a time, and a last one alone
        monkeypatch.setattr(attention, "SCORES_PER_CHUNK", 2 * B * H * S)


@pytest.fixture(params=masks())
def mask(request):
    return masks()[request.param]


@pytest.mark.parametrize("scale", [None, 0.3])
def test_value(chunks, mask, scale):
    q, k, v = inputs()
    ours = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    assert torch.allclose(ours, plain(q, k, v, mask, scale), atol=1e-12)


def tangents():
    return random(B, H, L, E, seed=6), random(B, H, S, E, seed=7), random(B, H, S, E, seed=8)


def dual(function, primals, directions):
    with forward_ad.dual_level():
        pairs = [p if d is None else forward_ad.make_dual(p, d) for p, d in zip(primals, directions, strict=True)]
        return forward_ad.unpack_dual(function(*pairs)).tangent


@pytest.mark.parametrize("moving", ["q", "k", "v", "qkv"])
def test_forward_ad(chunks, mask, moving):
    directions = [t if name in moving else None for name, t in zip("qkv", tangents(), strict=True)]
    ours = dual(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask), inputs(), directions)
    assert torch.allclose(ours, dual(lambda q, k, v: plain(q, k, v, mask), inputs(), directions), atol=1e-12)


def gradients(function, create_graph=False):
    leaves = [t.clone().requires_grad_() for t in inputs()]
    value = function(*leaves)
    return leaves, torch.autograd.grad(value, leaves, random(*value.shape, seed=9), create_graph=create_graph)


def test_reverse(chunks, mask):
    _, ours = gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask))
    _, exact = gradients(lambda q, k, v: plain(q, k, v, mask))
    for a, b in zip(ours, exact, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_double_backward(chunks, mask):
    """The gradient of <gradient, w>, which is how a Jacobian product is taken from a kept graph."""
    results = []
    for function in (scaled_dot_product_attention, plain):

        def attend(q, k, v, function=function):
            return function(q, k, v, mask) if function is plain else function(q, k, v, attn_mask=mask)

        leaves, first = gradients(attend, create_graph=True)
        inner = sum((g * t).sum() for g, t in zip(first, tangents(), strict=True))
        results.append(torch.autograd.grad(inner, leaves))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-11)


def test_causal():
    q, k, v = random(B, H, L, E, seed=0), random(B, H, L, E, seed=1), random(B, H, L, E, seed=2)
    mask = torch.ones(L, L, dtype=torch.bool).tril()
    assert torch.allclose(scaled_dot_product_attention(q, k, v, is_causal=True), plain(q, k, v, mask), atol=1e-12)


def test_grouped_queries():
    """Fewer key heads than query heads: each serves a group of neighbours."""
    q, k, v = random(B, 6, L, E, seed=0), random(B, 2, S, E, seed=1), random(B, 2, S, E, seed=2)
    expanded = [t.repeat_interleave(3, dim=1) for t in (k, v)]
    ours = dual(lambda a, b, c: scaled_dot_product_attention(a, b, c, enable_gqa=True), (q, k, v), (q, k, v))
    exact = dual(plain, (q, *expanded), (q, *expanded))
    assert torch.allclose(scaled_dot_product_attention(q, k, v, enable_gqa=True), plain(q, *expanded), atol=1e-12)
    assert torch.allclose(ours, exact, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_any_number_of_leading_dimensions(dims):
    leading = (2, 3, 2)[: dims - 2]
    q, k, v = (random(*leading, n, E, seed=s) for s, n in enumerate((L, S, S)))
    ours = scaled_dot_product_attention(q, k, v)
    assert ours.shape == (*leading, L, E)
    assert torch.allclose(ours, plain(q, k, v), atol=1e-12)
    assert torch.allclose(
        dual(scaled_dot_product_attention, (q, k, v), (q, None, v)), dual(plain, (q, k, v), (q, None, v)), atol=1e-12
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_is_close(dtype, tolerance):
    primals = [t.to(dtype) for t in inputs()]
    exact_inputs = [t.double() for t in primals]
    directions = [t.to(dtype) for t in tangents()]
    value = scaled_dot_product_attention(*primals)
    assert value.dtype == dtype
    assert torch.allclose(value.double(), plain(*exact_inputs), atol=tolerance)
    tangent = dual(scaled_dot_product_attention, primals, directions)
    exact = dual(plain, exact_inputs, [t.double() for t in directions])
    assert tangent.dtype == dtype
    assert torch.allclose(tangent.double(), exact, atol=4 * tolerance)


def test_rounding_does_not_grow_with_the_number_of_chunks(monkeypatch):
    primals = [random(1, 1, 256, 8, seed=s).bfloat16().requires_grad_() for s in range(3)]
    gradient = random(1, 1, 256, 8, seed=3).bfloat16()

    def error(chunks: int) -> float:
        monkeypatch.setattr(attention, "SCORES_PER_CHUNK", 256 * 256 // chunks)
        (ours,) = torch.autograd.grad(scaled_dot_product_attention(*primals), primals[1], gradient)
        exact_primals = [t.detach().double().requires_grad_() for t in primals]
        (exact,) = torch.autograd.grad(plain(*exact_primals), exact_primals[1], gradient.double())
        return float((ours.double() - exact).norm() / exact.norm())

    assert error(64) <= 1.2 * error(1)


def test_value_is_that_of_the_fused_kernel():
    """The model computes the same bits as without us."""
    primals = [t.float() for t in inputs()]
    fused = torch.nn.functional.scaled_dot_product_attention(*primals)
    assert torch.equal(scaled_dot_product_attention(*primals), fused)


@pytest.mark.parametrize("twice", [False, True])
def test_no_score_matrix_is_kept(twice):
    """What a backward pass, or the backward pass of one, saves grows with the tokens, not with their square."""

    def saved(tokens: int) -> int:
        q, k, v = (random(1, 1, tokens, E, seed=s).requires_grad_() for s in range(3))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            value = scaled_dot_product_attention(q, k, v)
            if twice:
                torch.autograd.grad(value, q, torch.ones_like(value, requires_grad=True), create_graph=True)
        return sum(sizes)

    assert saved(64) <= 4 * saved(16)


def fused(q, k, v, **options):
    """As model code calls it."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


class TestDifferentiableFunctions:
    """A context in which code that calls torch's fused attention has derivatives."""

    def test_fused_attention_has_no_forward_ad_outside(self):
        with pytest.raises(NotImplementedError, match="forward AD"):
            dual(fused_kernel, [t.float() for t in inputs()], [t.float() for t in tangents()])

    def test_forward_ad_through_fused_attention(self, mask):
        with DifferentiableFunctions():
            ours = dual(lambda q, k, v: fused(q, k, v, attn_mask=mask), inputs(), tangents())
        assert torch.allclose(ours, dual(lambda q, k, v: plain(q, k, v, mask), inputs(), tangents()), atol=1e-12)

    def test_the_value_stays_the_same(self):
        with DifferentiableFunctions():
            value = fused(*inputs(), scale=0.3)
        assert torch.equal(value, fused(*inputs(), scale=0.3))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_default_context_of_jacobians(self, reverse):
        """A function of plain torch code with fused attention, in every mode against the dense Jacobian."""
        x = random(1, L, E, seed=0)
        mixes = [random(E, H * E, seed=s) for s in (1, 2, 3)]

        def through(attend):
            def function(points):
                heads = [(points @ mix).unflatten(-1, (H, E)).transpose(1, 2) for mix in mixes]
                return points + attend(*heads).mean(1)

            return function

        exact = torch.func.jacrev(lambda flat: through(plain)(flat.view_as(x)).flatten())(x.flatten())
        identity = torch.eye(L * E, dtype=torch.float64).view(-1, L, E)
        assert isinstance(differentiable_attention(reverse), DifferentiableFunctions)
        jacobian = Jacobian(through(fused), x, mode=DOUBLE_BACKWARD if reverse else FORWARD_AD)
        assert torch.allclose(jacobian.matvec(identity).flatten(1).T, exact, atol=1e-11)
        assert torch.allclose(jacobian.rmatvec(identity).flatten(1), exact, atol=1e-11)

    def test_custom_operators_are_replaced_by_name(self):
        q, k, v = inputs()
        with DifferentiableFunctions({"latent_directions_core_tests.kernel": scaled_dot_product_attention}):
            ours = dual(torch.ops.latent_directions_core_tests.kernel, (q, k, v), tangents())
        assert torch.allclose(ours, dual(plain, (q, k, v), tangents()), atol=1e-12)
        with DifferentiableFunctions():  # without its derivative it loses tangents
            assert dual(torch.ops.latent_directions_core_tests.kernel, (q, k, v), tangents()) is None

    def test_functions_that_write_into_a_given_tensor(self):
        """torch.exp(x, out=y) has no forward AD; writing into y afterwards has."""
        x, direction = random(3, 4, seed=0), random(3, 4, seed=1)

        def write(t):
            return torch.exp(t, out=torch.empty_like(t))

        with DifferentiableFunctions():
            value, tangent = write(x), dual(write, (x,), (direction,))
        assert torch.equal(value, x.exp())
        assert torch.allclose(tangent, x.exp() * direction)


fused_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@torch.library.custom_op("latent_directions_core_tests::kernel", mutates_args=())
def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A fused kernel without derivatives."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)
