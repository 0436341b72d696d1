"""The layout of one layer's weights.

A layer of size H holds 4H+1 rows in every weight: H each of forget gate f, input gate i, output gate o and
candidate g, and one row for the boundary detector z. A layer without detector has the row too, unused, so that
all layers are laid out alike.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

GATE_ORDER = ("f", "i", "o", "g", "z")
NUM_GATES = len(GATE_ORDER) - 1  # those of H rows


def num_rows(hidden_size: int) -> int:
    """Rows of every weight of a layer of this size."""
    return NUM_GATES * hidden_size + 1


def gate_rows(gate: str, hidden_size: int) -> slice:
    """Rows of one gate of GATE_ORDER."""
    start = GATE_ORDER.index(gate) * hidden_size
    return slice(start, start + (1 if gate == "z" else hidden_size))


class LayerParameters(NamedTuple):
    """Weights of layer l, H its size, H_below the size of its input, H_above that of the layer above.

    weight_recurrent (4H+1, H), weight_bottom_up (4H+1, H_below), weight_top_down (4H+1, H_above) or None for the
    top layer, bias (4H+1). The gains (4H+1) of layer normalisation are all None without it, and gain_top_down is
    None for the top layer.
    """

    weight_recurrent: Tensor
    weight_bottom_up: Tensor
    weight_top_down: Optional[Tensor]
    bias: Tensor
    gain_recurrent: Optional[Tensor] = None
    gain_bottom_up: Optional[Tensor] = None
    gain_top_down: Optional[Tensor] = None

    @property
    def hidden_size(self) -> int:
        return self.weight_recurrent.size(1)

    def to(self, dtype: torch.dtype) -> LayerParameters:
        """`Tensor.to` of every weight; gradients go back to these."""
        return LayerParameters(*(None if tensor is None else tensor.to(dtype) for tensor in self))

    @property
    def layer_norm(self) -> bool:
        return self.gain_recurrent is not None


def split_gates(pre_activation: Tensor) -> Tuple[Tensor, ...]:
    """(B, 4H+1) to f, i, o, g of (B, H) and z of (B,)."""
    hidden_size = (pre_activation.size(-1) - 1) // NUM_GATES
    *gates, z = pre_activation.split([hidden_size] * NUM_GATES + [1], dim=-1)
    return (*gates, z.squeeze(-1))
