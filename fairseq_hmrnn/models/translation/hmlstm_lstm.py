"""The translation model `hmlstm_lstm`: an HM-LSTM encoder under fairseq's LSTM decoder."""

from __future__ import annotations

from fairseq.models import register_model
from fairseq.models.lstm import LSTMDecoder
from torch import Tensor

from ..architectures import register_architectures
from ..embeddings import parse_cutoffs, ties_output
from . import scripting
from .config import IWSLT_ENCODER, TINY_ENCODER, HMLSTMLSTMConfig
from .encoder import HMLSTMEncoder, InitialState, encoder_extra
from .model import TranslationModel


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
        self.encoder_hidden_proj = self.encoder_cell_proj = None  # the initial state has the decoder's sizes already
        self.initial_state = InitialState(encoder.final_units, [cfg.decoder_hidden_size] * cfg.decoder_layers)

    def forward(self, prev_output_tokens: Tensor, encoder_out, incremental_state=None, src_lengths=None):
        """Logits (B, T, V) after each of prev_output_tokens (B, T), and what `encoder_extra` tells."""
        features, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return self.output_layer(features), extra

    def extract_features(self, prev_output_tokens: Tensor, encoder_out, incremental_state=None, src_lengths=None):
        """As `forward`, with the input of the softmax layer, (B, T, decoder_out_embed_dim), in place of logits."""
        hidden, cells = (None, None) if incremental_state else self.initial_state(encoder_out)  # afterwards: cached
        memory, padding_mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        features, attention = super().extract_features(
            prev_output_tokens, (memory, hidden, cells, padding_mask.t()), incremental_state
        )
        return features, encoder_extra(encoder_out, attention)


@register_model("hmlstm_lstm", dataclass=HMLSTMLSTMConfig)
class HMLSTMLSTMModel(TranslationModel):
    """HM-LSTM encoder and fairseq's LSTM decoder."""

    config_class = HMLSTMLSTMConfig
    decoder_class = HMLSTMLSTMDecoder
    scripted_decoder = scripting.LSTMDecoder


DECODER = {"decoder_embed_dim": 256, "decoder_hidden_size": 256, "decoder_out_embed_dim": 256}
register_architectures(
    "hmlstm_lstm",
    {
        "hmlstm_lstm_tiny": {**TINY_ENCODER, **dict.fromkeys(DECODER, 64)},
        "hmlstm_lstm_iwslt_de_en": {**IWSLT_ENCODER, **DECODER},
    },
)
