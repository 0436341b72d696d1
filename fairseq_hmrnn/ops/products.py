"""Large products outside of the recurrence: by the compiled kernel's own panels where it was built, else by torch, as
where a graph is recorded.

torch's float32 products on CPU are MKL's, which reaches less than half of what AMD's processors with AVX-512 can do;
there the panels reach three quarters, and their bits do not depend on the number of threads. Operands of 16 bits are
widened where torch's products of them are slow.
"""

from __future__ import annotations

import functools
from typing import Iterable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .capture import capturing
from .cpu import kernel
from .differentiation import once_differentiable
from .precision import LOW_PRECISION, autocast_is_on, rounded

MANY_ROWS = 32  # measured with a weight (4000, 128), on one thread


def _takes_panels(x: Tensor, dtype: torch.dtype, bfloat16: bool) -> bool:
    """Whether products of x in this dtype are the compiled kernel's here and now; it rounds float32 operands alone."""
    if autocast_is_on(x) or capturing() or (bfloat16 and dtype != torch.float32):
        return False
    return kernel.chooses_panels(x.device.type, dtype)


def _widened(dtype: torch.dtype) -> torch.dtype:
    """What the panels compute products of a dtype in: float32 those of 16 bits, which are exact in it."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


@functools.lru_cache(maxsize=None)
def _torch_is_slow(dtype: torch.dtype) -> bool:
    """Whether torch multiplies these 16 bits without oneDNN on this processor, for lack of instructions: forward and
    backward took 7 times as long as in float32 with 53 symbols, 23 times with 8,000."""
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    supported = getattr(torch.ops.mkldnn, names[dtype], None) if dtype in names else None
    return dtype in names and (supported is None or not supported())


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, bfloat16: bool = False) -> Tensor:
    """As torch.nn.functional.linear: x (..., K), weight (N, K), bias (N,); returns (..., N).

    bfloat16: round the operands of products to bfloat16, forward and backward, with sums in x's dtype; for float32.
    """
    dtype = x.dtype
    wide = _widened(dtype) if not capturing() and _torch_is_slow(dtype) else dtype
    if weight.dtype != dtype or not _takes_panels(x, wide, bfloat16):
        return F.linear(*((rounded(x), rounded(weight)) if bfloat16 else (x, weight)), bias)
    rows, bias = x.reshape(-1, x.size(-1)).to(wide).contiguous(), None if bias is None else bias.to(wide)
    y = _Linear.apply(rows, weight.to(wide).contiguous(), bias, bfloat16 or dtype == torch.bfloat16)
    return y.to(dtype).view(*x.shape[:-1], weight.size(0))


def has_many_rows(x: Tensor) -> bool:
    """Whether `linear` of x (..., K) by a large weight is worth laying the weight out in panels."""
    return x.numel() >= MANY_ROWS * x.size(-1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Optional[Tensor], low: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.low = low
        y = kernel.compiled.multiply(x, False, weight, False, low)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad: Tensor):
        x, weight = saved
        grad, multiply = grad.contiguous(), kernel.compiled.multiply
        dx = multiply(grad, False, weight, True, ctx.low) if ctx.needs_input_grad[0] else None
        dweight = multiply(grad, True, x, True, ctx.low) if ctx.needs_input_grad[1] else None
        dbias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None


def layer_output(
    hidden: Sequence[Tensor], weights: Sequence[Tensor], changed: Optional[Tensor] = None, bfloat16: bool = False
) -> Tensor:
    """The gated output module, eq. (7) and (8) of ops/README.md: ReLU(sum_l gate_l W_e[l] h[l]), gate_l =
    sigmoid(w_l . [h[1]; ...]).

    hidden: per layer (..., H_l). weights: per layer (E + L, H_l), W_e[l] and below it the layer's columns in all
    gates. changed: (T, B, L) bool for hidden (T, B, H_l), False where h[l] is that of the step before: there its term
    is not computed again. bfloat16: as in `linear`. hidden has the weights' dtype, or with 16-bit weights float32.
    Returns (..., E) of the weights' dtype; (T, B, E) by the panels is laid out with B before T.
    """
    x, dtype = hidden[0], weights[0].dtype
    wide = _widened(dtype)
    if x.dim() == 3 and x.numel() and _takes_panels(x, wide, bfloat16):
        tensors = [tensor.to(wide).contiguous() for tensor in (*hidden, *weights)]
        features = _LayerOutput.apply(len(hidden), changed, bfloat16 or dtype == torch.bfloat16, *tensors)
        return features.transpose(0, 1).to(dtype)
    size, inputs = weights[0].size(0) - len(hidden), [h.to(dtype) for h in hidden]
    terms = [F.linear(*((rounded(h), rounded(w)) if bfloat16 else (h, w))) for h, w in zip(inputs, weights)]
    gates = torch.stack([term[..., size:] for term in terms]).sum(0).sigmoid().unbind(-1)
    return gated_sum(gates, [term[..., :size] for term in terms])


def gated_sum(gates: Iterable[Tensor], terms: Iterable[Tensor]) -> Tensor:
    """ReLU(sum_l gate_l term_l), eq. (8) of ops/README.md, of a gate (...) and a term (..., E) for each layer."""
    return torch.stack([gate.unsqueeze(-1) * term for gate, term in zip(gates, terms)]).sum(0).relu()


class _LayerOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layers: int, changed: Optional[Tensor], low: bool, *tensors: Tensor) -> Tensor:
        changed = None if changed is None else changed.contiguous()
        features, saved = kernel.compiled.layer_output(tensors[:layers], tensors[layers:], changed, low)
        ctx.layers, ctx.low = layers, low
        ctx.save_for_backward(features, changed, *tensors, *saved)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad: Tensor):
        features, changed, *rest = saved
        n = ctx.layers
        hidden, weights = kernel.compiled.layer_output_backward(
            grad.contiguous(), features, rest[:n], rest[n : 2 * n], changed, rest[2 * n :], ctx.low
        )
        return (None, None, None, *hidden, *weights)
