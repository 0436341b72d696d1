"""The CPU recurrence without compiled code: the same backward pass by hand in torch, packed products, COPY skipped.

Slower than csrc/ by the cost of calling torch some thirty times per cell, and several times faster than autograd.
Equation numbers and the derivation: ops/README.md. In every cell the samples are of three kinds: `rows`, computed in
full; `idle`, COPY steps whose values were computed at the first of their run; and frozen ones (not valid).
"""

from __future__ import annotations

from typing import List, Optional

from torch import Tensor

from .backward import Backward
from .forward import Forward, Packed, pack
from .problem import Inputs, Saved

__all__ = ["Inputs", "backward", "forward", "pack"]


def forward(inputs: Inputs, training: bool, products: Optional[Packed] = None, projected: bool = False):
    """The flat results of `ops.autograd.Call`, and what the backward pass needs (None if not training).

    products: as `pack` makes them. projected: x is layer 1's bottom-up product, and after it that of its detector's
    hidden layer, if it has one.
    """
    run = Forward(inputs, training, products, projected)
    return run.run_all(), run.saved if training else None


def backward(inputs: Inputs, saved: Saved, hidden, grads, need_x: bool, need_weights: bool) -> List[Optional[Tensor]]:
    """Gradients of x, z, h, c and the weights, flat."""
    return Backward(inputs, saved, hidden, grads).run_all(need_x, need_weights)
