"""The equations of the paper (arXiv 1609.01704) under plain autograd: readable, slow, the oracle of every test.

Equation numbers are those of ops/README.md. Everything is time-major; shapes are those of `ops.hm_lstm`.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .boundary import decide, hard_sigmoid, scale_gradient
from .detector import hidden_term
from .precision import rounded_linear
from .types import (
    DetectorHidden,
    HMLSTMOutput,
    HMLSTMState,
    LayerParameters,
    RecurrenceOptions,
    split_gates,
    without_padding,
)

# Larger than usual: states that are still nearly zero must not be blown up, nor gradients through them (ops/README.md)
LAYER_NORM_EPS = 1e-2


def product(x: Tensor, weight: Tensor, gain: Optional[Tensor], options: RecurrenceOptions) -> Tensor:
    """One of the three products of eq. (1), layer-normalised over its 4H+1 rows if it has a gain.

    x (B, H_in), weight (4H+1, H_in), gain (4H+1) or None; returns (B, 4H+1). The last row is the detector's: what
    it sends back to x, and through the normalisation to the other rows, is multiplied by detector_grad_scale.
    """
    grad_scale = options.detector_grad_scale
    multiply = rounded_linear if options.bfloat16_products else F.linear
    gates, detector = weight[:-1], weight[-1:]
    p = torch.cat([multiply(x, gates), F.linear(scale_gradient(x, grad_scale), detector)], dim=1)
    if gain is None:
        return p
    mean = p.mean(1, keepdim=True)
    rstd = ((p - mean).pow(2).mean(1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
    gate_rows = (p[:, :-1] - mean) * rstd
    detector_row = (p[:, -1:] - scale_gradient(mean, grad_scale)) * scale_gradient(rstd, grad_scale)
    return torch.cat([gate_rows, detector_row], dim=1) * gain


def pre_activation(layer: LayerParameters, h, z_prev, h_above, h_below, z_below, options) -> Tensor:
    """s of eq. (1), (B, 4H+1): a closed term is exactly zero, whatever is behind the gate."""
    scale = options.detector_grad_scale

    def gated(z: Tensor, term: Tensor) -> Tensor:
        z = z.unsqueeze(1)
        return torch.cat([z * term[:, :-1], scale_gradient(z, scale) * term[:, -1:]], dim=1)

    s = product(h, layer.weight_recurrent, layer.gain_recurrent, options) + layer.bias
    if layer.weight_top_down is not None:
        s = s + gated(z_prev, product(h_above, layer.weight_top_down, layer.gain_top_down, options))
    return s + gated(z_below, product(h_below, layer.weight_bottom_up, layer.gain_bottom_up, options))


def detector_term(hidden: DetectorHidden, h, z_prev, h_above, h_below, z_below) -> Tensor:
    """What the detector's hidden layer adds to u, eq. (2a), (B,). Whatever it reads is a constant to the gradient."""
    read = [h]
    if h_above is not None:
        read.append(z_prev.unsqueeze(1) * h_above)
    read.append(z_below.unsqueeze(1) * h_below)
    return hidden_term(hidden, torch.cat(read, dim=1).detach())


def cell(layer, h, c, z_prev, h_above, h_below, z_below, mask, has_detector, noise, options):
    """One step of one layer, eq. (1) to (6).

    h, c, mask (B, H) (mask or None), z_prev, z_below, noise (B,), h_above (B, H_above) or None,
    h_below (B, H_below). Returns h, c of (B, H) and z, z_tilde of (B,).
    """
    h_recurrent = h if mask is None else h * mask
    s = pre_activation(layer, h_recurrent, z_prev, h_above, h_below, z_below, options)
    f, i, o, g, u = split_gates(s)  # (2)
    f, i, o, g = f.sigmoid(), i.sigmoid(), o.sigmoid(), g.tanh()

    flush = z_prev.unsqueeze(1)
    open_below = z_below.unsqueeze(1)
    update = (1 - flush) * open_below
    copy = (1 - flush) * (1 - open_below)
    c_next = update * (f * c + i * g) + copy * c + flush * (i * g)  # (3)
    h_next = copy * h + (1 - copy) * (o * c_next.tanh())  # (4)

    if not has_detector:
        zero = torch.zeros_like(u)
        return h_next, c_next, zero, zero
    if layer.detector_hidden is not None:
        u = u + detector_term(layer.detector_hidden, h_recurrent, z_prev, h_above, h_below, z_below)
    z_tilde = hard_sigmoid(u, options.slope)  # (5)
    z = decide(z_tilde, options.boundary, noise)  # (6)
    if options.nested_boundaries:
        z_tilde, z = z_below * z_tilde, z_below * z
    return h_next, c_next, z, z_tilde


def hm_lstm_reference(
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    options: RecurrenceOptions,
    valid: Optional[Tensor] = None,
    noise: Optional[Tensor] = None,
    recurrent_masks: Optional[Sequence[Tensor]] = None,
) -> HMLSTMOutput:
    """Run all layers over a sequence. Arguments, shapes and result: see `ops.hm_lstm`."""
    x = without_padding(x, valid)
    num_layers = len(layers)
    hidden: List[List[Tensor]] = [[] for _ in layers]
    boundaries, boundary_probs = [], []
    for t in range(x.size(0)):
        h_below, z_below = x[t], torch.ones_like(state.z[:, 0])  # z[0] = 1: the input is new at every step
        found: Tuple[List[Tensor], ...] = ([], [], [], [])
        h, c, z, z_tilde = found
        for index, layer in enumerate(layers):
            is_top = index == num_layers - 1
            new = cell(
                layer,
                h=state.h[index],
                c=state.c[index],
                z_prev=state.z[:, index],
                h_above=None if is_top else state.h[index + 1],
                h_below=h_below,
                z_below=z_below,
                mask=None if recurrent_masks is None else recurrent_masks[index],
                has_detector=not is_top or options.top_boundary,
                noise=None if noise is None else noise[t, :, index],
                options=options,
            )
            for values, value in zip(found, new):
                values.append(value)
            h_below, z_below = h[-1], z[-1]
        new_state = HMLSTMState(tuple(h), tuple(c), torch.stack(z, 1))
        emitted = torch.stack(z_tilde, 1)
        boundaries.append(new_state.z)
        if valid is not None:
            new_state, boundaries[-1], emitted = freeze(valid[t], state, new_state, emitted)
        state = new_state
        boundary_probs.append(emitted)
        for outputs, output in zip(hidden, state.h):
            outputs.append(output)
    if not boundaries:
        return HMLSTMOutput.empty(x, state)
    stacked = tuple(torch.stack(outputs) for outputs in hidden)
    return HMLSTMOutput(stacked, torch.stack(boundaries), torch.stack(boundary_probs), state)


def freeze(valid: Tensor, old: HMLSTMState, new: HMLSTMState, z_tilde: Tensor):
    """Keep the old state where valid (B,) is False, bit for bit; nothing is emitted there but zeros."""
    keep = valid.unsqueeze(1)

    def choose(before, after):
        return tuple(torch.where(keep, b, a) for a, b in zip(before, after))

    state = HMLSTMState(choose(old.h, new.h), choose(old.c, new.c), torch.where(keep, new.z, old.z))
    zeros = torch.zeros_like(z_tilde)
    return state, torch.where(keep, new.z, zeros), torch.where(keep, z_tilde, zeros)
