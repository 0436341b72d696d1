"""The hidden layer that a boundary detector may have, eq. (2a) of ops/README.md: what it adds to u, and its gradients.

    u += v . ReLU(D [m * h'; z' h_above; zb h_below] + d)

It is a probe of the states: what it reads is a constant in the backward pass, whatever detector_grad_scale is. So no
gradient of it goes through time, and once du is known for all steps those of D, d and v are products of tall matrices,
the same for every kernel.
"""

from __future__ import annotations

from typing import Callable, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import LayerParameters


def multiply(a: Tensor, a_over_rows: bool, b: Tensor, b_over_rows: bool) -> Tensor:
    """As `ops.products.multiply`, by torch."""
    return (a.t() if a_over_rows else a) @ (b if b_over_rows else b.t())


def hidden_term(layer: LayerParameters, read: Tensor) -> Tensor:
    """What the hidden layer adds to u, (M,). read: (M, H + H_above + H_below), gates and mask applied."""
    return F.linear(read, layer.detector_hidden_weight, layer.detector_hidden_bias).relu() @ layer.detector_output


def input_columns(layer: LayerParameters) -> Tensor:
    """The columns of D that read the layer below, (N, H_below)."""
    return layer.detector_hidden_weight[:, -layer.weight_bottom_up.size(1) :]


def input_products(layer: LayerParameters, x: Tensor) -> Optional[Tensor]:
    """What D makes of the input of layer 1, before the bias: x (..., input_size) to (..., N); None without D."""
    return F.linear(x, input_columns(layer)) if layer.detector_units else None


def hidden_gradients(
    layer: LayerParameters, read: Tensor, du: Tensor, multiply: Callable[..., Tensor] = multiply
) -> List[Tensor]:
    """Of D, d and v, in the order of LayerParameters. read: (M, H + H_above + H_below) as in `hidden_term`, du: (M,).
    multiply: as the one above."""
    weight, bias, output = (tensor.detach() for tensor in layer.detector_hidden)
    units = (multiply(read, False, weight, False) + bias).relu_()
    d_units = torch.outer(du, output) * (units > 0)
    return [multiply(d_units, True, read, True), d_units.sum(0), du @ units]
