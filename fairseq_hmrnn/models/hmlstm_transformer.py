"""The translation model `hmlstm_transformer`: an HM-LSTM encoder under fairseq's Transformer decoder."""

from __future__ import annotations

from fairseq.models import register_model
from fairseq.models.transformer import Embedding, TransformerConfig, TransformerDecoderBase
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig
from torch import Tensor

from .architectures import register_architectures
from .hmlstm_encoder import HMLSTMEncoder, encoder_extra
from .translation_config import IWSLT_ENCODER, TINY_ENCODER, HMLSTMTransformerConfig
from .translation_model import TranslationModel


class HMLSTMTransformerDecoder(TransformerDecoderBase):
    """fairseq's Transformer decoder over the memory of an HM-LSTM encoder."""

    def __init__(self, cfg: HMLSTMTransformerConfig, dictionary, encoder: HMLSTMEncoder):
        decoder = DecoderConfig(
            embed_dim=cfg.decoder_embed_dim,
            input_dim=cfg.decoder_embed_dim,
            output_dim=cfg.decoder_embed_dim,
            ffn_embed_dim=cfg.decoder_ffn_embed_dim,
            layers=cfg.decoder_layers,
            attention_heads=cfg.decoder_attention_heads,
            normalize_before=cfg.decoder_normalize_before,
        )
        config = TransformerConfig(
            encoder=EncDecBaseConfig(embed_dim=encoder.output_units),
            decoder=decoder,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            activation_dropout=cfg.activation_dropout,
            share_decoder_input_output_embed=cfg.share_decoder_input_output_embed,
            max_target_positions=cfg.max_target_positions,
        )
        super().__init__(config, dictionary, Embedding(len(dictionary), cfg.decoder_embed_dim, dictionary.pad()))

    def forward(self, prev_output_tokens: Tensor, encoder_out=None, incremental_state=None, **options):
        """Logits (B, T, V) after each of prev_output_tokens (B, T), and what `encoder_extra` tells."""
        logits, extra = super().forward(prev_output_tokens, encoder_out, incremental_state, **options)
        return logits, {**extra, **encoder_extra(encoder_out, extra["attn"][0])}


@register_model("hmlstm_transformer", dataclass=HMLSTMTransformerConfig)
class HMLSTMTransformerModel(TranslationModel):
    """HM-LSTM encoder and fairseq's Transformer decoder."""

    config_class = HMLSTMTransformerConfig
    decoder_class = HMLSTMTransformerDecoder


TINY_DECODER = {"decoder_layers": 2, "decoder_embed_dim": 64, "decoder_ffn_embed_dim": 128}
IWSLT_DECODER = {"decoder_layers": 6, "decoder_embed_dim": 512, "decoder_ffn_embed_dim": 1024}
register_architectures(
    "hmlstm_transformer",
    {
        "hmlstm_transformer_tiny": {**TINY_ENCODER, **TINY_DECODER},
        "hmlstm_transformer_iwslt_de_en": {**IWSLT_ENCODER, **IWSLT_DECODER},
    },
)
