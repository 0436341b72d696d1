"""A recurrence whose gradients are written by hand, under autograd: one Function for all kernels."""

from __future__ import annotations

import abc
import itertools
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .differentiation import once_differentiable, refuse_transforms
from .types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions

CONSTANTS = 3  # arguments of a call before the masks: tokens, valid, noise


def flat_output(results: Sequence[Tensor], n: int) -> HMLSTMOutput:
    """From the flat results of a call over n layers."""
    hidden, h, c, (boundaries, probs, z) = results[:n], results[n : 2 * n], results[2 * n : 3 * n], results[3 * n :]
    return HMLSTMOutput(tuple(hidden), boundaries, probs, HMLSTMState(tuple(h), tuple(c), z))


class Call(abc.ABC):
    """The constants of one call, and the order of its flat lists of tensors.

    Arguments: tokens, valid, noise, masks of every layer; x, z, h and c of every layer, LayerParameters of every layer.
    Results: hidden, h and c of every layer, boundaries, boundary_probs, z.
    """

    FIELDS = len(LayerParameters._fields)
    keeps_hidden = True  # the backward pass reads `hidden`

    def __init__(self, num_layers: int, options: RecurrenceOptions, skip: bool):
        self.num_layers, self.options, self.skip = num_layers, options, skip

    @abc.abstractmethod
    def forward(self, tensors: Sequence[Optional[Tensor]], training: bool) -> Tuple[Tuple[Tensor, ...], Any]:
        """The flat results of the flat arguments, and in training what the backward pass needs: a list of tensors or
        None, which autograd keeps, or an object."""

    @abc.abstractmethod
    def backward(
        self,
        tensors: Sequence[Optional[Tensor]],
        saved: Any,
        hidden: Sequence[Tensor],
        grads: Sequence[Optional[Tensor]],
        need_x: bool,
        need_weights: bool,
    ) -> List[Optional[Tensor]]:
        """The gradients of x, z, h, c and the weights, flat, from those of the flat results."""

    def split(self, tensors: Sequence[Any]):
        """The flat arguments as x, weights per layer, state, tokens, valid, noise, masks."""
        n = self.num_layers
        tokens, valid, noise, *rest = tensors
        masks, (x, z), rest = rest[:n], rest[n : n + 2], rest[n + 2 :]
        weights = [list(rest[i : i + self.FIELDS]) for i in range(2 * n, len(rest), self.FIELDS)]
        state = HMLSTMState(tuple(rest[:n]), tuple(rest[n : 2 * n]), z)
        return x, weights, state, tokens, valid, noise, None if masks[0] is None else list(masks)

    def output(self, results: Sequence[Tensor]) -> HMLSTMOutput:
        return flat_output(results, self.num_layers)


class Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: Call, *tensors: Optional[Tensor]):
        results, kept = call.forward(tensors, training=True)
        kept, ctx.kept = (kept, None) if isinstance(kept, list) else ((), kept)
        hidden = results[: call.num_layers] if call.keeps_hidden else ()
        ctx.call, ctx.counts = call, (len(tensors), len(hidden), len(kept))
        ctx.set_materialize_grads(False)
        # Tensors go through save_for_backward: it notices when one of them is overwritten, keeps no cycle alive, and
        # lets activation checkpointing and hooks on saved tensors do their work. An object must hold no result itself.
        ctx.save_for_backward(*tensors, *hidden, *kept)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, *grads: Optional[Tensor]):
        call, count = ctx.call, CONSTANTS + ctx.call.num_layers
        parts = iter(saved)
        tensors, hidden, kept = (list(itertools.islice(parts, count)) for count in ctx.counts)
        needed = ctx.needs_input_grad[1 + count :]
        need_weights = any(needed[2 + 2 * call.num_layers :])
        found = call.backward(tensors, kept or ctx.kept, hidden, grads, needed[0], need_weights)
        return (None, *[None] * count, *(grad if need else None for grad, need in zip(found, needed)))


def run(
    call: Call,
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    valid: Optional[Tensor] = None,
    noise: Optional[Tensor] = None,
    recurrent_masks: Optional[Sequence[Tensor]] = None,
    tokens: Optional[Tensor] = None,
) -> HMLSTMOutput:
    """Make the arguments contiguous and call, under autograd where a gradient is asked for."""
    given: List[Optional[Tensor]] = [x, state.z, *state.h, *state.c, *(tensor for layer in layers for tensor in layer)]
    masks: Sequence[Optional[Tensor]] = recurrent_masks or [None] * len(layers)
    constants: List[Optional[Tensor]] = [tokens, valid, noise, *masks]
    given = [None if t is None else t.contiguous() for t in given]
    refuse_transforms(given)
    if any(mask is not None and mask.requires_grad for mask in (noise, *masks)):
        raise ValueError("noise and recurrent_masks that require a gradient are for HMLSTM(backend='reference')")
    constants = [None if t is None else t.detach().contiguous() for t in constants]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return call.output(Recurrence.apply(call, *constants, *given))
    return call.output(call.forward([*constants, *given], training=False)[0])
