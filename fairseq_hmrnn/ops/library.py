"""The recurrence as an operator of torch.library: what a recorded graph calls, with whichever kernel runs it then.

Eager calls do not come here: a custom operator costs more per call than a single step has to spare. The backward pass
of a recorded call keeps its arguments alone and computes the forward pass once more, as `recompute` does, so that the
operator is the same for every kernel, whatever each of them keeps.
"""

from __future__ import annotations

import contextlib
from typing import Callable, List, Optional, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree

from .autograd import flat_output
from .checks import check_options
from .types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions, count_detectors

ARGUMENTS = (
    "Tensor x, Tensor[] weights, Tensor[] h, Tensor[] c, Tensor z, Tensor? valid, Tensor? noise, "
    "Tensor[] recurrent_masks, Tensor slope, str boundary, bool nested_boundaries, bool top_boundary, "
    "float detector_grad_scale, bool bfloat16_products, str backend, int recompute_chunks"
)


class Arguments:
    """The operator's flat arguments, and the arguments of `ops.hm_lstm.compute` that they are."""

    def __init__(self, x, weights, h, c, z, valid, noise, recurrent_masks, slope, *constants):
        self.tensors = (x, weights, h, c, z, valid, noise, recurrent_masks, slope)
        self.constants = constants

    @classmethod
    def of(cls, x, layers, state, options, valid, noise, recurrent_masks, backend, recompute_chunks) -> Arguments:
        weights = [tensor for layer in layers for tensor in layer if tensor is not None]
        slope, *options = options
        if not isinstance(slope, Tensor):
            slope = torch.full((), slope, dtype=torch.float64)
        tensors = (x, weights, list(state.h), list(state.c), state.z, valid, noise, list(recurrent_masks or ()), slope)
        return cls(*tensors, *options, backend, recompute_chunks)

    @property
    def flat(self) -> tuple:
        return (*self.tensors, *self.constants)

    @property
    def leaves(self) -> List[Tensor]:
        """The tensors that may have a gradient: x, z, h, c and the weights."""
        x, weights, h, c, z, *_ = self.tensors
        return [x, z, *h, *c, *weights]

    def with_leaves(self, leaves: Sequence[Tensor]) -> Arguments:
        n = len(self.tensors[2])
        x, z, *rest = leaves
        return Arguments(x, rest[2 * n :], rest[:n], rest[n : 2 * n], z, *self.tensors[5:], *self.constants)

    def call(self, compute: Callable[..., HMLSTMOutput]) -> List[Tensor]:
        """`compute` of them: the flat, contiguous results, none of which is an argument."""
        x, weights, h, c, z, valid, noise, masks, slope = self.tensors
        *options, backend, chunks = self.constants
        options = RecurrenceOptions(float(slope), *options)
        check_options(options, noise)  # of a graph's slope nothing was known before
        state = HMLSTMState(tuple(h), tuple(c), z)
        layers = _layers(weights, len(h), options)
        # Autocast has been applied before: where the graph runs, it may be on again.
        with torch.autocast(x.device.type, enabled=False):
            output = compute(x, layers, state, options, valid, noise, tuple(masks) or None, backend, chunks)
        after = output.state
        results = [*output.hidden, *after.h, *after.c, output.boundaries, output.boundary_probs, after.z]
        if x.size(0) == 0:  # over no steps the state is the one given
            results = [tensor.clone() for tensor in results]
        return [tensor.contiguous() for tensor in results]


def _layers(weights: Sequence[Tensor], num_layers: int, options: RecurrenceOptions) -> List[LayerParameters]:
    """The layers of a flat list of their weights, absent ones left out: their number says which are there."""
    detectors = count_detectors(num_layers, options.top_boundary)
    gains, hidden = 3 * num_layers - 1, 3 * detectors
    rest = len(weights) - (4 * num_layers - 1)
    layer_norm, has_hidden = rest in (gains, gains + hidden), rest in (hidden, gains + hidden)
    tensors, layers = iter(weights), []
    for index in range(num_layers):
        absent = set() if layer_norm else {"gain_recurrent", "gain_bottom_up", "gain_top_down"}
        if index == num_layers - 1:
            absent |= {"weight_top_down", "gain_top_down"}
        if not has_hidden or index >= detectors:
            absent |= {"detector_hidden_weight", "detector_hidden_bias", "detector_output"}
        layers.append(LayerParameters._make(None if f in absent else next(tensors) for f in LayerParameters._fields))
    return layers


@contextlib.contextmanager
def _graph_within_operator():
    """Within an operator torch records no graph, even where gradients are enabled: here it does."""
    keys = torch._C.DispatchKey
    with torch._C._SetExcludeDispatchKeyGuard(keys.AutogradFunctionality, False):
        with torch._C._SetExcludeDispatchKeyGuard(keys.ADInplaceOrView, False), torch.enable_grad():
            yield


def _gradients(compute, grads: Sequence[Tensor], needed: Sequence[bool], arguments: Arguments) -> List[Tensor]:
    """Gradients of the leaves that require one, from the gradients of all flat results."""
    leaves = [leaf.detach().requires_grad_(need) for leaf, need in zip(arguments.leaves, needed)]
    targets = [leaf for leaf in leaves if leaf.requires_grad]
    with _graph_within_operator():
        results = arguments.with_leaves(leaves).call(compute)
        known = [(result, grad) for result, grad in zip(results, grads) if result.requires_grad]
        if not known:  # over no steps the weights reach nothing
            return [torch.zeros_like(target) for target in targets]
        outputs, grads = zip(*known)
        found = torch.autograd.grad(outputs, targets, grads, allow_unused=True)
    # Cloned, for over no steps the gradient of a state is the gradient given.
    return [torch.zeros_like(t) if g is None else g.clone(memory_format=torch.contiguous_format)
            for t, g in zip(targets, found)]  # fmt: skip


def _empty(arguments: Arguments) -> List[Tensor]:
    """The results' shapes and dtypes."""
    x, _, h, c, z, *_ = arguments.tensors
    hidden = [x.new_empty(x.size(0), x.size(1), tensor.size(1)) for tensor in h]
    boundaries, probs = (z.new_empty(x.size(0), x.size(1), len(h)) for _ in range(2))
    return [*hidden, *(tensor.new_empty(tensor.shape) for tensor in (*h, *c)), boundaries, probs, z.new_empty(z.shape)]


def make_recordable(structure: type) -> None:
    """Let torch.export.save and load handle a NamedTuple, where this torch has them."""
    if hasattr(torch.library, "custom_op"):
        torch.serialization.add_safe_globals([structure])
        _pytree._register_namedtuple(structure, serialized_type_name=f"fairseq_hmrnn.{structure.__name__}")


def register(compute: Callable[..., HMLSTMOutput]) -> Optional[Callable[..., HMLSTMOutput]]:
    """Register the operator, and return a function with the signature of `compute`, the recurrence once its arguments
    are checked, that calls it. None where this torch has no custom operators (before 2.4)."""
    if not hasattr(torch.library, "custom_op"):
        return None
    make_recordable(HMLSTMState)
    make_recordable(HMLSTMOutput)

    @torch.library.custom_op("fairseq_hmrnn::recurrence", mutates_args=(), schema=f"({ARGUMENTS}) -> Tensor[]")
    def operator(*arguments):
        with torch.no_grad():
            return Arguments(*arguments).call(compute)

    @torch.library.custom_op(
        "fairseq_hmrnn::recurrence_backward",
        mutates_args=(),
        schema=f"(Tensor[] grads, bool[] needed, {ARGUMENTS}) -> Tensor[]",
    )
    def backward_operator(grads, needed, *arguments):
        return _gradients(compute, grads, needed, Arguments(*arguments))

    @operator.register_fake
    def _(*arguments):
        return _empty(Arguments(*arguments))

    @backward_operator.register_fake
    def _(grads, needed, *arguments):
        return [t.new_empty(t.shape) for t, need in zip(Arguments(*arguments).leaves, needed) if need]

    operator.register_autograd(_backward, setup_context=_keep)

    def run(x, layers, state, options, valid, noise, recurrent_masks, backend, recompute_chunks) -> HMLSTMOutput:
        arguments = Arguments.of(x, layers, state, options, valid, noise, recurrent_masks, backend, recompute_chunks)
        return flat_output(torch.ops.fairseq_hmrnn.recurrence(*arguments.flat), len(layers))

    return run


def _keep(ctx, inputs, output) -> None:
    x, weights, h, c, z, valid, noise, masks, slope, *ctx.constants = inputs
    ctx.num_layers, ctx.num_weights = len(h), len(weights)
    ctx.save_for_backward(x, z, valid, noise, slope, *h, *c, *masks, *weights)


def _backward(ctx, grads):
    n, saved = ctx.num_layers, ctx.saved_tensors
    x, z, valid, noise, slope, *rest = saved
    states, rest = rest[: 2 * n], rest[2 * n :]
    masks, weights = rest[: len(rest) - ctx.num_weights], rest[len(rest) - ctx.num_weights :]
    arguments = Arguments(x, weights, states[:n], states[n:], z, valid, noise, masks, slope, *ctx.constants)
    need_x, need_weights, need_h, need_c, need_z, *_ = ctx.needs_input_grad
    needed = [need_x, need_z, *need_h, *need_c, *need_weights]
    found = iter(torch.ops.fairseq_hmrnn.recurrence_backward(grads, needed, *arguments.flat))
    dx, dz, *rest = [next(found) if need else None for need in needed]
    dh, dc, dweights = rest[:n], rest[n : 2 * n], rest[2 * n :]
    return (dx, dweights, dh, dc, dz, None, None, [None] * len(masks), None, *[None] * len(ctx.constants))
