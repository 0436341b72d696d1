"""HM-LSTM as a torch module."""

from __future__ import annotations

import math
import operator
from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..ops import (
    BACKENDS,
    BOUNDARY_MODES,
    HMLSTMOutput,
    HMLSTMState,
    LayerParameters,
    PackedLayers,
    RecurrenceOptions,
    count_detectors,
    hm_lstm,
    pack_layers,
    state_dtype,
)
from ..ops.checks import check_input
from ..ops.types import gate_rows, num_rows
from .hooks import run_pre_hooks

# Layer normalisation makes the recurrent and the top-down product as large as their gain however small the states
# are, and with it the gradient's growth from step to step: at 1 it grows exponentially over time, see ops/README.md.
LOOP_GAIN = 0.3


class HMLSTM(nn.Module):
    """Hierarchical Multiscale LSTM (arXiv 1609.01704) over sequences, in the manner of torch.nn.LSTM.

    input_size: size of the input at every step.
    hidden_sizes: sizes of the layers, bottom to top.
    layer_norm: normalise each of the three products of a cell over its 4H+1 rows, with a gain of its own.
    boundary: "step" (z~ > 0.5), "bernoulli" (sampled in training; the step in evaluation, so that scores are
        repeatable) or "soft" (z = z~).
    nested_boundaries: a layer may close a segment only where the layer below closes one. Off: the paper's equations.
    top_boundary: give the top layer a detector too; the paper's has none.
    detector_grad_scale: factor on the gradient that a detector sends back through what it reads (ops/README.md,
        "Why the plain gradient explodes"); 1 is the exact straight-through gradient.
    detector_hidden: units of a hidden layer in every detector, beside its row of the weights (ops/detector.py): u = s_z
        + v . ReLU(D [m h'; z' h_above; zb h_below] + d), with m the mask of recurrent dropout. It sends no gradient to
        what it reads. 0: the paper's.
    forget_bias, detector_bias: initial biases of the forget gate and of the detector.
    recurrent_dropout: probability of variational dropout on the recurrent product's input: one mask for all steps.
    backend: implementation of the recurrence, see ops.hm_lstm.
    recompute_chunks: pieces of a sequence that the backward pass computes again, for less memory: ops.recompute.
    bfloat16_products: round the operands of products to bfloat16 although the weights are float32; sums and states stay
        float32. With bfloat16 weights products are of bfloat16 operands anyway. Without the compiled kernel products
        on CPU are of float32 operands. ValueError for arguments outside their range.

    Parameters, for layer l: weight_recurrent.l (4H+1, H), weight_bottom_up.l (4H+1, H_below), weight_top_down.l
    (4H+1, H_above) for all but the top layer, bias.l (4H+1); with layer_norm a gain (4H+1) for each weight. Rows:
    f, i, o, g, z. With detector_hidden, for a layer with a detector: detector_hidden_weight.l (N, H + H_above +
    H_below), detector_hidden_bias.l (N), detector_output.l (N).
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        layer_norm: bool = False,
        boundary: str = "step",
        nested_boundaries: bool = False,
        top_boundary: bool = False,
        detector_grad_scale: float = 0.0,
        forget_bias: float = 1.0,
        detector_bias: float = 0.0,
        recurrent_dropout: float = 0.0,
        backend: str = "auto",
        recompute_chunks: int = 1,
        bfloat16_products: bool = False,
        detector_hidden: int = 0,
    ):
        super().__init__()
        try:
            self.hidden_sizes = tuple(map(operator.index, hidden_sizes))
        except TypeError as error:
            raise TypeError(f"hidden_sizes must be whole numbers, such as [512, 512], not {hidden_sizes!r}") from error
        self.input_size = _whole_number("input_size", input_size)
        recompute_chunks = _whole_number("recompute_chunks", recompute_chunks)
        detector_hidden = _whole_number("detector_hidden", detector_hidden)
        self._check(boundary, backend, detector_grad_scale, recurrent_dropout, recompute_chunks, detector_hidden)
        self.boundary = boundary
        self.nested_boundaries = nested_boundaries
        self.top_boundary = top_boundary
        self.detector_grad_scale = detector_grad_scale
        self.detector_hidden = detector_hidden
        self.forget_bias = forget_bias
        self.detector_bias = detector_bias
        self.recurrent_dropout = recurrent_dropout
        self.retain_dropout = False  # True: in evaluation too
        self.backend = backend
        self.recompute_chunks = recompute_chunks
        self.bfloat16_products = bfloat16_products

        rows = [num_rows(size) for size in self.hidden_sizes]
        below = (input_size, *self.hidden_sizes[:-1])
        self.weight_recurrent = _weights(rows, self.hidden_sizes)
        self.weight_bottom_up = _weights(rows, below)
        self.weight_top_down = _weights(rows, self.hidden_sizes[1:])
        self.bias = _vectors(rows)
        self.gain_recurrent = _vectors(rows) if layer_norm else None
        self.gain_bottom_up = _vectors(rows) if layer_norm else None
        self.gain_top_down = _vectors(rows[:-1]) if layer_norm else None
        units = [detector_hidden] * self.num_detectors if detector_hidden else []
        read = [sum(sizes) for sizes in zip(self.hidden_sizes, below, (*self.hidden_sizes[1:], 0))]
        self.detector_hidden_weight = _weights(units, read) if units else None
        self.detector_hidden_bias = _vectors(units) if units else None
        self.detector_output = _vectors(units) if units else None
        self.reset_parameters()

    def _check(
        self, boundary, backend, detector_grad_scale, recurrent_dropout, recompute_chunks, detector_hidden
    ) -> None:
        if self.input_size < 1 or not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(
                "input_size and at least one hidden size must be positive, "
                f"got {self.input_size} and {list(self.hidden_sizes)}"
            )
        for name, value, choices in (("boundary mode", boundary, BOUNDARY_MODES), ("backend", backend, BACKENDS)):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")
        if not 0 <= detector_grad_scale <= 1:
            raise ValueError(f"detector_grad_scale must lie in [0, 1], got {detector_grad_scale}")
        if not 0 <= recurrent_dropout < 1:
            raise ValueError(f"recurrent_dropout must lie in [0, 1), got {recurrent_dropout}")
        if recompute_chunks < 1:
            raise ValueError(f"recompute_chunks must be positive (1: no recomputation), got {recompute_chunks}")
        if detector_hidden < 0:
            raise ValueError(f"detector_hidden must be a number of units (0: no hidden layer), got {detector_hidden}")

    @property
    def num_layers(self) -> int:
        return len(self.hidden_sizes)

    @property
    def num_detectors(self) -> int:
        """Layers, from the bottom, that have a boundary detector."""
        return count_detectors(self.num_layers, self.top_boundary)

    def reset_parameters(self) -> None:
        """U(+-1/sqrt(H)) for weights, as torch.nn.LSTM; biases 0 but for forget gate and detector; gains 1, but
        LOOP_GAIN for the gates in the two products that close a loop over time. A detector's hidden layer adds nothing
        at first: its output is 0."""
        for index, size in enumerate(self.hidden_sizes):
            layer = self._layer(index)
            bound = 1 / math.sqrt(size)
            for weight in (layer.weight_recurrent, layer.weight_bottom_up, layer.weight_top_down):
                if weight is not None:
                    nn.init.uniform_(weight, -bound, bound)
            for gain in (layer.gain_recurrent, layer.gain_bottom_up, layer.gain_top_down):
                if gain is not None:
                    nn.init.ones_(gain)
            for gain in (layer.gain_recurrent, layer.gain_top_down):
                if gain is not None:
                    nn.init.constant_(gain.detach()[: num_rows(size) - 1], LOOP_GAIN)
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.bias[gate_rows("f", size)] = self.forget_bias
                layer.bias[gate_rows("z", size)] = self.detector_bias
        for index in range(self.num_detectors):  # last: with one seed all others are as without hidden layers
            hidden = self._layer(index).detector_hidden
            if hidden is not None:
                bound = 1 / math.sqrt(hidden.weight.size(1))
                nn.init.uniform_(hidden.weight, -bound, bound)
                nn.init.zeros_(hidden.bias)
                nn.init.zeros_(hidden.output)

    def _layer(self, index: int) -> LayerParameters:
        name = str(index)

        def pick(parameters: Optional[nn.ParameterList]) -> Optional[Tensor]:
            if parameters is None or index >= len(parameters):
                return None
            found = parameters._parameters.get(name)  # at a third of the cost of indexing: a step reads many
            return getattr(parameters, name) if found is None else found  # one that torch.nn.utils makes

        weights = self.weight_recurrent, self.weight_top_down, self.weight_bottom_up
        gains = self.gain_recurrent, self.gain_top_down, self.gain_bottom_up
        hidden = self.detector_hidden_weight, self.detector_hidden_bias, self.detector_output
        return LayerParameters._make(map(pick, (*weights, self.bias, *gains, *hidden)))

    def layers(self) -> List[LayerParameters]:
        """The weights of every layer, bottom to top."""
        run_pre_hooks(*self.children())
        return [self._layer(index) for index in range(self.num_layers)]

    def zero_state(self, batch_size: int) -> HMLSTMState:
        """The state before the first symbol."""
        like = next(self.parameters())
        return HMLSTMState.zeros(batch_size, self.hidden_sizes, state_dtype(like.dtype), like.device)

    def forward(
        self,
        x: Tensor,
        state: Optional[HMLSTMState] = None,
        valid: Optional[Tensor] = None,
        slope: Union[float, Tensor] = 1.0,
        noise: Optional[Tensor] = None,
        recurrent_masks: Optional[Tuple[Tensor, ...]] = None,
        tokens: Optional[Tensor] = None,
        hidden_dtype: Optional[torch.dtype] = None,
    ) -> HMLSTMOutput:
        """Run over a sequence.

        x: (T, B, input_size), or with tokens (T, B) the table (symbols, input_size) that they are rows of. state:
        before the first step, zeros if None. valid: (T, B) bool, False keeps the state of that sample bit for bit.
        slope: of the hard sigmoid; in a recorded graph a constant, unless it is a tensor (). noise: (T, B, L) for
        boundary="bernoulli" in training, drawn here if None. recurrent_masks: of `draw_recurrent_masks`, for a
        sequence that is run in several calls; drawn here if None. hidden_dtype: of the output's `hidden`; None: that of
        the weights. Raises ValueError where shapes, dtypes or devices do not fit.
        """
        check_input(x, self.input_size, tokens)
        steps, batch_size = (x if tokens is None else tokens).shape[:2]
        if state is None:
            state = self.zero_state(batch_size)
        options = self.options(slope, sampled=self.training or noise is not None)
        if options.boundary == "bernoulli" and noise is None:
            dtype = state_dtype(next(self.parameters()).dtype)
            noise = torch.rand(steps, batch_size, self.num_layers, dtype=dtype, device=x.device)
        if recurrent_masks is None:
            recurrent_masks = self.draw_recurrent_masks(batch_size)
        return hm_lstm(
            x,
            self.layers(),
            state,
            options,
            valid,
            noise,
            recurrent_masks,
            self.backend,
            self.recompute_chunks,
            tokens,
            hidden_dtype,
        )

    def options(self, slope: Union[float, Tensor], sampled: bool = False) -> RecurrenceOptions:
        """The options for `ops.hm_lstm`. sampled: whether boundary="bernoulli" draws, or takes the step."""
        boundary = "step" if self.boundary == "bernoulli" and not sampled else self.boundary
        return RecurrenceOptions(
            slope,
            boundary,
            self.nested_boundaries,
            self.top_boundary,
            float(self.detector_grad_scale),
            self.bfloat16_products,
        )

    def step(
        self,
        x: Tensor,
        state: HMLSTMState,
        valid: Optional[Tensor] = None,
        slope: Union[float, Tensor] = 1.0,
        packed: Optional[PackedLayers] = None,
        projected: bool = False,
        recurrent_masks: Optional[Tuple[Tensor, ...]] = None,
    ) -> HMLSTMOutput:
        """One step: x (B, input_size), valid (B,); the output's tensors have no time dimension.

        packed: weights from `pack`, read in place of the module's; evaluation without gradients only. projected, with
        packed: x is (B, 4H+1+N), what `packed.project` makes of the input, such as a row of its table of embeddings (N:
        units of its detector's hidden layer, or 0). recurrent_masks: as in `forward`; not with packed.

        Raises ValueError for arguments that exclude each other.
        """
        if packed is None and projected:
            raise ValueError("projected input requires packed weights: give it with packed")
        if packed is not None and (recurrent_masks is not None or self._is_stochastic):
            raise ValueError("packed weights have no recurrent dropout: leave packed out, or the masks")
        if packed is not None and self.training and self.boundary == "bernoulli":
            raise ValueError("packed weights sample no boundaries: call eval() first, or leave packed out")
        x, valid = x.unsqueeze(0), None if valid is None else valid.unsqueeze(0)
        if packed is None:
            output = self(x, state, valid, slope, recurrent_masks=recurrent_masks)
        else:
            output = packed(x, state, self.options(slope), valid, projected=projected)
        hidden = tuple([h.squeeze(0) for h in output.hidden])
        return HMLSTMOutput(hidden, output.boundaries.squeeze(0), output.boundary_probs.squeeze(0), output.state)

    def pack(self, bfloat16: bool = False) -> Optional[PackedLayers]:
        """The weights as they are now, laid out for `step`. They must not change while it is used: pack where
        generation starts, and drop it where it ends. None where the CPU kernel does not run them. bfloat16: rounded to
        it, by the compiled kernel alone; input and state are then float32, whatever the weights are."""
        return pack_layers(self.layers(), self.backend, bfloat16)

    @property
    def _is_stochastic(self) -> bool:
        return self.recurrent_dropout > 0 and (self.training or self.retain_dropout)

    def draw_recurrent_masks(self, batch_size: int) -> Optional[Tuple[Tensor, ...]]:
        """Masks of recurrent dropout for a batch, tuple over layers of (B, H_l); None without it, and in evaluation
        unless `retain_dropout` is set."""
        if not self._is_stochastic:
            return None
        keep, like = 1 - self.recurrent_dropout, self.zero_state(0).z
        return tuple(like.new_empty(batch_size, size).bernoulli_(keep) / keep for size in self.hidden_sizes)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {list(self.hidden_sizes)}, layer_norm={self.gain_recurrent is not None}, "
            f"boundary={self.boundary!r}, nested_boundaries={self.nested_boundaries}, "
            f"top_boundary={self.top_boundary}, detector_grad_scale={self.detector_grad_scale}, "
            f"detector_hidden={self.detector_hidden}, backend={self.backend!r}"
        )


def _whole_number(name: str, value) -> int:
    """The argument of this name; TypeError for what is no whole number."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from error


def _weights(rows: Sequence[int], columns: Sequence[int]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.empty(r, c)) for r, c in zip(rows, columns)])


def _vectors(rows: Sequence[int]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.empty(r)) for r in rows])
