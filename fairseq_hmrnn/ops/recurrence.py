"""What every implementation of the recurrence takes and returns."""

from __future__ import annotations

from typing import NamedTuple, Tuple, Union

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
    """

    slope: Union[float, Tensor] = 1.0
    boundary: str = "step"
    nested_boundaries: bool = False
    top_boundary: bool = False
    detector_grad_scale: float = 1.0


class HMLSTMOutput(NamedTuple):
    """hidden: tuple over layers of (T, B, H_l). boundaries, boundary_probs: (T, B, L), z and z~; 0 where the
    sample is not valid and for a layer without detector. state: after the last step."""

    hidden: Tuple[Tensor, ...]
    boundaries: Tensor
    boundary_probs: Tensor
    state: HMLSTMState

    @classmethod
    def empty(cls, x: Tensor, state: HMLSTMState) -> HMLSTMOutput:
        """The output over no steps: x (0, B, input_size)."""
        batch_size = x.size(1)
        hidden = tuple(x.new_zeros(0, batch_size, size) for size in state.hidden_sizes)
        nothing = state.z.new_zeros(0, batch_size, len(hidden))
        return cls(hidden, nothing, nothing, state)
