"""HM-LSTM as a fairseq decoder of a language model."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..modules import LayerOutput
from ..modules.hooks import has_hooks
from ..ops import HMLSTMOutput, HMLSTMState, capturing, is_on_host, make_recordable, valid_or_none
from ..trace import KEY, BoundaryTrace
from . import decoding
from .config import HMLSTMLanguageModelConfig
from .dropout import drops_out
from .recurrent_decoder import RecurrentDecoder

make_recordable(BoundaryTrace)


class HMLSTMDecoder(RecurrentDecoder):
    """The language model: embedding, HM-LSTM over the prefix, gated output module, softmax; and its generation one
    symbol at a time, see decoding.py. Arguments: RecurrentDecoder's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frozen_weights = decoding.FrozenWeights()
        self.generation_dtype = "float32"  # see decoding.generate_in

    def add_output_module(self, cfg: HMLSTMLanguageModelConfig) -> None:
        self.layer_output = LayerOutput(self.hm_lstm.hidden_sizes, cfg.output_dim, self.hm_lstm.bfloat16_products)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out=None,
        incremental_state=None,
        src_lengths: Optional[Tensor] = None,
        state: Optional[HMLSTMState] = None,
    ):
        """Predict the symbol after each of prev_output_tokens (B, T); pad symbols, on either side, change nothing.

        incremental_state: fairseq's cache; with it only the last symbol is read, weights are those of the first such
        call (see decoding.py), and the state returned changes in place with the cache. state: of the
        recurrence before the first symbol, zeros if None. Returns logits (B, T, V) and fairseq's dictionary, with the
        batch's BoundaryTrace as `trace` and the state reached as `state`.
        """
        if incremental_state is not None:
            _, logits, extra = self._step(prev_output_tokens[:, -1:], incremental_state, state)
            return logits, extra
        features, extra = self.extract_features(prev_output_tokens, encoder_out, state=state)
        return self.output_layer(features), extra

    def extract_features(
        self, prev_output_tokens, encoder_out=None, incremental_state=None, src_lengths=None, state=None
    ):
        """As `forward`, with the output module's embedding (B, T, output_dim) in place of logits."""
        if incremental_state is not None:
            features, _, extra = self._step(prev_output_tokens[:, -1:], incremental_state, state)
            return features, extra
        state = self.hm_lstm.zero_state(prev_output_tokens.size(0)) if state is None else state
        # The CPU kernel's h is float32: rounded it would only be widened again.
        wide = state.z.dtype if is_on_host(prev_output_tokens) else None
        output, valid = self.recur(prev_output_tokens, state, wide)
        changed = None if capturing() else output.changed(state, valid.t())
        features = self.layer_output.over_sequence(output.hidden, changed).transpose(0, 1)
        return self.dropout_output(features), self._extra(self.trace_of_output(output, valid), output.state)

    def recur(
        self, tokens: Tensor, state: Optional[HMLSTMState] = None, hidden_dtype: Optional[torch.dtype] = None
    ) -> Tuple[HMLSTMOutput, Tensor]:
        """The recurrence over tokens (B, T) from `state` on, time-major, and which of them are not padding (B, T).
        hidden_dtype: as in HMLSTM."""
        valid = tokens.ne(self.padding_idx)
        valid_steps, slope, table = valid_or_none(valid.t()), self.slope_progress.slope, self.input_table
        many = not capturing() and table.size(0) < tokens.numel()
        by_rows = many and not drops_out(self.dropout_input) and not has_hooks(self.embed_tokens)
        given = table if by_rows else self.embed(tokens).transpose(0, 1)
        rows = tokens.t().long().contiguous() if by_rows else None
        return self.hm_lstm(given, state, valid_steps, slope, tokens=rows, hidden_dtype=hidden_dtype), valid

    @property
    def is_stochastic(self) -> bool:
        """Whether a call is random: in training, and with --retain-dropout."""
        return any(map(drops_out, (self.dropout_input, self.dropout_recurrent, self.dropout_output)))

    def _step(self, tokens: Tensor, incremental_state, state: Optional[HMLSTMState]):
        """One step of the generation that incremental_state holds, tokens (B, 1); `state` is where a new one starts.
        Features, logits and what else `forward` returns."""
        steps = self._steps(incremental_state)
        if steps is None:
            steps = self.begin_generation(tokens.size(0), state)
            self.set_incremental_state(incremental_state, "generation", {"steps": steps})
        step = steps(tokens[:, 0])
        trace = self.trace(step.boundaries, step.boundary_probs, tokens.ne(self.padding_idx))
        return step.features, step.logits, self._extra(trace, step.state)

    def begin_generation(self, batch_size: int, state: Optional[HMLSTMState] = None):
        """Steps from `state` on, zeros if None, as `decoding.begin` makes them: with the weights as they are now."""
        state = self.hm_lstm.zero_state(batch_size) if state is None else state
        return decoding.begin(self, state, self.frozen_weights.of(self))

    def _extra(self, trace: BoundaryTrace, state: HMLSTMState):
        return {"attn": None, KEY: trace, "state": state}

    def predict(self, features: Tensor) -> Tensor:
        """features (..., output_dim) to logits, or with an adaptive softmax log-probabilities, (..., V): the softmax
        of either is the model's distribution."""
        if self.adaptive_softmax is None:
            return self.output_layer(features)
        flat = features.reshape(1, -1, features.size(-1))
        return self.adaptive_softmax.get_log_prob(flat, None).view(*features.shape[:-1], -1)

    def _steps(self, incremental_state):
        held = self.get_incremental_state(incremental_state, "generation")
        return None if held is None else held["steps"]

    def reorder_incremental_state(self, incremental_state, new_order: Tensor) -> None:
        """Let row i of the cache go on from what was row new_order[i], as beam search does."""
        steps = self._steps(incremental_state)
        if steps is not None:
            steps.reorder(new_order)
