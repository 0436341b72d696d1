"""The hidden layer that a boundary detector may have, eq. (2a) of ops/README.md: what it adds to u, and its gradients.

    u += v . ReLU(D [m * h'; z' h_above; zb h_below] + d)

It is a probe of the states: what it reads is a constant in the backward pass, whatever detector_grad_scale is. So no
gradient of it goes through time, and once du is known for all steps those of D, d and v are products of tall matrices,
the same for every kernel.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu.kernel import multiply
from .types import DetectorHidden, LayerParameters


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
    start_h: Sequence[Tensor],
    z_before: Tensor,
    masks: Optional[Sequence[Tensor]] = None,
) -> Tensor:
    """What the detector of layer `index` reads at every step, gates and mask applied: (T B, H + H_above + H_below), in
    the dtype of z_before.

    x: (T, B, input_size). hidden: per layer (T, B, H). start_h, masks: per layer (B, H). z_before (T+1, B, L): the
    state's boundaries before every step and after the last, which padding leaves as they are.
    """
    steps, batch = x.shape[:2]
    above = index + 1 < len(hidden)
    below = hidden[index - 1] if index else x
    sizes = [hidden[index].size(2), hidden[index + 1].size(2) if above else 0, below.size(2)]
    read = z_before.new_empty(steps, batch, sum(sizes))
    own, from_above, from_below = read.split(sizes, dim=2)
    _write_previous(own, hidden[index], start_h[index])
    if masks is not None:
        own.mul_(masks[index])
    if above:
        _write_previous(from_above, hidden[index + 1], start_h[index + 1])
        from_above.mul_(z_before[:-1, :, index, None])
    from_below.copy_(below)
    if index:
        from_below.mul_(z_before[1:, :, index - 1, None])
    return read.flatten(0, 1)


def _write_previous(to: Tensor, hidden: Tensor, start: Tensor) -> None:
    """h before every step: to, hidden (T, B, H), start (B, H)."""
    to[:1] = start
    to[1:] = hidden[:-1]


def hidden_gradients(hidden: DetectorHidden, read: Tensor, du: Tensor) -> List[Tensor]:
    """Gradients of D, d and v, in the order of LayerParameters. read: (M, H + H_above + H_below) as in `hidden_term`,
    du: (M,). Every sum over M is a product, whose bits, by the compiled kernel, do not depend on the number of
    threads."""
    weight, bias, output = (tensor.detach() for tensor in hidden)
    units = (multiply(read, weight) + bias).relu_()
    d_units = torch.outer(du, output) * (units > 0)
    d_bias = multiply(torch.ones_like(du).unsqueeze(1), d_units, True, True)
    d_output = multiply(du.unsqueeze(1), units, True, True)
    return [multiply(d_units, read, True, True), d_bias.squeeze(0), d_output.squeeze(0)]
