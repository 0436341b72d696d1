"""The precision of each part of the computation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .capture import capturing
from .differentiation import once_differentiable

LOW_PRECISION = (torch.float16, torch.bfloat16)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states, boundaries, noise and dropout masks under weights of `dtype`: float32 for 16-bit weights,
    whose rounding would eat what a cell adds to c over many steps and would move detectors over their threshold."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def autocast_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype that autocast gives a call: its own for float32 weights on a GPU, elsewhere that of the weights."""
    if not x.is_cuda or weight.dtype != torch.float32:
        return weight.dtype
    newer = getattr(torch, "get_autocast_dtype", None)
    return torch.get_autocast_gpu_dtype() if newer is None else newer("cuda")


def autocast_is_on(x: Tensor) -> bool:
    """Is x on a device for which autocast is on?"""
    if x.device.type not in ("cpu", "cuda"):
        return False
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 or later
        return torch.is_autocast_enabled(x.device.type)
    return torch.is_autocast_enabled() if x.is_cuda else torch.is_autocast_cpu_enabled()


class RoundedLinear(torch.autograd.Function):
    """F.linear whose products, forward and backward, are of operands rounded to bfloat16; what kernels with
    bfloat16_products compute, to the rounding of their sums."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        """x (B, H_in), weight (R, H_in); returns (B, R), all of one dtype."""
        ctx.save_for_backward(x, weight)
        return rounded(x) @ rounded(weight).t()

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad: Tensor):
        x, weight = map(rounded, saved)
        grad = rounded(grad)
        return grad @ weight, grad.t() @ x


def rounded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`RoundedLinear`. A recorded graph may be written to a file, so there it is torch's own operations, which round
    gradients after their products instead of before."""
    return F.linear(rounded(x), rounded(weight)) if capturing() else RoundedLinear.apply(x, weight)


def rounded(tensor: Tensor) -> Tensor:
    """Rounded to the nearest bfloat16, in the dtype that it has."""
    return tensor.to(torch.bfloat16).to(tensor.dtype)
