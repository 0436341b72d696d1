"""The arguments and results of every implementation of the recurrence: weights, state, options, output.

A layer of size H holds 4H+1 rows in every weight: H each of forget gate f, input gate i, output gate o and
candidate g, and one row for the boundary detector z. A layer without detector has the row too, unused, so that
all layers are laid out alike. A detector may have a hidden layer beside its row (ops/detector.py).
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .capture import capturing

GATE_ORDER = ("f", "i", "o", "g", "z")
NUM_GATES = len(GATE_ORDER) - 1  # those of H rows
NUM_PRODUCTS = 3
RECURRENT, TOP_DOWN, BOTTOM_UP = range(NUM_PRODUCTS)  # the order of LayerParameters


def count_detectors(num_layers: int, top_boundary: bool) -> int:
    """How many layers, from the bottom, have a boundary detector."""
    return num_layers if top_boundary else num_layers - 1


def num_rows(hidden_size: int) -> int:
    """Rows of every weight of a layer of this size."""
    return NUM_GATES * hidden_size + 1


def gate_rows(gate: str, hidden_size: int) -> slice:
    """Rows of one gate of GATE_ORDER."""
    start = GATE_ORDER.index(gate) * hidden_size
    return slice(start, start + (1 if gate == "z" else hidden_size))


class DetectorHidden(NamedTuple):
    """The hidden layer of a detector: weight (N, H + H_above + H_below), the columns in the order of the products, bias
    (N), output (N)."""

    weight: Tensor
    bias: Tensor
    output: Tensor


class LayerParameters(NamedTuple):
    """Weights of layer l, H its size, H_above the size of the layer above, H_below that of its input.

    weight_recurrent (4H+1, H), weight_top_down (4H+1, H_above) or None for the top layer, weight_bottom_up
    (4H+1, H_below), bias (4H+1). The gains (4H+1) of layer normalisation are all None without it, and gain_top_down is
    None for the top layer. Every list of the three products, in Python, C++ and Triton, is in this order.

    detector_hidden_weight, detector_hidden_bias and detector_output: of DetectorHidden, None without one, and for a
    layer without detector.
    """

    weight_recurrent: Tensor
    weight_top_down: Optional[Tensor]
    weight_bottom_up: Tensor
    bias: Tensor
    gain_recurrent: Optional[Tensor] = None
    gain_top_down: Optional[Tensor] = None
    gain_bottom_up: Optional[Tensor] = None
    detector_hidden_weight: Optional[Tensor] = None
    detector_hidden_bias: Optional[Tensor] = None
    detector_output: Optional[Tensor] = None

    @property
    def hidden_size(self) -> int:
        return self.weight_recurrent.size(1)

    @property
    def weights(self) -> Tuple[Optional[Tensor], ...]:
        """Of the three products."""
        return self[:NUM_PRODUCTS]

    @property
    def gains(self) -> Tuple[Optional[Tensor], ...]:
        """Of the three products."""
        return self[NUM_PRODUCTS + 1 : 2 * NUM_PRODUCTS + 1]

    @property
    def detector_hidden(self) -> Optional[DetectorHidden]:
        """None without one."""
        return None if self.detector_output is None else DetectorHidden._make(self[2 * NUM_PRODUCTS + 1 :])

    def to(self, dtype: torch.dtype) -> LayerParameters:
        """`Tensor.to` of every weight; gradients go back to these."""
        return LayerParameters._make(None if tensor is None else tensor.to(dtype) for tensor in self)

    @property
    def layer_norm(self) -> bool:
        return self.gain_recurrent is not None

    @property
    def detector_units(self) -> int:
        """Units of the detector's hidden layer, 0 without one."""
        return 0 if self.detector_output is None else self.detector_output.size(0)


def split_gates(pre_activation: Tensor) -> Tuple[Tensor, ...]:
    """(B, 4H+1) to f, i, o, g of (B, H) and z of (B,)."""
    hidden_size = (pre_activation.size(-1) - 1) // NUM_GATES
    *gates, z = pre_activation.split([hidden_size] * NUM_GATES + [1], dim=-1)
    return (*gates, z.squeeze(-1))


class HMLSTMState(NamedTuple):
    """State of an L-layer HM-LSTM between two steps.

    h: tuple over layers of (B, H_l), the hidden states.
    c: tuple over layers of (B, H_l), the cell states.
    z: (B, L), the boundaries of the last step; the column of a layer without detector is 0.
    """

    h: Tuple[Tensor, ...]
    c: Tuple[Tensor, ...]
    z: Tensor

    @classmethod
    def zeros(cls, batch_size: int, hidden_sizes: Sequence[int], dtype=None, device=None) -> HMLSTMState:
        """The state before the first symbol: everything 0, so that every layer starts with UPDATE or COPY."""

        def new(size):
            return torch.zeros(batch_size, size, dtype=dtype, device=device)

        return cls(tuple(map(new, hidden_sizes)), tuple(map(new, hidden_sizes)), new(len(hidden_sizes)))

    @property
    def batch_size(self) -> int:
        return self.z.size(0)

    @property
    def hidden_sizes(self) -> Tuple[int, ...]:
        return tuple(h.size(1) for h in self.h)

    def apply(self, function: Callable[[Tensor], Tensor]) -> HMLSTMState:
        """The state with `function` applied to each of its tensors."""
        return HMLSTMState(tuple(map(function, self.h)), tuple(map(function, self.c)), function(self.z))

    def detach(self) -> HMLSTMState:
        """Cut the graph: the one place where truncated back-propagation truncates."""
        return self.apply(Tensor.detach)

    def reorder(self, order: Tensor) -> HMLSTMState:
        """Select rows of the batch, as beam search does. order: (B',) of row indices."""
        return self.apply(lambda tensor: tensor.index_select(0, order))

    def pack(self) -> Tensor:
        """All of it as one (B, 2 (H_1 + ... + H_L) + L) tensor: h, c and z of a sample side by side."""
        return torch.cat([*self.h, *self.c, self.z], dim=1)

    @classmethod
    def unpack(cls, packed: Tensor, hidden_sizes: Sequence[int]) -> HMLSTMState:
        """The inverse of `pack`. ValueError for a tensor of another width."""
        sizes = [*hidden_sizes, *hidden_sizes, len(hidden_sizes)]
        if not capturing() and packed.size(1) != sum(sizes):  # a trace would warn of the comparison
            raise ValueError(
                f"a state of layers {list(hidden_sizes)} has {sum(sizes)} columns, not {packed.size(1)}: give one that "
                "a model with layers of these sizes packed"
            )
        parts = packed.split(sizes, dim=1)
        layers = len(hidden_sizes)
        return cls(parts[:layers], parts[layers:-1], parts[-1])

    def to(self, *args, **kwargs) -> HMLSTMState:
        """`Tensor.to` of every tensor."""
        return self.apply(lambda tensor: tensor.to(*args, **kwargs))


class RecurrenceOptions(NamedTuple):
    """Constants of one call.

    slope: a of the hard sigmoid, > 0. In a recorded graph it is a constant, unless it is a tensor ().
    boundary: one of BOUNDARY_MODES.
    nested_boundaries: a layer may close a segment only where the layer below does (z[l] = z[l-1] * decision).
    top_boundary: the top layer has a detector too, and FLUSHes itself.
    detector_grad_scale: factor on what a detector sends back to the states and boundaries it reads; its own
        weights always get the whole gradient. 1 is the exact straight-through gradient. See ops/README.md.
    bfloat16_products: round the operands of products, forward and backward, to bfloat16; sums, states, gates and the
        detectors stay float32. For float32 tensors. Kernels on a GPU take 16-bit weights instead; the Python path
        on CPU multiplies in float32.
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
        """The output over no steps: x (0, B, input_size). Of x, so that it has a backward pass where x has one."""
        batch_size = x.size(1)
        hidden = tuple(x.sum(-1, keepdim=True).expand(0, batch_size, size) for size in state.hidden_sizes)
        nothing = state.z.new_zeros(0, batch_size, len(hidden))
        return cls(hidden, nothing, nothing, state)


def without_padding(x: Tensor, valid: Optional[Tensor]) -> Tensor:
    """x (T, B, N) with zeros where valid (T, B), if it is given, is False: what stands there may be NaN, which times a
    gradient of zero is NaN."""
    return x if valid is None else x.masked_fill(~valid.unsqueeze(-1), 0.0)
