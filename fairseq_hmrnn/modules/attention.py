"""Attention of a recurrent decoder over an encoder's memory."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn


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
        scores = torch.bmm(self.query(query), memory.transpose(1, 2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float))
        attention = scores.masked_fill(padding_mask.unsqueeze(1), float("-inf")).softmax(dim=2).type_as(query)
        context = torch.bmm(attention, memory)
        return self.output(torch.cat([context, query], dim=2)).tanh(), attention
