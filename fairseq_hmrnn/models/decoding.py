"""Decoding one symbol at a time: the state that a generation has reached, and the weights as it reads them.

Packed weights must never be older than the model. They live in fairseq's incremental state, which every call to a
generator makes anew and nobody keeps: training between two calls, `load_state_dict`, an average of weights, `.half()`
or a move to another device all come before the next packing, and every model of an ensemble has a state of its own.
Nothing tries to notice a change of weights: fairseq's optimizers write through `.data`, which leaves no trace.

Weights are packed as they are, or rounded to bfloat16, which halves what every step reads (`generate_in`).
"""

from __future__ import annotations

import contextlib
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modules.hooks import has_hooks, run_pre_hooks
from ..ops import HMLSTMOutput, HMLSTMState, PackedLayers, capturing, valid_or_none
from ..ops.cpu import kernel, remedy
from ..ops.cpu.generation import Generated, Generation, OutputParameters, SymbolChoice

# Up to this many symbols the table of their input projections is worth its memory: 4H+1+N numbers for each, N units of
# the detector's hidden layer.
TABLE_SYMBOLS = 2048
GENERATION_DTYPES = ("float32", "bfloat16")


class Step(NamedTuple):
    """features: h_e of the output module, (B, 1, output_dim). logits (B, 1, V). boundaries, boundary_probs (B, 1, L).
    state: what the recurrence has reached; the next step may change it in place."""

    features: Tensor
    logits: Tensor
    boundaries: Tensor
    boundary_probs: Tensor
    state: HMLSTMState


class Steps:
    """Single steps on any device, in any precision, with a graph if one is asked for, and with dropout: the mask on the
    recurrent product is the same at all steps."""

    def __init__(self, decoder, state: HMLSTMState):
        self.decoder, self.state, self.slope = decoder, state, decoder.slope_progress.slope
        self.masks = decoder.hm_lstm.draw_recurrent_masks(state.batch_size)

    def __call__(self, tokens: Tensor) -> Step:
        """tokens (B,); padding leaves its sample as it is."""
        valid = tokens.ne(self.decoder.padding_idx)
        output = self.recur(tokens, valid_or_none(valid))
        self.state = output.state
        features = self.decoder.dropout_output(self.features(output))
        logits = self.decoder.output_layer(features)
        tensors = features, logits, output.boundaries, output.boundary_probs
        return Step._make((*(tensor.unsqueeze(1) for tensor in tensors), output.state))

    def recur(self, tokens: Tensor, valid: Optional[Tensor]) -> HMLSTMOutput:
        """One step of the recurrence."""
        x = self.decoder.embed(tokens)
        return self.decoder.hm_lstm.step(x, self.state, valid, self.slope, recurrent_masks=self.masks)

    def features(self, output: HMLSTMOutput) -> Tensor:
        """The output module."""
        return self.decoder.layer_output(output.hidden)

    def reorder(self, order: Tensor) -> None:
        """Let row i go on from what was row order[i]."""
        self.state = self.state.reorder(order)
        if self.masks is not None:
            self.masks = tuple(mask.index_select(0, order) for mask in self.masks)


class PackedWeights:
    """The weights of a decoder as they are now, for steps of the CPU kernel but not its compiled generation. Copies
    share it."""

    def __init__(self, decoder, packed):
        self.packed, self.dtype, embedding = packed, packed_dtype(packed), decoder.input_table
        self.table = packed.project(embedding.to(self.dtype)) if embedding.size(0) <= TABLE_SYMBOLS else None
        self.output = tuple(weight.to(self.dtype) for weight in decoder.layer_output.layer_weights())

    def __deepcopy__(self, memo):
        return self


class PackedRecurrence:
    """`recur` of a decoder, of whole sequences without gradients, with weights that are packed once for many calls."""

    def __init__(self, decoder, weights: PackedWeights):
        self.decoder, self.weights = decoder, weights
        self.options = decoder.hm_lstm.options(float(decoder.slope_progress.slope))

    @torch.no_grad()
    def __call__(self, tokens: Tensor, state: HMLSTMState) -> Tuple[HMLSTMOutput, Tensor]:
        """The output for tokens (B, T), and a mask (B, T) that is true where a token is not padding."""
        valid, table = tokens.ne(self.decoder.padding_idx), self.weights.table
        x = self.decoder.input_table.detach().to(self.weights.dtype) if table is None else table
        options = {"valid": valid_or_none(valid.t()), "projected": table is not None, "tokens": tokens.t()}
        return self.weights.packed(x, state, self.options, **options), valid


class PackedSteps(Steps):
    """Single steps on CPU, without gradients, of models that the compiled generation does not take or where it was not
    built: packed weights, layer 1's input projection from a table, and for layers that COPY neither the recurrence nor
    the output module computes anything again."""

    def __init__(self, decoder, state: HMLSTMState, weights: PackedWeights):
        super().__init__(decoder, state)
        self.weights = weights
        # Every layer's term of the output module, from its current h; (B, L, output_size).
        self.terms = torch.stack([F.linear(h, weight) for h, weight in zip(state.h, weights.output)], dim=1)

    def recur(self, tokens, valid):
        packed, table, z_prev = self.weights.packed, self.weights.table, self.state.z
        x = self.decoder.embed(tokens).to(self.weights.dtype) if table is None else table.index_select(0, tokens)
        lstm = self.decoder.hm_lstm
        output = lstm.step(x, self.state, valid, self.slope, packed=packed, projected=table is not None)
        self._update_terms(output, z_prev)
        return output

    def features(self, output):
        return self.decoder.layer_output.combine(self.terms).to(self.decoder.embed_tokens.weight.dtype)

    def _update_terms(self, output: HMLSTMOutput, z_prev: Tensor) -> None:
        """Compute the terms of layers that did not COPY: z_prev or z_below is not 0 there, and always in layer 1."""
        first, *others = self.weights.output
        self.terms[:, 0] = F.linear(output.hidden[0], first)
        changed = (z_prev[:, 1:] + output.boundaries[:, :-1]).ne(0)
        for index, (weight, column) in enumerate(zip(others, changed.unbind(1)), 1):
            rows = column.nonzero().squeeze(1)
            if rows.numel():
                self.terms[rows, index] = F.linear(output.hidden[index].index_select(0, rows), weight)

    def reorder(self, order):
        self.state = self.state.reorder(order)
        self.terms = self.terms.index_select(0, order)


class CompiledSteps:
    """Steps of the compiled kernel, on CPU, without gradients: one call for a step, or for many."""

    def __init__(self, generation: Generation, state: HMLSTMState):
        self.generation, self.reached = generation, generation.begin(state)

    @property
    def state(self) -> HMLSTMState:
        """The state of the recurrence, changed in place by every step."""
        return self.reached.state

    def __call__(self, tokens: Tensor) -> Step:
        """As Steps."""
        found = self.generation.run(self.reached, tokens.unsqueeze(0))
        tensors = found.features, found.logits, found.boundaries, found.boundary_probs
        return Step._make((*(tensor.transpose(0, 1) for tensor in tensors), self.state))

    def read(self, tokens: Tensor) -> Generated:
        """Steps over tokens (T, B)."""
        return self.generation.run(self.reached, tokens)

    def sample(self, tokens: Tensor, choices: int, choice: SymbolChoice) -> Generated:
        """Steps over tokens (T', B), and over what is chosen after them."""
        return self.generation.sample(self.reached, tokens, choices, choice)

    def reorder(self, order: Tensor) -> None:
        """As Steps."""
        self.reached = self.reached.reorder(order)


def _reads_weights(decoder) -> bool:
    """Whether steps read the decoder's own weights: they have a graph, dropout or hooks of the embedding behind them,
    or are recorded."""
    own = decoder.training or decoder.is_stochastic or torch.is_grad_enabled() or capturing()
    return own or has_hooks(decoder.embed_tokens)


def generate_in(models: Sequence, dtype: str) -> None:
    """Have the steps of these models' decoders be computed in one of GENERATION_DTYPES. float32: as the weights are.
    bfloat16: weights of products rounded to it, and what they are multiplied with; sums and states are float32.

    ValueError for models that have no such steps, or without the compiled kernel.
    """
    if dtype not in GENERATION_DTYPES:
        raise ValueError(f"unknown dtype {dtype!r} of generation: choose from {', '.join(GENERATION_DTYPES)}")
    decoders = [model.decoder for model in models]
    if dtype == "bfloat16":
        if not all(hasattr(decoder, "generation_dtype") for decoder in decoders):
            raise ValueError("generation in bfloat16 requires HM-LSTM language models: leave it at float32")
        if kernel.compiled is None:
            raise ValueError(
                f"generation in bfloat16 requires the compiled CPU kernel, which {kernel.MISSING}: leave it at "
                f"float32, or build the kernel: {remedy()}"
            )
    for decoder in decoders:
        if hasattr(decoder, "generation_dtype"):
            decoder.generation_dtype = dtype


def packed_dtype(packed: PackedLayers) -> torch.dtype:
    """The dtype of the tensors that a step with these weights takes and returns."""
    return packed.layers[0].weight_recurrent.dtype


def _pack(decoder) -> Optional[PackedLayers]:
    """The recurrence's weights as the decoder is to read them; None for its own. ValueError where generation is to be
    in bfloat16 and cannot be."""
    own = _reads_weights(decoder)
    if decoder.generation_dtype != "bfloat16":
        return None if own else _pack_as_trained(decoder)
    if own:
        raise ValueError("generation in bfloat16 is without gradients, dropout and hooks: leave it at float32 for them")
    packed = decoder.hm_lstm.pack(bfloat16=True)
    if packed is None or not packed.bfloat16:
        where = f"backend {decoder.hm_lstm.backend} on {decoder.embed_tokens.weight.device.type}"
        raise ValueError(f"generation in bfloat16 is by the compiled CPU kernel, not {where}: leave it at float32")
    return packed


def _pack_as_trained(decoder) -> Optional[PackedLayers]:
    """For products in the precision of training."""
    return decoder.hm_lstm.pack(decoder.hm_lstm.bfloat16_products and kernel.compiled is not None)


@torch.no_grad()
def recurrence(decoder) -> Callable[[Tensor, HMLSTMState], Tuple[HMLSTMOutput, Tensor]]:
    """`recur` of a decoder in evaluation, for many calls between which its weights do not change: packed once, where
    the CPU kernel runs it."""
    packed = None if _reads_weights(decoder) else _pack_as_trained(decoder)
    return decoder.recur if packed is None else PackedRecurrence(decoder, PackedWeights(decoder, packed))


def freeze(decoder):
    """The weights of a decoder as they are now, in the form in which steps read them: a Generation, PackedWeights, or
    None where steps read the decoder's own. decoder: as for `begin`. ValueError: see `generate_in`."""
    packed = _pack(decoder)
    if packed is None:
        return None
    if packed.compiled_weights is None or decoder.output_projection is None:  # an adaptive softmax is not compiled
        return PackedWeights(decoder, packed)
    softmax, embedding, dtype = decoder.output_projection, decoder.input_table, packed_dtype(packed)
    run_pre_hooks(softmax)
    output = [*decoder.layer_output.layer_weights(), softmax.weight, softmax.bias]
    *layers, weight, bias = (tensor.to(dtype) for tensor in output)
    return Generation(
        packed,
        decoder.hm_lstm.options(decoder.slope_progress.slope),
        embedding.to(dtype),
        embedding.size(0) <= TABLE_SYMBOLS,
        OutputParameters(tuple(layers), weight, bias),
        decoder.padding_idx,
    )


def begin(decoder, state: HMLSTMState, weights=None):
    """The steps of one generation from `state` on, packed if they can be.

    decoder: an HMLSTMDecoder. weights: of `freeze`; None: as they are now.
    """
    weights = freeze(decoder) if weights is None else weights
    if isinstance(weights, Generation):
        return CompiledSteps(weights, state.to(weights.output.weight))
    return Steps(decoder, state) if weights is None else PackedSteps(decoder, state.to(weights.output[0]), weights)


class FrozenWeights:
    """Lets the generations of one decoder share packed weights for as long as its owner says that they do not change.

    Nobody else can say so: outside of `shared`, every generation packs anew.
    """

    def __init__(self):
        self._depth, self._weights = 0, None

    def __reduce__(self):
        return FrozenWeights, ()  # a copy of the decoder belongs to nobody who says so

    @contextlib.contextmanager
    def shared(self):
        """Within this context the decoder's weights do not change."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._weights = None

    def of(self, decoder):
        """As `freeze`."""
        if not self._depth or _reads_weights(decoder):
            return freeze(decoder)
        if self._weights is None:
            self._weights = freeze(decoder)
        return self._weights
