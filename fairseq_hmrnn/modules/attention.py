"""Attention of a recurrent decoder over an encoder's memory."""

from __future__ import annotations

from typing import NamedTuple, Tuple

import torch
from torch import Tensor, nn

from ..ops import linear
from .hooks import run_pre_hooks


class ProjectedMemory(NamedTuple):
    """A memory of M slots as one query after the other reads it: keys (B, query_size, M), values (B, M, output_size),
    padding_mask (B, M)."""

    keys: Tensor
    values: Tensor
    padding_mask: Tensor


class Attention(nn.Module):
    """Luong's general attention (arXiv 1508.04025): a = softmax(q W m), attended = tanh(W_c [a m; q]).

    query_size: of q. memory_size: of m. output_size: of what is returned.
    """

    def __init__(self, query_size: int, memory_size: int, output_size: int):
        super().__init__()
        self.query = nn.Linear(query_size, memory_size, bias=False)
        self.output = nn.Linear(memory_size + query_size, output_size, bias=False)

    def forward(self, query: Tensor, memory: Tensor, padding_mask: Tensor) -> Tuple[Tensor, Tensor]:
        """query (B, T, query_size), memory (B, M, memory_size), padding_mask (B, M), True where there is no memory.

        Returns (B, T, output_size) and the attention (B, T, M), 0 on padding; every sample must have some memory.
        """
        attention = _softmax(torch.bmm(self.query(query), memory.transpose(1, 2)), padding_mask).type_as(query)
        context = torch.bmm(attention, memory)
        return self.output(torch.cat([context, query], dim=2)).tanh(), attention

    def project(self, memory: Tensor, padding_mask: Tensor) -> ProjectedMemory:
        """The memory with the weights applied to it and no longer to the query: less for many queries of one step, one
        after the other. Arguments as of `forward`."""
        run_pre_hooks(self.query, self.output)
        size = memory.size(2)
        weights = torch.cat([self.query.weight.t(), self.output.weight[:, :size]])
        keys, values = linear(memory, weights).split([self.query.in_features, self.output.out_features], dim=2)
        return ProjectedMemory(keys.transpose(1, 2).contiguous(), values.contiguous(), padding_mask)

    def step(self, query: Tensor, memory: ProjectedMemory) -> Tuple[Tensor, Tensor]:
        """As `forward` for a query (B, query_size): (B, output_size) and the attention (B, M)."""
        scores = torch.bmm(query.unsqueeze(1), memory.keys)
        attention = _softmax(scores, memory.padding_mask).type_as(query)
        context = torch.bmm(attention, memory.values).squeeze(1)
        weight = self.output.weight[:, self.query.out_features :]
        return (context + linear(query, weight)).tanh(), attention.squeeze(1)


def _softmax(scores: Tensor, padding_mask: Tensor) -> Tensor:
    """Over scores (B, T, M), in single precision or better."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float))
    return scores.masked_fill(padding_mask.unsqueeze(1), float("-inf")).softmax(dim=2)
