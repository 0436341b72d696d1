"""A long sequence in chunks, of which the backward pass computes one after the other once more.

What a kernel keeps for its backward pass grows with the steps of one call. In chunks only the states between them are
kept, and one chunk's rest at a time: more time for less memory, and the same numbers, for every kernel alike.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from .autograd import CONSTANTS, Call, run
from .types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions


class _RecomputedCall(Call):
    """One chunk, computed by `compute` (as `ops.hm_lstm`, without the backend) forward and again backward."""

    keeps_hidden = False

    def __init__(self, num_layers: int, options: RecurrenceOptions, compute: Callable[..., HMLSTMOutput]):
        super().__init__(num_layers, options, skip=True)
        self.compute = compute

    def results(self, tensors):
        x, weights, state, tokens, valid, noise, masks = self.split(tensors)
        layers = [LayerParameters(*layer) for layer in weights]
        output = self.compute(x, layers, state, self.options, valid, noise, masks, **with_tokens(tokens))
        return (*output.hidden, *output.state.h, *output.state.c, output.boundaries, output.boundary_probs,
                output.state.z)  # fmt: skip

    def forward(self, tensors, training):
        with torch.no_grad():
            return self.results(tensors), None

    def backward(self, tensors, kept, hidden, grads, need_x, need_weights):
        count = CONSTANTS + self.num_layers  # constants come first, then x, the state, the weights
        given = [None if t is None else t.detach() for t in tensors[count:]]
        state_end = 2 + 2 * self.num_layers
        for index, tensor in enumerate(given):
            needed = need_x if index == 0 else index < state_end or need_weights
            if tensor is not None and needed:
                tensor.requires_grad_()
        with torch.enable_grad():
            results = self.results([*tensors[:count], *given])
        known = [index for index, result in enumerate(results) if grads[index] is not None and result.requires_grad]
        leaves = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
        found = iter(
            torch.autograd.grad(
                [results[index] for index in known], leaves, [grads[index] for index in known], allow_unused=True
            )
        )
        return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in given]


def with_tokens(tokens: Optional[Tensor]) -> dict:
    """The argument `tokens` where there are any: not every kernel takes it."""
    return {} if tokens is None else {"tokens": tokens}


def in_chunks(
    compute: Callable[..., HMLSTMOutput],
    chunks: int,
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    options: RecurrenceOptions,
    valid: Optional[Tensor] = None,
    noise: Optional[Tensor] = None,
    recurrent_masks: Optional[Sequence[Tensor]] = None,
    tokens: Optional[Tensor] = None,
) -> HMLSTMOutput:
    """The result of `compute` for the rest of the arguments (see `ops.hm_lstm`), the T steps in `chunks` pieces.

    The same numbers as in one call, to rounding: products over time and the weights' gradients are summed by chunk.
    """
    steps = (x if tokens is None else tokens).size(0)
    size = -(-steps // chunks)
    outputs = []
    for first in range(0, steps, size):
        here = slice(first, first + size)
        valid_piece, noise_piece, tokens_piece = (None if t is None else t[here] for t in (valid, noise, tokens))
        piece = x[here] if tokens is None else x
        call = _RecomputedCall(len(layers), options, compute)
        outputs.append(run(call, piece, layers, state, valid_piece, noise_piece, recurrent_masks, tokens_piece))
        state = outputs[-1].state
    hidden = tuple(torch.cat(parts) for parts in zip(*(output.hidden for output in outputs)))
    boundaries, probs = (torch.cat([getattr(o, name) for o in outputs]) for name in ("boundaries", "boundary_probs"))
    return HMLSTMOutput(hidden, boundaries, probs, state)
