"""Generation by the compiled kernel: symbols in, logits out and, where asked for, the next symbols chosen in between.

One call takes any number of steps (csrc/generation.h). recurrence.py has the recurrence alone; models/decoding.py
chooses.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boundary import BOUNDARY_MODES
from ..capture import refuse_capture
from ..checks import check_detectors
from ..types import HMLSTMState, RecurrenceOptions
from . import kernel
from .recurrence import PackedLayers


class OutputParameters(NamedTuple):
    """Weights of the gated output module, eq. (7) and (8) of ops/README.md, and of the softmax layer after it.

    layers: per layer (E + L, H_l), W_e[l] and below it the layer's columns in all gates, as LayerOutput.layer_weights
    returns them. weight: (V, E). bias: (V,).
    """

    layers: Tuple[Tensor, ...]
    weight: Tensor
    bias: Tensor


class GenerationState(NamedTuple):
    """The state of a generation. Every call changes these tensors in place.

    state: of the recurrence. terms: (B, L, E + L), products of each layer's h with its output weights. copy_u: (B, L),
    the detector's u of the run of COPY steps that lasts, NaN where none does.
    """

    state: HMLSTMState
    terms: Tensor
    copy_u: Tensor

    def reorder(self, order: Tensor) -> GenerationState:
        """Row i goes on from what was row order[i]."""
        rest = self.terms.index_select(0, order), self.copy_u.index_select(0, order)
        return GenerationState(self.state.reorder(order), *rest)


class SymbolChoice(NamedTuple):
    """How the next symbol is chosen; inference/sampler.py explains the options.

    never: (V,) bool, symbols that are not chosen. noise: (T, B, V) float32 of the Gumbel distribution, for the choices
    of one call; None: always the most probable symbol.
    """

    temperature: float
    top_k: int
    top_p: float
    never: Tensor
    noise: Optional[Tensor]


class Generated(NamedTuple):
    """logits (T, B, V), features: h_e of eq. (8), (T, B, E), boundaries and boundary_probs (T, B, L) of all steps.
    chosen: (T'', B), the symbol after the last given step and each one after it; None without a choice."""

    logits: Tensor
    features: Tensor
    boundaries: Tensor
    boundary_probs: Tensor
    chosen: Optional[Tensor]


class Generation:
    """The weights of a language model, laid out for steps. The model must not change while this is used: a part of its
    weights is copied here, the rest is read where it is.

    layers: packed by the compiled path. embedding: (symbols, input_size). table: whether layer 1's input projection of
    every symbol is computed now, (symbols, 4H+1+N) numbers. pad: the symbol at which a sample waits. Copies share it.
    """

    def __init__(
        self,
        layers: PackedLayers,
        options: RecurrenceOptions,
        embedding: Tensor,
        table: bool,
        output: OutputParameters,
        pad: int,
    ):
        check_detectors(layers.layers, options)
        self.output = OutputParameters(tuple(map(_frozen, output.layers)), _frozen(output.weight), _frozen(output.bias))
        if layers.compiled_weights is None:
            raise ValueError("the layers are packed for the Python path: generation is for the compiled one")
        self.compiled = kernel.compiled.Generation(
            *layers.compiled_weights,
            layers.project(embedding) if table else _frozen(embedding),
            table,
            list(self.output.layers),
            self.output.weight,
            self.output.bias,
            float(options.slope),
            BOUNDARY_MODES.index(options.boundary),
            bool(options.nested_boundaries),
            bool(options.top_boundary),
            pad,
        )

    def __deepcopy__(self, memo):
        return self

    def begin(self, state: HMLSTMState) -> GenerationState:
        """Where a generation stands that starts from `state`, of which it takes a copy. ValueError for other layers."""
        sizes = tuple(weight.size(1) for weight in self.output.layers)
        if state.hidden_sizes != sizes:
            raise ValueError(f"a state of layers {list(state.hidden_sizes)} does not fit a model of {list(sizes)}")
        with torch.autocast("cpu", enabled=False):
            terms = [F.linear(h, weight) for h, weight in zip(state.h, self.output.layers)]
        return GenerationState(
            state.apply(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format)),
            torch.stack(terms, dim=1).detach(),
            torch.full_like(state.z, float("nan")),
        )

    def run(self, reached: GenerationState, tokens: Tensor) -> Generated:
        """Read tokens (T, B). ValueError for another batch than was begun with."""
        _check_batch(reached, tokens)
        return Generated(*self.compiled.run(*_flat(reached), tokens.long().contiguous(), tokens.size(0)))

    def sample(self, reached: GenerationState, tokens: Tensor, choices: int, choice: SymbolChoice) -> Generated:
        """Read tokens (T', B), at least one step of them, and what is chosen after them. The last choice is not read
        yet: T = T' + choices - 1. ValueError for no step, for another batch than was begun with, or where logits are
        NaN."""
        _check_batch(reached, tokens)
        if not tokens.size(0):
            raise ValueError("there is nothing to choose after: give at least one step, such as the begin symbol")
        if choice.never.numel() != self.output.weight.size(0):
            raise ValueError(f"never has {choice.never.numel()} symbols, the model {self.output.weight.size(0)}")
        given = tokens.size(0)
        tokens = F.pad(tokens.long(), (0, 0, 0, choices - 1)).contiguous()
        noise = None if choice.noise is None else choice.noise.contiguous()
        found = Generated(*self.compiled.sample(*_flat(reached), tokens, given, *choice[:-1], noise))
        check_numbers(found.logits)
        return found


def check_numbers(logits: Tensor) -> None:
    """ValueError for NaN, of which no symbol can be chosen."""
    if logits.isnan().any():
        raise ValueError("the model's predictions are not numbers (NaN): its training has diverged")


def _check_batch(reached: GenerationState, tokens: Tensor) -> None:
    refuse_capture("a generation that has begun")
    if tokens.dim() != 2 or tokens.size(1) != reached.state.batch_size:
        raise ValueError(f"tokens {tuple(tokens.shape)} do not fit: (T, {reached.state.batch_size}) were begun with")


def _frozen(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def _flat(reached: GenerationState):
    state = reached.state
    return list(state.h), list(state.c), state.z, reached.terms, reached.copy_u
