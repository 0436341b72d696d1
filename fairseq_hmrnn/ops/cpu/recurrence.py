"""The recurrence on CPU with a backward pass written by hand, COPY skipped: compiled where it was built, else Python.

ops/README.md derives the backward pass and says why skipping is exact. The compiled kernel is csrc/hm_lstm.cpp, the
Python path python/; both take and return the same, and autograd.py puts either under autograd.
"""

from __future__ import annotations

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import detector
from ..autograd import Call, flat_output, run
from ..boundary import BOUNDARY_MODES
from ..capture import refuse_capture
from ..checks import check_detectors, check_layers, check_options, check_tensors
from ..precision import autocast_is_on
from ..types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions, without_padding
from . import kernel, python
from .loading import remedy


def hm_lstm_cpu(
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    options: RecurrenceOptions,
    valid: Optional[Tensor] = None,
    noise: Optional[Tensor] = None,
    recurrent_masks: Optional[Sequence[Tensor]] = None,
    tokens: Optional[Tensor] = None,
    skip: bool = True,
    path: Optional[str] = None,
) -> HMLSTMOutput:
    """Arguments, shapes and result: see `ops.hm_lstm`; float32 or float64.

    skip: False computes COPY steps and closed terms too (compiled: to the same bits); for tests and benchmarks.
    path: "compiled" or "python", None for the better one that is there.
    """
    path = _choose_path(path)
    if path == "compiled" and options.bfloat16_products and x.dtype != torch.float32:
        raise ValueError(f"bfloat16_products rounds float32 tensors, x is {x.dtype}: module.float(), or switch it off")
    if tokens is not None and (path == "python" or tokens.size(0) == 0):
        x, tokens = F.embedding(tokens, x), None
    if tokens is None and x.size(0) == 0:
        return HMLSTMOutput.empty(x, state)
    if path == "python":
        x = without_padding(x, valid)
    call = (_CompiledCall if path == "compiled" else _PythonCall)(len(layers), options, skip)
    return run(call, x, layers, state, valid, noise, recurrent_masks, tokens)


def _choose_path(path: Optional[str]) -> str:
    """The path that was asked for, or the better one that is there; ValueError for one that is not."""
    path = path or kernel.DEFAULT_PATH
    if path not in ("compiled", "python"):
        raise ValueError(f'path must be "compiled" or "python", not {path!r}')
    if path == "compiled" and kernel.compiled is None:
        raise ValueError(f"the compiled CPU kernel {kernel.MISSING}; to build it: {remedy()}")
    return path


class PackedLayers:
    """The layers' weights in the order that a path reads them, for many calls with unchanging weights.

    A step of generation is then `packed(x.unsqueeze(0), state, options)`. Keeps no graph. The weights must not change
    while this is used: a part of them is copied, the rest read where it is. path: as in `hm_lstm_cpu`. bfloat16: the
    compiled path packs them in bfloat16, and rounds what it multiplies them with, as with bfloat16_products.
    """

    def __init__(self, layers: Sequence[LayerParameters], path: Optional[str] = None, bfloat16: bool = False):
        check_layers(layers)
        self.layers = [LayerParameters._make(None if t is None else t.detach().contiguous() for t in p) for p in layers]
        self._weights = [list(layer) for layer in self.layers]
        self._compiled = _choose_path(path) == "compiled"
        self.bfloat16 = bfloat16 and self._compiled
        if self._compiled:
            self._packed = kernel.compiled.pack(self._weights, self.bfloat16)
        else:
            self._packed = python.pack(self.layers, reorder=True)

    def __deepcopy__(self, memo) -> PackedLayers:
        return self  # nothing in it changes

    @property
    def compiled_weights(self) -> Optional[tuple]:
        """The weights as they are and packed, for the compiled kernel's other entries; None on the Python path."""
        return (self._weights, self._packed) if self._compiled else None

    def project(self, x: Tensor) -> Tensor:
        """What layer 1 makes of x (..., input_size): its bottom-up product, and after it that of its detector's hidden
        layer of N units, 0 without one; (..., 4H+1+N). Of an embedding matrix: a table of rows."""
        with torch.autocast("cpu", enabled=False):
            x, weight = x.detach(), self.layers[0].weight_bottom_up
            if self.bfloat16:  # the gates' rows; the detector's stays as it is
                rows = x.reshape(-1, x.size(-1)).contiguous()
                gates = kernel.compiled.multiply(rows, False, weight[:-1], False, True)
                products = [gates.view(*x.shape[:-1], weight.size(0) - 1), F.linear(x, weight[-1:])]
            else:
                products = [F.linear(x, weight)]
            terms = detector.input_products(self.layers[0], x)
            return torch.cat(products if terms is None else [*products, terms], dim=-1)

    def __call__(
        self,
        x: Tensor,
        state: HMLSTMState,
        options: RecurrenceOptions,
        valid: Optional[Tensor] = None,
        projected: bool = False,
        tokens: Optional[Tensor] = None,
    ) -> HMLSTMOutput:
        """x: (T, B, input_size), or with tokens (T, B) the table (symbols, input_size) that they are rows of; with
        `projected` 4H+1+N in place of input_size, as `project` returns it. Otherwise as `hm_lstm`; RuntimeError while
        a graph is recorded."""
        refuse_capture("a step with packed weights")
        if autocast_is_on(x):
            x = x.to(self.layers[0].weight_recurrent.dtype)
            with torch.autocast("cpu", enabled=False):
                return self(x, state, options, valid, projected, tokens)
        options = options._replace(bfloat16_products=self.bfloat16)
        check_options(options, None)
        check_detectors(self.layers, options)
        check_tensors(x, self.layers, state, valid, None, None, tokens, projected)
        if tokens is not None and (not (self._compiled and tokens.size(0)) or self._copies(x, tokens, projected)):
            x, tokens = F.embedding(tokens, x), None
        if tokens is None and x.size(0) == 0:
            return HMLSTMOutput.empty(x, state)
        x, state = x.contiguous(), state.apply(Tensor.contiguous)
        valid, tokens = (None if t is None else t.contiguous() for t in (valid, tokens))
        if not self._compiled:
            return self._run_python(x, state, options, valid, projected)
        inputs = _inputs(x, self._weights, state, tokens, valid, None, None, options, True)
        product = x if projected else None
        hidden, h, c, *emitted, _ = kernel.compiled.forward(inputs, False, product, self._packed)
        return flat_output((*hidden, *h, *c, *emitted), len(self.layers))

    def _copies(self, table: Tensor, tokens: Tensor, projected: bool) -> bool:
        """Whether a call would copy more rows of the table than there are tokens: the compiled kernel normalises all of
        them, and has those of the hidden layer apart."""
        first = self.layers[0]
        return projected and (first.layer_norm or first.detector_units > 0) and tokens.numel() < table.size(0)

    @torch.no_grad()
    def _run_python(self, x, state, options, valid, projected) -> HMLSTMOutput:
        inputs = python.Inputs(x, tuple(self.layers), state, valid, None, None, options, True)
        return flat_output(python.forward(inputs, False, self._packed, projected)[0], len(self.layers))


def _inputs(x, weights, state, tokens, valid, noise, masks, options, skip):
    return kernel.compiled.Inputs(
        x,
        weights,
        list(state.h),
        list(state.c),
        state.z,
        tokens,
        valid,
        noise,
        masks,
        float(options.slope),
        BOUNDARY_MODES.index(options.boundary),
        bool(options.nested_boundaries),
        bool(options.top_boundary),
        float(options.detector_grad_scale),
        bool(skip),
        bool(options.bfloat16_products),
    )


class _CompiledCall(Call):
    def forward(self, tensors, training):
        inputs = _inputs(*self.split(tensors), self.options, self.skip)
        hidden, h, c, *emitted, saved = kernel.compiled.forward(inputs, training, None, None)
        return (*hidden, *h, *c, *emitted), saved

    def backward(self, tensors, saved, hidden, grads, need_x, need_weights):
        n = self.num_layers
        grads = [None if g is None else g.contiguous() for g in grads]
        of_states = grads[:n], grads[n : 2 * n], grads[2 * n : 3 * n]
        inputs = _inputs(*self.split(tensors), self.options, self.skip)
        dx, dz, dh, dc, dweights, du, z_before = kernel.compiled.backward(
            inputs, saved, list(hidden), *of_states, *grads[3 * n :], need_x, need_weights
        )
        if du is not None:
            self._differentiate_detectors(tensors, hidden, du, z_before, dweights)
        return [dx, dz, *dh, *dc, *(grad for layer in dweights for grad in layer)]

    def _differentiate_detectors(self, tensors, hidden, du, z_before, dweights):
        """Fill in the gradients of the detectors' hidden layers. du: (L, T, B), z_before: (T+1, L, B)."""
        x, weights, state, tokens, valid, _, masks = self.split(tensors)
        x = without_padding(x if tokens is None else F.embedding(tokens, x), valid)
        z_before = z_before.transpose(1, 2)
        for index, layer in enumerate(map(LayerParameters._make, weights)):
            if layer.detector_hidden is None:
                continue
            read, of_layer = detector.read_by(index, x, hidden, state.h, z_before, masks), du[index].flatten()
            steps = of_layer.nonzero().squeeze(1)  # none where the hard sigmoid is flat, and at padding
            if 4 * steps.numel() < 3 * of_layer.numel():
                read, of_layer = read.index_select(0, steps), of_layer.index_select(0, steps)
            found = detector.hidden_gradients(layer.detector_hidden, read, of_layer)
            dweights[index][-len(found) :] = found


class _PythonCall(Call):
    def inputs(self, tensors):
        x, weights, state, _, *rest = self.split(tensors)
        layers = tuple(map(LayerParameters._make, weights))
        return python.Inputs(x, layers, state, *rest, self.options, self.skip)

    def forward(self, tensors, training):
        with torch.no_grad():
            return python.forward(self.inputs(tensors), training)

    def backward(self, tensors, saved, hidden, grads, need_x, need_weights):
        return python.backward(self.inputs(tensors), saved, hidden, grads, need_x, need_weights)
