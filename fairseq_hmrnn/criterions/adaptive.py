"""Cross-entropy by an adaptive softmax (arXiv 1609.04309), which computes only the parts that hold a target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_nll(adaptive_softmax, features: Tensor, target: Tensor, padding_idx: int) -> Tensor:
    """-log p of target (N,), symbols, after features (N, dim), by a fairseq AdaptiveSoftmax; 0 where it is padding.

    fairseq's adaptive_loss takes the symbol that is `padding_idx` places after a cutoff for padding; this does not.
    """
    known = target.ne(padding_idx).nonzero().squeeze(1)
    (head, *tails), (head_target, *tail_targets) = adaptive_softmax(features[known], target[known])
    nll = _cross_entropy(head, head_target)
    _, rows_of_tails = adaptive_softmax.adapt_target(target[known])
    for tail, tail_target, rows, layers in zip(tails, tail_targets, rows_of_tails, adaptive_softmax.tail):
        if rows is None:  # a gradient of zeros: torch's distributed wrapper waits for every parameter
            nll = nll + layers(features[:0]).sum()
        else:
            nll = nll.index_add(0, rows, _cross_entropy(tail, tail_target))
    return torch.zeros_like(target, dtype=nll.dtype).index_copy(0, known, nll)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """By row, in single precision or better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float))
    return F.cross_entropy(logits, target, reduction="none")
