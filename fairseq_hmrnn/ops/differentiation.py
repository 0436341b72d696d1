"""Gradients written by hand that have no gradient themselves."""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterable, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad


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


def in_forward_mode() -> bool:
    """Whether tensors may have forward-mode tangents."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def refuse_transforms(tensors: Iterable[Optional[Tensor]]) -> None:
    """RuntimeError within a transform of torch.func or a batched derivative, whose tensors have no memory that a kernel
    could read, and for a tensor with a forward-mode tangent, which would be left out."""
    given = [tensor for tensor in tensors if tensor is not None]
    functorch = getattr(torch._C, "_functorch", None)  # of torch 2
    transformed = functorch is not None and functorch.peek_interpreter_stack() is not None
    batched = functorch is not None and any(map(functorch.is_legacy_batchedtensor, given))
    moving = in_forward_mode() and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in given)
    if transformed or batched or moving:
        raise RuntimeError(
            "gradients written by hand are not for torch.func, nor for batched (vectorize, is_grads_batched) or "
            "forward-mode derivatives: take those one by one by torch.autograd, forward-mode ones by "
            "HMLSTM(backend='reference')"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward pass of a Function that saves its inputs, as they were given: raises on any second
    differentiation. torch's `once_differentiable` does not raise when the incoming gradient needs none, e.g. for a
    linear loss. Autograd walks only through what leads to the tensors that it is asked for, hence from a gradient to
    all of these inputs.

    backward: of ctx, the tensors that the Function saved, which hooks may make anew at every access, and the gradients.
    """

    @functools.wraps(backward)
    def once(ctx, *grads):
        refuse_transforms(grads)
        saved = ctx.saved_tensors
        device = next(tensor.device.type for tensor in saved if tensor is not None)
        with torch.no_grad(), torch.autocast(device, enabled=False):  # backward may be called where it is on
            found = backward(ctx, saved, *grads)
        if not torch.is_grad_enabled():  # as without create_graph
            return found
        depended_on = [t for t in (*saved, *grads) if isinstance(t, Tensor) and t.requires_grad]
        anchors = [*depended_on, torch.zeros((), requires_grad=True)]  # one at least, whatever was asked for
        marked = [
            _Undifferentiable.apply(grad, *anchors) if isinstance(grad, Tensor) else grad
            for grad in (found if isinstance(found, tuple) else (found,))
        ]
        return tuple(marked) if isinstance(found, tuple) else marked[0]

    return once
