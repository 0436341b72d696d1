"""Gradients written by hand that have no gradient themselves."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor


class _Undifferentiable(torch.autograd.Function):
    """A gradient as it is, whose own gradient is an error. anchor: a tensor that requires one."""

    @staticmethod
    def forward(ctx, anchor: Tensor, grad: Tensor):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "gradients written by hand cannot be differentiated twice: for second derivatives, such as a penalty on "
            "gradients, use HMLSTM(backend='reference')"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward pass of a Function: raises on any second differentiation. torch's `once_differentiable` does not
    raise when the incoming gradient needs none, e.g. for a linear loss."""

    @functools.wraps(backward)
    def once(ctx, *grads):
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # as without create_graph
            return found
        anchor = torch.zeros((), requires_grad=True)
        marked = [
            _Undifferentiable.apply(anchor, grad) if isinstance(grad, Tensor) else grad
            for grad in (found if isinstance(found, tuple) else (found,))
        ]
        return tuple(marked) if isinstance(found, tuple) else marked[0]

    return once
