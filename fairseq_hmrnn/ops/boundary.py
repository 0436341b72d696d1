"""The boundary detector: hard sigmoid with a slope, the decision, and the gradients that are not derivatives."""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from .differentiation import in_forward_mode

BOUNDARY_MODES = ("step", "bernoulli", "soft")


def hard_sigmoid(u: Tensor, slope: Union[float, Tensor]) -> Tensor:
    """clip((slope u + 1) / 2, 0, 1), eq. (5). Its gradient is slope/2 inside the interval and 0 outside."""
    return ((slope * u + 1) / 2).clamp(0, 1)


def operations(z_prev: Tensor, z_below: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """How far a step is UPDATE, COPY and FLUSH, the cases of eq. (3): 0 or 1, or shares for soft boundaries. z_prev: of
    the layer at the step before; z_below: of the layer below at this step, 1 below layer 1."""
    return (1 - z_prev) * z_below, (1 - z_prev) * (1 - z_below), z_prev


class _StraightThrough(torch.autograd.Function):
    """The decision z of the probability z~, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, z_tilde, threshold):
        return (z_tilde > threshold).to(z_tilde.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x, with its gradient multiplied by `scale`: 1 leaves it, 0 detaches."""
    if scale == 1:
        return x
    if torch.jit.is_tracing() or in_forward_mode():  # a trace holds no Function, and may run with gradients or without
        return x.detach() + scale * (x - x.detach()) if scale else x.detach()
    if not torch.is_grad_enabled():
        return x
    return x.detach() if scale == 0 else _ScaleGradient.apply(x, scale)


def decide(z_tilde: Tensor, mode: str, noise: Optional[Tensor] = None) -> Tensor:
    """The boundary z of its probability z~, eq. (6), shapes alike.

    step: 1 where z~ > 0.5. bernoulli: 1 where z~ > noise, noise uniform in [0, 1). soft: z~ itself. Both decisions
    are straight-through: the gradient of z is handed to z~ unchanged.
    """
    if mode == "soft":
        return z_tilde
    if mode == "step":
        noise = torch.full_like(z_tilde, 0.5)
    assert noise is not None  # check_options asks for it
    if torch.jit.is_tracing() or in_forward_mode():  # as above
        return (z_tilde > noise).to(z_tilde.dtype) + (z_tilde - z_tilde.detach())
    if not torch.is_grad_enabled():  # without a graph these are plain operations, which can be exported
        return (z_tilde > noise).to(z_tilde.dtype)
    return _StraightThrough.apply(z_tilde, noise)
