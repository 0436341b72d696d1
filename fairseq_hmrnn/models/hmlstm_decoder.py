"""HM-LSTM as a fairseq decoder."""

from __future__ import annotations

from typing import Dict, Optional

import torch.nn.functional as F
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from ..modules import LayerOutput
from ..ops import HMLSTMState
from .config import HMLSTMLanguageModelConfig, build_hm_lstm, build_slope_schedule
from .progress import DictionaryFingerprint, SlopeProgress

UNLIMITED = 2**31 - 1  # a recurrent network has no longest input


class HMLSTMDecoder(FairseqIncrementalDecoder):
    """Embedding, HM-LSTM over the prefix, gated output module, softmax.

    cfg: sizes and options. dictionary: of the input symbols. output_dictionary: of the predicted ones, if smaller.
    """

    def __init__(self, cfg: HMLSTMLanguageModelConfig, dictionary, output_dictionary=None):
        output_dictionary = output_dictionary or dictionary
        super().__init__(output_dictionary)
        if cfg.tie_embeddings and (cfg.output_dim != cfg.embed_dim or len(output_dictionary) != len(dictionary)):
            raise ValueError("tie-embeddings wants output-dim equal to embed-dim and one dictionary for both sides")
        self.padding_idx = dictionary.pad()
        self.dropout_input, self.dropout_output = cfg.dropout_input, cfg.dropout_output
        self.embed_tokens = nn.Embedding(len(dictionary), cfg.embed_dim, self.padding_idx)
        self.hm_lstm = build_hm_lstm(cfg, cfg.embed_dim)
        self.layer_output = LayerOutput(self.hm_lstm.hidden_sizes, cfg.output_dim)
        self.output_projection = nn.Linear(cfg.output_dim, len(output_dictionary))
        if cfg.tie_embeddings:
            self.output_projection.weight = self.embed_tokens.weight
        self.slope_progress = SlopeProgress(build_slope_schedule(cfg))
        self.dictionary_fingerprint = DictionaryFingerprint(dictionary)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out=None,
        incremental_state=None,
        src_lengths: Optional[Tensor] = None,
        state: Optional[HMLSTMState] = None,
    ):
        """Predict the symbol after each of prev_output_tokens (B, T); pad symbols, on either side, change nothing.

        incremental_state: fairseq's cache; with it only the last symbol is read. state: of the recurrence before
        the first symbol, zeros if None. Returns logits (B, T, V) and a dict with the boundaries and their
        probabilities (B, T, L), `valid` (B, T), the number of detectors, from the bottom, the number of updates that
        the model was trained for, and the state reached.
        """
        features, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state, state=state)
        return self.output_layer(features), extra

    def extract_features(
        self, prev_output_tokens, encoder_out=None, incremental_state=None, src_lengths=None, state=None
    ):
        """As `forward`, with the output module's embedding (B, T, output_dim) in place of logits."""
        if incremental_state is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            state = self._cached_state(incremental_state)
        valid = prev_output_tokens.ne(self.padding_idx)
        x = F.dropout(self.embed_tokens(prev_output_tokens), self.dropout_input, self.training)
        padding = None if valid.all() else valid.t()
        output = self.hm_lstm(x.transpose(0, 1), state, padding, self.slope_progress.slope)
        if incremental_state is not None:
            self._cache_state(incremental_state, output.state)
        features = self.layer_output([h.transpose(0, 1) for h in output.hidden])
        extra = {
            "attn": None,
            "boundaries": output.boundaries.transpose(0, 1),
            "boundary_probs": output.boundary_probs.transpose(0, 1),
            "valid": valid,
            "num_detectors": self.hm_lstm.num_detectors,
            "num_updates": self.slope_progress.num_updates,
            "state": output.state,
        }
        return F.dropout(features, self.dropout_output, self.training), extra

    def output_layer(self, features: Tensor) -> Tensor:
        return self.output_projection(features)

    def max_positions(self) -> int:
        return UNLIMITED

    def _cached_state(self, incremental_state) -> Optional[HMLSTMState]:
        cached = self.get_incremental_state(incremental_state, "state")
        if cached is None:
            return None
        layers = range(self.hm_lstm.num_layers)
        return HMLSTMState(tuple(cached[f"h{i}"] for i in layers), tuple(cached[f"c{i}"] for i in layers), cached["z"])

    def _cache_state(self, incremental_state, state: HMLSTMState) -> None:
        cached: Dict[str, Optional[Tensor]] = {f"h{i}": h for i, h in enumerate(state.h)}
        cached.update({f"c{i}": c for i, c in enumerate(state.c)})
        cached["z"] = state.z
        self.set_incremental_state(incremental_state, "state", cached)

    def reorder_incremental_state(self, incremental_state, new_order: Tensor) -> None:
        """Let row i of the cache go on from what was row new_order[i], as beam search does."""
        state = self._cached_state(incremental_state)
        if state is not None:
            self._cache_state(incremental_state, state.reorder(new_order))
