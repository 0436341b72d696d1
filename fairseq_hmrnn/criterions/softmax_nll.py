"""Cross-entropy by a plain softmax without a second and a third matrix of the logits' size: touching that much memory
anew at every update costs more than computing what it holds."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, FairseqDecoder
from torch import Tensor

from ..ops.differentiation import once_differentiable

LARGE = 1 << 20  # numbers from which memory counts; fewer keep every bit of fairseq's gradient
CHUNK = 1 << 18  # numbers that stay in a processor's cache


def plain_logits(model, net_output) -> Optional[Tensor]:
    """The logits of which fairseq would take the softmax, (..., V); None where a model has probabilities of its own."""
    decoder, own = getattr(model, "decoder", None), getattr(model, "get_normalized_probs", None)
    if not isinstance(decoder, FairseqDecoder) or getattr(decoder, "adaptive_softmax", None) is not None:
        return None
    for name in ("get_normalized_probs", "get_normalized_probs_scriptable"):
        if getattr(type(decoder), name) is not getattr(FairseqDecoder, name):
            return None
    if getattr(own, "__func__", None) is not BaseFairseqModel.get_normalized_probs:
        return None
    return None if decoder.onnx_trace else net_output[0]


def softmax_nll(logits: Tensor, target: Tensor, padding_idx: int, reduce: bool = True) -> Tensor:
    """-log p of target (N,) under softmax(logits), logits (N, V), 0 where it is padding: the sum, or with reduce=False
    (N,). In single precision, as fairseq's cross_entropy and to its bits; the gradient has the logits' dtype."""
    return _SoftmaxNLL.apply(logits, target, padding_idx, reduce)


class _SoftmaxNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, padding_idx: int, reduce: bool) -> Tensor:
        chunks = zip(_chunks(logits), _chunks_as(logits, target))
        picked, log_sums, largest = map(torch.cat, zip(*(_log_softmax(*chunk) for chunk in chunks)))
        ctx.save_for_backward(logits, target.eq(padding_idx), target, log_sums, largest)
        first = torch.zeros_like(target).masked_fill_(target.eq(padding_idx), -1)
        return F.nll_loss(picked, first, ignore_index=-1, reduction="sum" if reduce else "none")

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad: Tensor):
        logits, padding, target, log_sums, largest = saved
        factor = grad.float().expand_as(target).masked_fill(padding, 0).unsqueeze(1)
        result = torch.empty_like(logits)
        columns = (_chunks_as(logits, of) for of in (largest, log_sums, factor, target.unsqueeze(1)))
        for to, of, most, log_sum, scale, index in zip(_chunks(result), _chunks(logits), *columns):
            probs = torch.sub(of, most, out=to) if of.dtype == torch.float32 else of.float() - most
            probs.sub_(log_sum).exp_().mul_(scale).scatter_add_(1, index, -scale)
            if probs is not to:
                to.copy_(probs)
        return result, None, None, None


def _log_softmax(logits: Tensor, index: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """For rows of logits: log p at `index`, the log of the sum by which it was divided once the largest logit was
    subtracted, and that logit, each (rows, 1). As torch computes it: subtracted one after the other they give its
    bits."""
    log_probs = F.log_softmax(logits, dim=1, dtype=torch.float32)
    return log_probs.gather(1, index.unsqueeze(1)), -log_probs.amax(1, True), logits.amax(1, True).float()


def _chunks(matrix: Tensor):
    """Rows that stay in the cache together; on a GPU, which waits for memory in other ways, all of them."""
    return _chunks_as(matrix, matrix)


def _chunks_as(matrix: Tensor, rows: Tensor):
    whole = matrix.device.type != "cpu"
    return rows.split(max(1, rows.size(0) if whole else CHUNK // max(1, matrix.size(1))))
