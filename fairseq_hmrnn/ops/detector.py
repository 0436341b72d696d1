"""The hidden layer that a boundary detector may have, eq. (2a) of ops/README.md: what it adds to u, and its gradients.

    u += v . ReLU(D [m * h'; z' h_above; zb h_below] + d)

It is a probe of the states: what it reads is a constant in the backward pass, whatever detector_grad_scale is. So no
gradient of it goes through time, and once du is known for all steps those of D, d and v are products of tall matrices,
the same for every kernel.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import DetectorHidden, LayerParameters


def multiply(a: Tensor, a_over_rows: bool, b: Tensor, b_over_rows: bool) -> Tensor:
    """As `ops.products.multiply`, by torch."""
    return (a.t() if a_over_rows else a) @ (b if b_over_rows else b.t())


def hidden_term(hidden: DetectorHidden, read: Tensor) -> Tensor:
    """What the hidden layer adds to u, (M,). read: (M, H + H_above + H_below), gates and mask applied."""
    return F.linear(read, hidden.weight, hidden.bias).relu() @ hidden.output


def input_products(layer: LayerParameters, x: Tensor) -> Optional[Tensor]:
    """What D makes of the input of layer 1, before the bias: x (..., input_size) to (..., N); None without D."""
    hidden = layer.detector_hidden
    return None if hidden is None else F.linear(x, hidden.weight[:, -x.size(-1) :])


def read_by(
    index: int,
    x: Tensor,
    hidden: Sequence[Tensor],
    start: Sequence[Tensor],
    z: Tensor,
    masks: Optional[Sequence[Tensor]],
) -> Tensor:
    """What the hidden layer of a layer reads at every step, gates and mask applied, (T B, H + H_above + H_below).

    x: (T, B, input_size). hidden: per layer (T, B, H_l), start: (B, H_l) before the first step. z: (T+1, B, L), the
    state's boundaries before every step and after the last. masks: per layer (B, H_l).
    """

    def previous(layer: int) -> Tensor:
        return torch.cat([start[layer].unsqueeze(0), hidden[layer][:-1]])

    read = [previous(index) if masks is None else previous(index) * masks[index]]
    if index + 1 < len(hidden):
        read.append(z[:-1, :, index].unsqueeze(2) * previous(index + 1))
    read.append(z[1:, :, index - 1].unsqueeze(2) * hidden[index - 1] if index else x)
    return torch.cat(read, dim=2).flatten(0, 1)


def hidden_gradients(
    hidden: DetectorHidden, read: Tensor, du: Tensor, multiply: Callable[..., Tensor] = multiply
) -> List[Tensor]:
    """Of D, d and v, in the order of LayerParameters. read: (M, H + H_above + H_below) as in `hidden_term`, du: (M,).
    multiply: as the one above."""
    weight, bias, output = (tensor.detach() for tensor in hidden)
    units = (multiply(read, False, weight, False) + bias).relu_()
    d_units = torch.outer(du, output) * (units > 0)
    return [multiply(d_units, True, read, True), d_units.sum(0), du @ units]
