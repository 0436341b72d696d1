"""The translation model `hmlstm_lstm`: an HM-LSTM encoder under fairseq's LSTM decoder."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from fairseq.models import register_model
from fairseq.models.lstm import LSTMDecoder
from torch import Tensor

from ...modules.hooks import apply_linear, run_pre_hooks
from ...ops import attention_lstm, autocast_is_on, capturing, has_many_rows, linear
from ..architectures import register_architectures
from ..dropout import drops_out
from ..embeddings import make_differentiable, parse_cutoffs, ties_output
from ..fingerprint import DictionaryFingerprint
from . import scripting
from .config import IWSLT_ENCODER, SMALL_ENCODER, TINY_ENCODER, HMLSTMLSTMConfig
from .encoder import HMLSTMEncoder, InitialState, encoder_extra
from .model import TranslationModel

SEQUENCE_DTYPES = (torch.float32, torch.float64)


class HMLSTMLSTMDecoder(LSTMDecoder):
    """fairseq's LSTM decoder with attention and input feeding over the memory of an HM-LSTM encoder."""

    def __init__(self, cfg: HMLSTMLSTMConfig, dictionary, encoder: HMLSTMEncoder):
        sizes = {"decoder-embed-dim": cfg.decoder_embed_dim, "decoder-out-embed-dim": cfg.decoder_out_embed_dim}
        cutoffs = parse_cutoffs(cfg.adaptive_softmax_cutoff, len(dictionary), cfg.decoder_hidden_size)
        super().__init__(
            dictionary,
            embed_dim=cfg.decoder_embed_dim,
            hidden_size=cfg.decoder_hidden_size,
            out_embed_dim=cfg.decoder_hidden_size if cutoffs else cfg.decoder_out_embed_dim,
            num_layers=cfg.decoder_layers,
            dropout_in=cfg.decoder_dropout_in,
            dropout_out=cfg.decoder_dropout_out,
            encoder_output_units=encoder.output_units,
            pretrained_embed=encoder.embed_tokens if cfg.share_all_embeddings else None,
            share_input_output_embed=ties_output(cfg, sizes),
            adaptive_softmax_cutoff=cutoffs,
        )
        make_differentiable(self)
        self.encoder_hidden_proj = self.encoder_cell_proj = None  # the initial state has the decoder's sizes already
        self.initial_state = InitialState(encoder.final_units, [cfg.decoder_hidden_size] * cfg.decoder_layers)
        self.dictionary_fingerprint = DictionaryFingerprint(dictionary, "target")

    def forward(self, prev_output_tokens: Tensor, encoder_out, incremental_state=None, src_lengths=None):
        """Logits (B, T, V) after each of prev_output_tokens (B, T), and what `encoder_extra` returns."""
        features, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return self.output_layer(features), extra

    def extract_features(self, prev_output_tokens: Tensor, encoder_out, incremental_state=None, src_lengths=None):
        """As `forward`, with the input of the softmax layer, (B, T, decoder_out_embed_dim), in place of logits."""
        memory, padding_mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        if incremental_state is None and self._runs_sequences(memory):
            features, attention = self._run_sequence(prev_output_tokens, encoder_out)
            return features, encoder_extra(encoder_out, attention)
        hidden, cells = (None, None) if incremental_state else self.initial_state(encoder_out)  # afterwards: cached
        features, attention = super().extract_features(
            prev_output_tokens, (memory, hidden, cells, padding_mask.t()), incremental_state
        )
        return features, encoder_extra(encoder_out, attention)

    def _runs_sequences(self, memory: Tensor) -> bool:
        """Whether whole targets are computed by `attention_lstm`, not step by step under autograd."""
        return memory.dtype in SEQUENCE_DTYPES and not autocast_is_on(memory) and not capturing()

    def _run_sequence(self, prev_output_tokens: Tensor, encoder_out) -> Tuple[Tensor, Optional[Tensor]]:
        """As fairseq's `extract_features` without a cache, the memory projected once and not the query at every step:
        features (B, T, .), and in evaluation attention (B, T, M)."""
        run_pre_hooks(self.attention.input_proj, self.attention.output_proj, *self.layers)
        x = self.dropout_in_module(self.embed_tokens(prev_output_tokens)).transpose(0, 1)
        query, output = self.attention.input_proj.weight, self.attention.output_proj.weight
        of_memory, of_hidden = output[:, : -self.hidden_size], output[:, -self.hidden_size :]
        memory = linear(encoder_out["encoder_out"][0], torch.cat([query.t(), of_memory])).transpose(0, 1)
        h, c = map(torch.stack, self.initial_state(encoder_out))
        keys, values = memory.chunk(2, dim=2)
        layers = [(cell.weight_ih, cell.weight_hh, cell.bias_ih + cell.bias_hh) for cell in self.layers]
        padding_mask, masks = encoder_out["encoder_padding_mask"][0], self._dropout_masks(x)
        features, attention = attention_lstm(x, h, c, keys, values, padding_mask, layers, of_hidden, masks)
        features = features.transpose(0, 1)
        if hasattr(self, "additional_fc") and self.adaptive_softmax is None:
            features = self.dropout_out_module(apply_linear(self.additional_fc, features))
        return features, attention.transpose(0, 1) if self.need_attn and not self.training else None

    def _dropout_masks(self, x: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        """Between the layers, and on what they attended to; None without dropout. x: (T, B, .)."""
        if not drops_out(self.dropout_out_module):
            return None
        ones = x.new_ones(1).expand(x.size(0), self.num_layers, x.size(1), self.hidden_size)
        return self.dropout_out_module(ones[:, 1:]), self.dropout_out_module(ones[:, 0])

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits of the input of the softmax layer; itself with an adaptive softmax."""
        if self.adaptive_softmax is not None or not has_many_rows(features):
            return super().output_layer(features)
        if self.share_input_output_embed:
            return linear(features, self.embed_tokens.weight)
        return apply_linear(self.fc_out, features)


@register_model("hmlstm_lstm", dataclass=HMLSTMLSTMConfig)
class HMLSTMLSTMModel(TranslationModel):
    """HM-LSTM encoder and fairseq's LSTM decoder."""

    config_class = HMLSTMLSTMConfig
    decoder_class = HMLSTMLSTMDecoder
    scripted_decoder = scripting.LSTMDecoder


DECODER = {"decoder_embed_dim": 256, "decoder_hidden_size": 256, "decoder_out_embed_dim": 256}
DROPOUT_OPTIONS = ("dropout_input", "dropout_memory", "decoder_dropout_in", "decoder_dropout_out")
register_architectures(
    "hmlstm_lstm",
    {
        "hmlstm_lstm_tiny": {**TINY_ENCODER, **dict.fromkeys(DECODER, 64)},
        "hmlstm_lstm_small": {**SMALL_ENCODER, **dict.fromkeys(DECODER, 128), **dict.fromkeys(DROPOUT_OPTIONS, 0.3)},
        "hmlstm_lstm_iwslt_de_en": {**IWSLT_ENCODER, **DECODER},
    },
)
