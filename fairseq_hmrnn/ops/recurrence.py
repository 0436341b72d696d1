"""What every implementation of the recurrence takes and returns."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .state import HMLSTMState


class RecurrenceOptions(NamedTuple):
    """Constants of one call.

    slope: a of the hard sigmoid, > 0. In a recorded graph it is a constant, unless it is a tensor ().
    boundary: one of BOUNDARY_MODES.
    nested_boundaries: a layer may close a segment only where the layer below does (z[l] = z[l-1] * decision).
    top_boundary: the top layer has a detector too, and FLUSHes itself.
    detector_grad_scale: factor on what a detector sends back to the states and boundaries it reads; its own
        weights always get the whole gradient. 1 is the exact straight-through gradient. See ops/README.md.
    bfloat16_products: round the operands of products, forward and backward, to bfloat16; sums, states, gates and the
        detectors' rows stay float32. For float32 tensors; kernels on a GPU take 16-bit weights instead.
    """

    slope: Union[float, Tensor] = 1.0
    boundary: str = "step"
    nested_boundaries: bool = False
    top_boundary: bool = False
    detector_grad_scale: float = 1.0
    bfloat16_products: bool = False


class HMLSTMOutput(NamedTuple):
    """hidden: tuple over layers of (T, B, H_l). boundaries, boundary_probs: (T, B, L), z and z~; 0 where the
    sample is not valid and for a layer without detector. state: after the last step."""

    hidden: Tuple[Tensor, ...]
    boundaries: Tensor
    boundary_probs: Tensor
    state: HMLSTMState

    def changed(self, start: HMLSTMState, valid: Optional[Tensor] = None) -> Tensor:
        """(T, B, L) bool: False where h[l] is bit for bit that of the step before, for COPY kept it. start: the state
        before the first step; valid: as the recurrence was given it."""
        boundaries = self.boundaries.detach()
        z_prev = torch.cat([start.z.detach().unsqueeze(0), boundaries[:-1]])
        z_below = F.pad(boundaries[..., :-1], (1, 0), value=1.0)  # the input is new at every step
        changed = (z_prev + z_below).ne(0)
        if valid is not None:  # boundaries are 0 there, z of the state is not
            changed[1:] |= ~valid[:-1].unsqueeze(-1)
        return changed

    @classmethod
    def empty(cls, x: Tensor, state: HMLSTMState) -> HMLSTMOutput:
        """The output over no steps: x (0, B, input_size)."""
        batch_size = x.size(1)
        hidden = tuple(x.new_zeros(0, batch_size, size) for size in state.hidden_sizes)
        nothing = state.z.new_zeros(0, batch_size, len(hidden))
        return cls(hidden, nothing, nothing, state)
