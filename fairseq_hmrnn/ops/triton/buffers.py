"""The memory of one call: padded, of one layout for all layers, so that one launch serves several of them."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..types import BOTTOM_UP, NUM_GATES, NUM_PRODUCTS, HMLSTMState, LayerParameters, RecurrenceOptions
from .cell import SAVED
from .common import SPLIT, STATISTICS

SORTED_ROWS = 512  # largest batch whose samples a product can sort: every tile does it again


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def alike(tensors: Sequence[Any], kind: Callable[[Any], Any]) -> List[List[Any]]:
    """In groups of the same kind: torch takes one kernel on a GPU for the whole of a list whose tensors are contiguous
    and of the same dtype, and one for each tensor of any other list."""
    groups: Dict[Any, List[Any]] = {}
    for tensor in tensors:
        groups.setdefault(kind(tensor), []).append(tensor)
    return list(groups.values())


def copy_all(pairs: Sequence[Tuple[Tensor, Tensor]]) -> None:
    """Copies each pair's second tensor into the first."""
    for group in alike(pairs, lambda pair: tuple((t.dtype, t.is_contiguous()) for t in pair)):
        torch._foreach_copy_([target for target, _ in group], [source for _, source in group])


def zero_all(tensors: Sequence[Tensor]) -> None:
    for group in alike(tensors, lambda tensor: (tensor.dtype, tensor.is_contiguous())):
        torch._foreach_zero_(group)


def copies(tensors: Sequence[Tensor]) -> List[Tensor]:
    """A contiguous copy of each tensor."""
    made = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]
    copy_all(list(zip(made, tensors)))
    return made


class Shape(NamedTuple):
    """The shape on which buffers and compiled kernels depend. Equal shapes can share them."""

    steps: int
    batch: int
    input_size: int
    sizes: Tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    layer_norm: bool
    masked: bool
    training: bool
    boundary: str
    nested_boundaries: bool
    top_boundary: bool
    detector_sends_gradients: bool  # detector_grad_scale is not 0
    skip: bool
    detector_hidden: Tuple[int, ...] = ()  # units of every detector's hidden layer, 0 for a layer without one

    @property
    def block_m(self) -> int:
        """Samples of one tile of a product; the batch is padded to a multiple."""
        return 16 if self.batch <= 16 else 32 if self.batch <= 32 else 64

    @property
    def granule(self) -> int:
        """Layers are padded to a multiple."""
        return 16 if max(self.sizes) <= 16 else 32 if max(self.sizes) <= 32 else 64

    @property
    def rows(self) -> int:
        return round_up(self.batch, self.block_m)

    @property
    def padded(self) -> Tuple[int, ...]:
        return tuple(round_up(size, self.granule) for size in self.sizes)

    @property
    def hidden_padded(self) -> int:
        """Units of a detector's hidden layer in the buffers, 0 where no detector has one."""
        most = max(self.detector_hidden, default=0)
        return 1 << max(4, (most - 1).bit_length()) if most else 0

    @property
    def copy_has_gate_gradients(self) -> bool:
        """Layer normalisation mixes the detector's gradient into all rows, so that in training COPY steps have gate
        gradients too and nothing is skipped."""
        return self.layer_norm and self.training and self.detector_sends_gradients


class Buffers:
    """Every tensor that the kernels read and write, L layers of padded size P, R samples, T steps.

    weights (L, 3, 4P, P) and input_weight (4P, input_size) in the dtype of the call, rows of layer l: gate * padded[l]
    + unit; products in the order recurrent, top-down, bottom-up. forward_weights: the same, in float32 (L, 3, P, 4P).
    `hidden`, `read` (times the dropout mask) and `gradients` are operands of products, in that dtype too; where
    `hidden` and `read` need not differ from h they are h. All else is float32. Slot 0 of h, c, z is the state before
    the first step. Of the detectors' hidden layers, N units padded to a power of two, empty without them:
    detector_hidden_weights (L, 3, N, P), input_detector_hidden (N, input_size) and what it makes of the input,
    projected_hidden (T, R, N).
    """

    def __init__(self, shape: Shape):
        self.shape = shape
        L, T, R, P = len(shape.sizes), shape.steps, shape.rows, max(shape.padded)
        rows = NUM_GATES * P
        place: Dict[str, Any] = {"device": shape.device}
        operand = {**place, "dtype": shape.dtype}
        zeros, empty = torch.zeros, torch.empty
        self.size_padded = P
        self.scalars = zeros(2, **place)  # slope, detector_grad_scale
        # Without tensor cores the forward product takes half the time where its outputs lie side by side.
        self.transposed = shape.dtype == torch.float32
        self.weights = zeros(L if shape.training or not self.transposed else 0, NUM_PRODUCTS, rows, P, **operand)
        self.forward_weights = zeros(L, NUM_PRODUCTS, P, rows, **operand) if self.transposed else self.weights
        self.input_weight = zeros(NUM_GATES * shape.padded[0], shape.input_size, **operand)
        self.detectors, self.input_detector = zeros(L, NUM_PRODUCTS, P, **place), zeros(shape.input_size, **place)
        self.bias, self.detector_bias = zeros(L, rows, **place), zeros(L, **place)
        self.gains, self.detector_gains = zeros(L, NUM_PRODUCTS, rows, **place), zeros(L, NUM_PRODUCTS, **place)
        N = shape.hidden_padded
        self.detector_hidden_weights, self.input_detector_hidden = (
            zeros(size, **place) for size in ((L, NUM_PRODUCTS, N, P), (N, shape.input_size))
        )
        self.detector_hidden_biases, self.detector_outputs = zeros(L, N, **place), zeros(L, N, **place)

        self.x = zeros(T, R, shape.input_size, **operand)
        self.valid = zeros(T, R, dtype=torch.int32, **place)
        self.noise = torch.full((L, T, R), 0.5, **place)
        self.masks = zeros(L, R, P, **place)

        self.h, self.c = zeros(L, T + 1, R, P, **place), zeros(L, T + 1, R, P, **place)
        self.hidden = self.h if shape.dtype == torch.float32 else zeros(L, T + 1, R, P, **operand)
        self.read = zeros(L, T + 1, R, P, **operand) if shape.masked else self.hidden
        self.z, self.u = zeros(L, T + 1, R, **place), zeros(L, T + 1, R, **place)
        self.running = zeros(L, T + 1, R, dtype=torch.int32, **place)
        self.boundaries, self.probs = zeros(L, T, R, **place), zeros(L, T, R, **place)
        self.keep = shape.training and shape.layer_norm
        self.products = empty(T if self.keep else 1, L, NUM_PRODUCTS, R, rows, **place)
        self.projected = empty(T, R, rows, **place)
        self.projected_detector, self.projected_hidden = zeros(T, R, **place), empty(T, R, N, **place)
        self.gates = empty(L if shape.training else 0, T + 1, R, int(SAVED) * P, **place)
        self.statistics = empty(L if self.keep else 0, T + 1, R, NUM_PRODUCTS * int(STATISTICS), **place)
        if shape.training:
            self.allocate_gradients(L, T, R, P, place, operand)

    def allocate_gradients(self, L, T, R, P, place, operand) -> None:
        zeros = torch.zeros
        rows = NUM_GATES * P
        kinds = NUM_PRODUCTS if self.shape.layer_norm else 1  # without, the three products have one gradient
        self.grad_hidden = zeros(L, T, R, P, **place)
        self.grad_boundaries, self.grad_probs = zeros(L, T, R, **place), zeros(L, T, R, **place)
        self.dh, self.dc = zeros(L, R, P, **place), zeros(L, R, P, **place)
        self.dz, self.dz_below = zeros(L, R, **place), zeros(L, R, **place)
        self.sent = zeros(L, T, R, dtype=torch.int32, **place)
        self.sent_gates = torch.empty(2, L, NUM_PRODUCTS, int(SPLIT), R, P, **place)
        self.gradients = zeros(kinds, L, T, R, rows, **operand)
        self.detector_gradients = zeros(NUM_PRODUCTS, L, T, R, **place)
        # That of u, for the detectors' hidden layers; without layer normalisation all three products' are that.
        keeps_du = self.shape.hidden_padded and self.shape.layer_norm
        self.logit_gradients = zeros(L, T, R, **place) if keeps_du else self.detector_gradients[0]
        self.bias_sums, self.detector_bias_sums = zeros(L, R, rows, **place), zeros(L, R, **place)
        norms = L if self.shape.layer_norm else 0
        self.gain_sums = zeros(norms, NUM_PRODUCTS, R, rows, **place)
        self.detector_gain_sums = zeros(norms, NUM_PRODUCTS, R, **place)

    @staticmethod
    def load_numbers(target: Tensor, numbers: Sequence[float]) -> None:
        """Into a vector, one by one: a copy from the host's memory would wait for everything launched before."""
        for index, number in enumerate(numbers):
            target[index].fill_(number)

    def unpadded_gates(self, tensor: Tensor, index: int) -> Tensor:
        """(..., 4P, *) or (..., 4P) of a layer, gate rows first, as (4, H, ...)."""
        padded = self.shape.padded[index]
        return tensor[: NUM_GATES * padded].view(NUM_GATES, padded, *tensor.shape[1:])[:, : self.shape.sizes[index]]

    def load_weights(self, layers: Sequence[LayerParameters]) -> None:
        """Into the padded layout. Where nothing has to be padded two or three kernels, and in float32 one more for each
        transposed matrix."""
        pairs: List[Tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(layers):
            size = self.shape.sizes[index]
            for product, (weight, gain) in enumerate(zip(layer.weights, layer.gains)):
                if weight is None:
                    continue
                columns = weight.size(1)
                is_input = index == 0 and product == BOTTOM_UP
                row = self.input_detector if is_input else self.detectors[index, product]
                given = weight[:-1].view(NUM_GATES, size, columns)
                if is_input:
                    pairs.append((self.unpadded_gates(self.input_weight, index), given))
                elif self.weights.size(0):
                    pairs.append((self.unpadded_gates(self.weights[index, product], index)[..., :columns], given))
                if self.transposed and not is_input:
                    target = self.unpadded_gates(self.forward_weights[index, product].t(), index)
                    pairs.append((target[..., :columns], given))
                pairs.append((row[:columns], weight[-1]))
                if gain is not None:
                    pairs += self.vector(self.gains[index, product], self.detector_gains[index, product], gain, index)
            pairs += self.vector(self.bias[index], self.detector_bias[index], layer.bias, index)
            given_hidden = layer.detector_hidden
            if given_hidden is not None:
                parts, *vectors = self.detector_hidden(index)
                given_parts = given_hidden.weight.split([part.size(1) for part in parts], dim=1)
                pairs += [*zip(parts, given_parts), *zip(vectors, given_hidden[1:])]
        copy_all(pairs)

    def vector(self, rows: Tensor, last: Tensor, given: Tensor, index: int) -> List[Tuple[Tensor, Tensor]]:
        """Where the parts of a bias or a gain (4H+1) go: target and source."""
        parts = given[:-1].view(NUM_GATES, self.shape.sizes[index])
        return [(self.unpadded_gates(rows, index), parts), (last, given[-1])]

    def detector_hidden(self, index: int) -> Tuple[List[Tensor], Tensor, Tensor]:
        """The parameters of a detector's hidden layer without padding: D, by the products that are there, d and v."""
        units, sizes = self.shape.detector_hidden[index], self.shape.sizes
        recurrent, top_down, bottom_up = self.detector_hidden_weights[index, :, :units]
        parts = [recurrent[:, : sizes[index]]]
        if index + 1 < len(sizes):
            parts.append(top_down[:, : sizes[index + 1]])
        parts.append(bottom_up[:, : sizes[index - 1]] if index else self.input_detector_hidden[:units])
        return parts, self.detector_hidden_biases[index, :units], self.detector_outputs[index, :units]

    def load_inputs(
        self,
        x: Tensor,
        state: HMLSTMState,
        options: RecurrenceOptions,
        valid: Optional[Tensor],
        noise: Optional[Tensor],
        masks: Optional[Sequence[Tensor]],
    ) -> None:
        steps, batch = x.size(0), self.shape.batch
        self.load_numbers(self.scalars, (float(options.slope), options.detector_grad_scale))
        pairs = [(self.x[:steps, :batch], x), (self.z[:, 0, :batch], state.z.t())]
        if valid is None:
            self.valid[:steps, :batch].fill_(1)
        else:
            pairs.append((self.valid[:steps, :batch], valid))
        if steps < self.shape.steps:  # after the last step all is padding
            self.x[steps:].zero_(), self.valid[steps:].zero_()
        if noise is not None:
            pairs.append((self.noise[:, :steps, :batch], noise.permute(2, 0, 1)))
        for index, size in enumerate(self.shape.sizes):
            h = state.h[index]
            pairs.append((self.h[index, 0, :batch, :size], h))
            pairs.append((self.c[index, 0, :batch, :size], state.c[index]))
            if self.hidden is not self.h:
                pairs.append((self.hidden[index, 0, :batch, :size], h))
            if masks is not None:
                pairs.append((self.masks[index, :batch, :size], masks[index]))
                pairs.append((self.read[index, 0, :batch, :size], h.float() * masks[index].float()))
        copy_all(pairs)

    def load_gradients(self, grads: Sequence[Optional[Tensor]], steps: int) -> None:
        """Load the gradients of a call of so many steps, in the order of the results: hidden, h and c of every layer,
        boundaries, boundary_probs, z."""
        L, batch = len(self.shape.sizes), self.shape.batch
        if steps < self.shape.steps:
            for grad in (self.grad_hidden, self.grad_boundaries, self.grad_probs):
                grad[:, steps:].zero_()
        targets = [self.grad_hidden[index, :steps, :batch, :size] for index, size in enumerate(self.shape.sizes)]
        for kind in (self.dh, self.dc):
            targets += [kind[index, :batch, :size] for index, size in enumerate(self.shape.sizes)]
        targets += [self.grad_boundaries[:, :steps, :batch], self.grad_probs[:, :steps, :batch], self.dz[:, :batch]]
        boundaries, probs, z = grads[3 * L :]
        sources = [*grads[: 3 * L], *(None if t is None else t.permute(2, 0, 1) for t in (boundaries, probs))]
        sources.append(None if z is None else z.t())
        zero_all([target for target, source in zip(targets, sources) if source is None])
        copy_all([(target, source) for target, source in zip(targets, sources) if source is not None])

    def results(self, steps: int) -> Tuple[Tensor, ...]:
        """Copies, of a call of so many steps, in the order above: `hidden` of the call's dtype, all else float32."""
        batch = self.shape.batch
        layers = list(enumerate(self.shape.sizes))
        hidden = [self.hidden[index, 1 : steps + 1, :batch, :size] for index, size in layers]
        h = [self.h[index, -1, :batch, :size] for index, size in layers]
        c = [self.c[index, -1, :batch, :size] for index, size in layers]
        emitted = [t[:, :steps, :batch].permute(1, 2, 0) for t in (self.boundaries, self.probs)]
        return tuple(copies([*hidden, *h, *c, *emitted, self.z[:, -1, :batch].t()]))
