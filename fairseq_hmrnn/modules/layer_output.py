"""The gated output module of the paper's language model."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..ops import gated_sum, layer_output
from .hooks import run_pre_hooks


class LayerOutput(nn.Module):
    """h_e = ReLU(sum_l gate_l W_e[l] h[l]), gate_l = sigmoid(w_l . [h[1]; ...; h[L]]), eq. (7) and (8) of
    ops/README.md.

    hidden_sizes: sizes of the layers. output_size: size of h_e. bfloat16_products: round the operands of products to
    bfloat16, as HMLSTM does with the same option.
    """

    def __init__(self, hidden_sizes: Sequence[int], output_size: int, bfloat16_products: bool = False):
        super().__init__()
        self.bfloat16_products = bfloat16_products
        self.gates = nn.Linear(sum(hidden_sizes), len(hidden_sizes), bias=False)
        self.projections = nn.ModuleList([nn.Linear(size, output_size, bias=False) for size in hidden_sizes])

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """hidden: one tensor (..., H_l) for each layer. Returns (..., output_size)."""
        if self.bfloat16_products:
            return layer_output(hidden, self.layer_weights(), None, True)
        gates = self.gates(torch.cat(list(hidden), dim=-1)).sigmoid().unbind(-1)
        return gated_sum(gates, [project(h) for project, h in zip(self.projections, hidden)])

    def over_sequence(self, hidden: Sequence[Tensor], changed: Optional[Tensor]) -> Tensor:
        """As `forward`, of hidden (T, B, H_l), without computing again what COPY keeps. changed: (T, B, L) bool, False
        where h[l] is that of the step before (`HMLSTMOutput.changed`); None: all are computed. Returns (T, B,
        output_size)."""
        return layer_output(hidden, self.layer_weights(), changed, self.bfloat16_products)

    def layer_weights(self) -> Tuple[Tensor, ...]:
        """One weight (output_size + L, H_l) for each layer: W_e[l], then layer l's columns of all gates.

        Its product with h[l] is the layer's term of both equations, a function of h[l] alone: in generation it need
        not be computed again where h[l] was copied. See `combine`.
        """
        linears: List[Any] = [self.gates, *self.projections]
        run_pre_hooks(*linears)
        weights = [linear.weight for linear in linears[1:]]
        columns = self.gates.weight.split([weight.size(1) for weight in weights], dim=1)
        return tuple(torch.cat([weight, part]) for weight, part in zip(weights, columns))

    def combine(self, terms: Tensor) -> Tensor:
        """terms: (B, L, output_size + L), the products with `layer_weights`. Returns h_e (B, output_size)."""
        size = terms.size(2) - terms.size(1)
        gates = terms[:, :, size:].sum(1).sigmoid()
        return torch.bmm(gates.unsqueeze(1), terms[:, :, :size]).squeeze(1).relu()
