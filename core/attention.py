"""Attention with forward AD and double backward, memory linear in the number of tokens.

torch's fused attention has no forward AD and no double backward; where no derivative is taken it stays in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

SCORES_PER_CHUNK = 2**24  # entries of the score matrix that are in memory at once, over batch and heads


def _query_chunks(q, k):
    """Slices over queries so that one chunk of scores holds at most SCORES_PER_CHUNK entries."""
    rows = max(1, SCORES_PER_CHUNK // (q.shape[0] * q.shape[1] * k.shape[2]))
    return [slice(i, i + rows) for i in range(0, q.shape[2], rows)]


def _probabilities(q, k, mask, scale, rows):
    """softmax(q k^T scale + mask) of a chunk of queries, in float32 or better, as the fused kernels do."""
    scores = (q[:, :, rows] @ k.transpose(-2, -1)) * scale  # BHLE, BHSE -> BHLS
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    if mask is not None:
        part = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        scores = scores.masked_fill(~part, float("-inf")) if part.dtype == torch.bool else scores + part
    return scores.softmax(dim=-1)


class _Attention(torch.autograd.Function):
    """softmax(q k^T scale + mask) v, with products that keep no score matrix.

    The value comes from torch's fused attention, so it is the one the model always computes. Forward AD, backward and
    double backward recompute the probabilities P chunk by chunk:
        dO = (P * dS - P rowsum(P * dS)) v + P dv,  S = q k^T scale,
    and its transpose.
    """

    @staticmethod
    def forward(q, k, v, mask, scale):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx, dq, dk, dv, _mask, _scale):
        q, k, v, mask = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(t) if d is None else d for t, d in ((q, dq), (k, dk), (v, dv)))
        out = []
        for rows in _query_chunks(q, k):
            p = _probabilities(q, k, mask, ctx.scale, rows)
            ds = p * (dq[:, :, rows] @ k.transpose(-2, -1) + q[:, :, rows] @ dk.transpose(-2, -1)) * ctx.scale
            dp = ds - p * ds.sum(dim=-1, keepdim=True)
            out.append(dp.to(v.dtype) @ v + p.to(v.dtype) @ dv)
        return torch.cat(out, dim=2)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, mask = ctx.saved_tensors
        return *_AttentionBackward.apply(q, k, v, mask, ctx.scale, grad), None, None


class _AttentionBackward(torch.autograd.Function):
    """The transpose of attention's derivative; its own backward recomputes it chunk by chunk under autograd."""

    @staticmethod
    def forward(q, k, v, mask, scale, grad):
        dq, dk, dv = [], _zeros_for_sums(k), _zeros_for_sums(v)
        for rows in _query_chunks(q, k):
            chunk = _chunk_backward(q, k, v, mask, scale, grad[:, :, rows], rows)
            dq.append(chunk[0])
            dk += chunk[1]
            dv += chunk[2]
        return torch.cat(dq, dim=2), dk.to(k.dtype), dv.to(v.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, mask, ctx.scale, grad = inputs
        ctx.save_for_backward(q, k, v, mask, grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, a, b, c):
        q, k, v, mask, grad = ctx.saved_tensors
        products, of_grad = [_zeros_for_sums(t) for t in (q, k, v)], torch.zeros_like(grad)
        for rows in _query_chunks(q, k):
            with torch.enable_grad():
                inputs = [t.detach().requires_grad_(True) for t in (q, k, v, grad[:, :, rows])]
                chunk = _chunk_backward(*inputs[:3], mask, ctx.scale, inputs[3], rows)
                found = torch.autograd.grad(chunk, inputs, (a[:, :, rows], b, c))
            for total, part in zip(products, found[:3], strict=True):
                total += part
            of_grad[:, :, rows] = found[3]
        return *(total.to(q.dtype) for total in products), None, None, of_grad


def _zeros_for_sums(tensor):
    """Zeros to sum over chunks in: in half precision the rounding would grow with their number."""
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _chunk_backward(q, k, v, mask, scale, grad, rows):
    """dq of a chunk of queries, and what the chunk adds to dk and dv."""
    p = _probabilities(q, k, mask, scale, rows)
    dv = p.to(grad.dtype).transpose(-2, -1) @ grad
    dp = grad @ v.transpose(-2, -1)
    ds = (p * (dp - (dp * p).sum(dim=-1, keepdim=True)) * scale).to(q.dtype)
    return ds @ k, ds.transpose(-2, -1) @ q[:, :, rows], dv


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """torch's function of that name with forward AD and double backward, memory linear in the number of tokens.

    query ...HLE, key ...HSE, value ...HSE, attn_mask broadcastable to ...HLS (bool: True takes part; float: added).
    """
    q, k, v = (t.reshape(-1, *((1,) * (3 - t.ndim)), *t.shape[-3:]) for t in (query, key, value))  # BHLE
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    if is_causal:
        attn_mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.ndim < 4:
        attn_mask = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + attn_mask.shape)
    out = _Attention.apply(q, k, v, attn_mask, q.shape[-1] ** -0.5 if scale is None else scale)
    return out.reshape(*query.shape[:-1], v.shape[-1])


class DifferentiableFunctions(TorchFunctionMode):
    """Inside it every call of torch's fused attention is replaced by the function of this module.

    `operators` gives further replacements, by the name of the custom operator. A call with `out=` has no derivative
    (attention in chunks takes its exponential so), so the result is computed first and then copied into `out`.
    """

    def __init__(self, operators: Mapping[str, Callable] | None = None):
        super().__init__()
        self._operators = operators or {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention:
            func = scaled_dot_product_attention
        elif isinstance(func, torch._ops.OpOverloadPacket):
            func = self._operators.get(str(func), func)
        elif isinstance(kwargs.get("out"), torch.Tensor):
            return kwargs.pop("out").copy_(func(*args, **kwargs))
        return func(*args, **kwargs)


def differentiable_attention(backward: bool) -> DifferentiableFunctions:
    """The context in which a model of plain torch code can be differentiated, forward and backward alike."""
    return DifferentiableFunctions()
