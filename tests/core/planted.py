"""Faults to plant in a model: a step whose derivatives are not those of its value."""

import torch


class Identity(torch.autograd.Function):
    """y = x with a forward and a backward product scaled by chosen numbers: 1 is right."""

    @staticmethod
    def forward(x, _tangent, _gradient):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.tangent, ctx.gradient = inputs

    @staticmethod
    def jvp(ctx, tangent, *_):
        return ctx.tangent * tangent

    @staticmethod
    def backward(ctx, gradient):
        return ctx.gradient * gradient, None, None
