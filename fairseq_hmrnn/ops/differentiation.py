"""Gradients written by hand that have no gradient themselves."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor


class _Undifferentiable(torch.autograd.Function):
    """A gradient as it is, whose own gradient is an error. anchors: tensors that require one, of which autograd takes
    it for a function."""

    @staticmethod
    def forward(ctx, grad: Tensor, *anchors: Tensor):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "gradients written by hand cannot be differentiated twice: for second derivatives, such as a penalty on "
            "gradients, use HMLSTM(backend='reference') in float32 or float64, without bfloat16_products"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward pass of a Function that saves its inputs, as they were given: raises on any second
    differentiation. torch's `once_differentiable` does not raise when the incoming gradient needs none, e.g. for a
    linear loss. Autograd walks only through what leads to the tensors that it is asked for, hence from a gradient to
    all of these inputs."""

    @functools.wraps(backward)
    def once(ctx, *grads):
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # as without create_graph
            return found
        depended_on = [t for t in (*ctx.saved_tensors, *grads) if isinstance(t, Tensor) and t.requires_grad]
        anchors = [*depended_on, torch.zeros((), requires_grad=True)]  # one at least, whatever was asked for
        marked = [
            _Undifferentiable.apply(grad, *anchors) if isinstance(grad, Tensor) else grad
            for grad in (found if isinstance(found, tuple) else (found,))
        ]
        return tuple(marked) if isinstance(found, tuple) else marked[0]

    return once
