"""Decoding one symbol at a time: the state that a generation has reached, and the weights as it reads them.

Packed weights must never be older than the model. They live in fairseq's incremental state, which every call to a
generator makes anew and nobody keeps: training between two calls, `load_state_dict`, an average of weights, `.half()`
or a move to another device all come before the next packing, and every model of an ensemble has a state of its own.
Nothing tries to notice a change of weights: fairseq's optimizers write through `.data`, which leaves no trace.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modules import LayerOutput
from ..ops import HMLSTMOutput, HMLSTMState

# Up to this many symbols the table of their input projections is worth its memory: (4H+1) numbers for each.
TABLE_SYMBOLS = 2048


class Steps:
    """Single steps on any device, in any precision, with a graph where one is wanted."""

    def __init__(self, decoder, state: HMLSTMState):
        self.embed, self.hm_lstm, self.layer_output = decoder.embed, decoder.hm_lstm, decoder.layer_output
        self.state, self.slope = state, decoder.slope_progress.slope

    def __call__(self, tokens: Tensor, valid: Optional[Tensor]) -> Tuple[Tensor, HMLSTMOutput]:
        """tokens (B,); valid (B,) or None. Returns the output module's embedding (B, output_dim) and the recurrence's
        output."""
        output = self.hm_lstm.step(self.embed(tokens), self.state, valid, self.slope)
        self.state = output.state
        return self.layer_output(output.hidden), output

    def reorder(self, order: Tensor) -> None:
        """Let row i go on from what was row order[i]."""
        self.state = self.state.reorder(order)


class Weights:
    """The weights of a decoder as they are now, for steps of the compiled kernel. Constant: copies share it."""

    def __init__(self, packed, embedding: Tensor, layer_output: LayerOutput):
        self.packed = packed
        self.table = packed.project(embedding) if embedding.size(0) <= TABLE_SYMBOLS else None
        self.output = layer_output.layer_weights()

    def __deepcopy__(self, memo):
        return self


class PackedSteps(Steps):
    """Single steps on CPU, without gradients: packed weights, layer 1's input projection from a table, and neither the
    recurrence nor the output module computes anew what COPY leaves as it is."""

    def __init__(self, decoder, state: HMLSTMState, weights: Weights):
        super().__init__(decoder, state)
        self.weights = weights
        # Every layer's term of the output module, of its h as it is now.
        self.terms = torch.stack([F.linear(h, weight) for h, weight in zip(state.h, weights.output)], dim=1)

    def __call__(self, tokens, valid):
        weights, z_prev = self.weights, self.state.z
        projected = weights.table is not None
        x = weights.table.index_select(0, tokens) if projected else self.embed(tokens)
        output = self.hm_lstm.step(x, self.state, valid, self.slope, packed=weights.packed, projected=projected)
        self.state = output.state
        self._update_terms(output, z_prev)
        return self.layer_output.combine(self.terms), output

    def _update_terms(self, output: HMLSTMOutput, z_prev: Tensor) -> None:
        """Compute the terms of layers that did not COPY: z_prev or z_below is not 0 there, and always in layer 1."""
        first, *others = self.weights.output
        self.terms[:, 0] = F.linear(output.hidden[0], first)
        if not others:
            return
        changed = (z_prev[:, 1:] + output.boundaries[:, :-1]).ne(0)
        if changed.size(0) == 1:
            for index, is_changed in enumerate(changed[0].tolist(), 1):
                if is_changed:
                    self.terms[:, index] = F.linear(output.hidden[index], self.weights.output[index])
            return
        for index, (weight, column) in enumerate(zip(others, changed.unbind(1)), 1):
            rows = column.nonzero().squeeze(1)
            if rows.numel():
                self.terms[rows, index] = F.linear(output.hidden[index].index_select(0, rows), weight)

    def reorder(self, order):
        self.state = self.state.reorder_(order)
        self.terms = self.terms.index_select(0, order)


def begin(decoder, state: HMLSTMState) -> Steps:
    """The steps of one generation from `state` on, packed if they can be. decoder: with `embed_tokens`, `embed`,
    `hm_lstm`, `layer_output` and `slope_progress`."""
    packed = None if decoder.training or torch.is_grad_enabled() else decoder.hm_lstm.pack()
    if packed is None:
        return Steps(decoder, state)
    return PackedSteps(decoder, state, Weights(packed, decoder.embed_tokens.weight, decoder.layer_output))
