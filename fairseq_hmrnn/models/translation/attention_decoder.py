"""HM-LSTM as a fairseq decoder that attends to an encoder."""

from __future__ import annotations

import copy
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from ...modules import Attention
from ...ops import HMLSTMState, valid_or_none
from ..recurrent_decoder import RecurrentDecoder
from .config import HMLSTMTranslationConfig
from .encoder import EncoderOut, HMLSTMEncoder, InitialState, encoder_extra


class DecoderState(NamedTuple):
    """The state of the recurrence; what was attended to last, (B, output_dim), (B, 0) without input feeding; and the
    masks of recurrent dropout for the whole sequence, one for each layer, None without."""

    recurrent: HMLSTMState
    attended: Tensor
    masks: Optional[Tuple[Tensor, ...]]


class HMLSTMAttentionDecoder(RecurrentDecoder):
    """As the language model's decoder, but started from the encoder's final states, and with attention in place of the
    gated output module: the query is the states of all layers side by side, for after the ReLU units of (8) attention
    died before it learned.

    With input feeding (arXiv 1508.04025, 3.3) every step reads what the step before attended to, added to its
    embedding: training too goes step by step. Without it the recurrence runs over the whole target in one call, and
    attention is computed for all positions at once.
    """

    def __init__(self, cfg: HMLSTMTranslationConfig, dictionary, encoder: HMLSTMEncoder):
        cfg = copy.deepcopy(cfg)
        cfg.embed_dim = cfg.decoder_embed_dim or cfg.embed_dim
        cfg.hidden_sizes = cfg.decoder_hidden_sizes or cfg.hidden_sizes
        embed_tokens = encoder.embed_tokens if cfg.share_all_embeddings else None
        super().__init__(cfg, dictionary, embed_tokens=embed_tokens, side="target")
        self.initial_state = InitialState(encoder.final_units, self.hm_lstm.hidden_sizes)
        self.attention = Attention(sum(self.hm_lstm.hidden_sizes), encoder.output_units, cfg.output_dim)
        self.feed = None if cfg.no_input_feeding else nn.Linear(cfg.output_dim, cfg.embed_dim, bias=False)

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, src_lengths=None, state=None):
        """Logits (B, T, V), and what else `extract_features` returns."""
        features, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state, state=state)
        return self.output_layer(features), extra

    def extract_features(
        self, prev_output_tokens, encoder_out: EncoderOut, incremental_state=None, src_lengths=None, state=None
    ):
        """The context of each of prev_output_tokens (B, T), (B, T, output_dim), and `encoder_extra` together with the
        decoder's own BoundaryTrace as `decoder_trace` and the state reached as `state`.

        incremental_state: fairseq's cache; with it only the last symbol is read. state: a DecoderState before the
        first symbol that it has read, made of the encoder's final states if None.
        """
        if incremental_state is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            state = self._cached_state(incremental_state) or state
        state = state or self._first_state(encoder_out)
        valid = prev_output_tokens.ne(self.padding_idx)
        x = self.embed(prev_output_tokens)
        if state.masks is None:
            state = state._replace(masks=self.hm_lstm.draw_recurrent_masks(x.size(0)))
        if self.feed is not None and x.size(1):
            features, attention, trace, state = self._run_steps(self.feed, x, valid, state, encoder_out)
        else:
            features, attention, trace, state = self._run_sequence(x, valid, state, encoder_out)
        if incremental_state is not None:
            self._cache_state(incremental_state, state)
        return features, {**encoder_extra(encoder_out, attention), "decoder_trace": trace, "state": state}

    def _first_state(self, encoder_out: EncoderOut) -> DecoderState:
        h, c = self.initial_state(encoder_out)
        z = self.hm_lstm.zero_state(h[0].size(0)).z
        attended = h[0].new_zeros(h[0].size(0), 0 if self.feed is None else self.feed.in_features)
        return DecoderState(HMLSTMState(h, c, z).to(z), attended, None)

    def _attend(self, hidden, memory: Tensor, padding_mask: Tensor):
        """hidden: tuple over layers of (B, T, H_l), memory (B, M, C). Returns (B, T, output_dim) and (B, T, M)."""
        attended, attention = self.attention(torch.cat(list(hidden), dim=2), memory, padding_mask)
        return self.dropout_output(attended), attention

    def _run_sequence(self, x: Tensor, valid: Tensor, state: DecoderState, encoder_out: EncoderOut):
        """x (B, T, embed_dim), valid (B, T), where nothing is fed. Returns features (B, T, output_dim), attention
        (B, T, M), the trace, and the state after the last step."""
        valid_steps, slope = valid_or_none(valid.t()), self.slope_progress.slope
        output = self.hm_lstm(x.transpose(0, 1), state.recurrent, valid_steps, slope, recurrent_masks=state.masks)
        hidden = [h.transpose(0, 1) for h in output.hidden]
        memory, padding_mask = encoder_out["encoder_out"][0].transpose(0, 1), encoder_out["encoder_padding_mask"][0]
        features, attention = self._attend(hidden, memory, padding_mask)
        return features, attention, self.trace_of_output(output, valid), state._replace(recurrent=output.state)

    def _run_steps(self, feed: nn.Linear, x: Tensor, valid: Tensor, state: DecoderState, encoder_out: EncoderOut):
        """As `_run_sequence`, step by step, with input feeding by `feed`; T at least 1."""
        memory, padding_mask = encoder_out["encoder_out"][0].transpose(0, 1), encoder_out["encoder_padding_mask"][0]
        projected = self.attention.project(memory, padding_mask) if x.size(1) > 1 else None
        recurrent, attended, masks = state
        steps = []
        for t in range(x.size(1)):
            fed = x[:, t] + feed(attended)
            valid_now, slope = valid_or_none(valid[:, t]), self.slope_progress.slope
            output = self.hm_lstm.step(fed, recurrent, valid_now, slope, recurrent_masks=masks)
            if projected is None:
                features, attention = self._attend([h.unsqueeze(1) for h in output.hidden], memory, padding_mask)
                features, attention = features.squeeze(1), attention.squeeze(1)
            else:
                features, attention = self.attention.step(torch.cat(output.hidden, dim=1), projected)
                features = self.dropout_output(features)
            attended = features if valid_now is None else torch.where(valid_now.unsqueeze(1), features, attended)
            recurrent = output.state
            steps.append((features, attention, output.boundaries, output.boundary_probs))
        features, attention, boundaries, probs = (torch.stack(values, dim=1) for values in zip(*steps))
        return features, attention, self.trace(boundaries, probs, valid), DecoderState(recurrent, attended, masks)

    def _cached_state(self, incremental_state) -> Optional[DecoderState]:
        cached = self.get_incremental_state(incremental_state, "decoding")
        return None if cached is None else cached["state"]

    def _cache_state(self, incremental_state, state: DecoderState) -> None:
        self.set_incremental_state(incremental_state, "decoding", {"state": state})

    def reorder_incremental_state(self, incremental_state, new_order: Tensor) -> None:
        """Let row i of the cache go on from what was row new_order[i], as beam search does."""
        state = self._cached_state(incremental_state)
        if state is not None:
            recurrent, attended = state.recurrent.reorder(new_order), state.attended.index_select(0, new_order)
            masks = None if state.masks is None else tuple(mask.index_select(0, new_order) for mask in state.masks)
            self._cache_state(incremental_state, DecoderState(recurrent, attended, masks))
