"""The recurrence on the GPU in Triton: forward and backward by hand, COPY skipped, under a CUDA graph.

Importing this folder imports Triton: `hm_lstm.py` does so only where it is asked for. How it is laid out and why:
ops/README.md.
"""

from __future__ import annotations

from typing import Optional, Sequence

import torch
from torch import Tensor

from ..autograd import CONSTANTS, Call, run
from ..reference import hm_lstm_reference
from ..types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions, without_padding
from .buffers import Shape
from .graphs import current_device, lease


def hm_lstm_triton(
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    options: RecurrenceOptions,
    valid: Optional[Tensor] = None,
    noise: Optional[Tensor] = None,
    recurrent_masks: Optional[Sequence[Tensor]] = None,
    skip: bool = True,
    graphs: bool = True,
) -> HMLSTMOutput:
    """Arguments, shapes and result: see `ops.hm_lstm`; float32, float16 or bfloat16.

    skip: False computes COPY steps and closed terms too, to the same bits; for tests and benchmarks.
    graphs: from the second call of a shape on, replay a CUDA graph instead of launching kernel by kernel.
    """
    if x.size(0) == 0:
        return HMLSTMOutput.empty(x, state)
    if x.size(1) == 0:  # nothing to launch; in float32, as the state is
        x, layers = x.float(), [layer.to(torch.float32) for layer in layers]
        return hm_lstm_reference(x, layers, state, options, valid, noise, recurrent_masks)
    call = _TritonCall(len(layers), options, skip, graphs)
    return run(call, without_padding(x, valid), layers, state, valid, noise, recurrent_masks)


class _TritonCall(Call):
    keeps_hidden = False  # buffers have it

    def __init__(self, num_layers: int, options: RecurrenceOptions, skip: bool, graphs: bool):
        super().__init__(num_layers, options, skip)
        self.graphs = graphs

    def forward(self, tensors, training):
        x, weights, state, _, valid, noise, masks = self.split(tensors)
        layers, options = [LayerParameters(*layer) for layer in weights], self.options
        hidden = tuple(layer.detector_units for layer in layers)
        shape = Shape(
            *x.shape, tuple(layer.hidden_size for layer in layers), x.dtype, x.device, layers[0].layer_norm,
            masks is not None, training, options.boundary, options.nested_boundaries, options.top_boundary,
            options.detector_grad_scale != 0, self.skip, hidden if any(hidden) else (),
        )  # fmt: skip
        with torch.no_grad(), current_device(x.device):
            layers = [LayerParameters(*(None if t is None else t.detach() for t in layer)) for layer in layers]
            kept = lease(shape, self.graphs)
            kept.workspace.buffers.load_weights(layers)
            kept.workspace.buffers.load_inputs(x, state, options, valid, noise, masks)
            kept.workspace.forward()
            return kept.workspace.buffers.results(kept.steps), kept if training else None

    def backward(self, tensors, saved, hidden, grads, need_x, need_weights):
        with current_device(tensors[CONSTANTS + self.num_layers].device):
            saved.workspace.buffers.load_gradients(grads, saved.steps)
            d_x, *others = saved.workspace.backward(need_x, need_weights)
        return [None if d_x is None else d_x[: saved.steps], *others]


__all__ = ["hm_lstm_triton"]
