"""The translation model `hmlstm_transformer`: an HM-LSTM encoder under fairseq's Transformer decoder."""

from __future__ import annotations

from fairseq.models import register_model
from fairseq.models.transformer import Embedding, TransformerConfig, TransformerDecoderBase
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig
from torch import Tensor

from ...modules.hooks import apply_linear
from ...ops import has_many_rows
from ..architectures import register_architectures
from ..embeddings import make_differentiable, parse_cutoffs, ties_output
from ..fingerprint import DictionaryFingerprint
from . import scripting
from .config import IWSLT_ENCODER, SMALL_ENCODER, TINY_ENCODER, HMLSTMTransformerConfig
from .encoder import HMLSTMEncoder, encoder_extra
from .model import TranslationModel


class HMLSTMTransformerDecoder(TransformerDecoderBase):
    """fairseq's Transformer decoder over the memory of an HM-LSTM encoder."""

    def __init__(self, cfg: HMLSTMTransformerConfig, dictionary, encoder: HMLSTMEncoder):
        dim = cfg.decoder_embed_dim
        decoder = DecoderConfig(
            embed_dim=dim,
            input_dim=dim,
            output_dim=dim,
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
            share_decoder_input_output_embed=ties_output(cfg, {"decoder-embed-dim": dim}),
            adaptive_softmax_cutoff=parse_cutoffs(cfg.adaptive_softmax_cutoff, len(dictionary), dim),
            max_target_positions=cfg.max_target_positions,
        )
        shared = encoder.embed_tokens if cfg.share_all_embeddings else None
        super().__init__(config, dictionary, shared or Embedding(len(dictionary), dim, dictionary.pad()))
        make_differentiable(self)
        self.dictionary_fingerprint = DictionaryFingerprint(dictionary, "target")

    def extract_features(self, prev_output_tokens: Tensor, encoder_out=None, incremental_state=None, *args, **options):
        """fairseq's, of which `forward` makes logits, and beside it what `encoder_extra` returns."""
        found = super().extract_features(prev_output_tokens, encoder_out, incremental_state, *args, **options)
        return found[0], {**found[1], **encoder_extra(encoder_out, found[1]["attn"][0])}

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits of features (B, T, decoder_embed_dim); with an adaptive softmax the features."""
        if self.adaptive_softmax is not None or not has_many_rows(features):
            return super().output_layer(features)
        return apply_linear(self.output_projection, features)


@register_model("hmlstm_transformer", dataclass=HMLSTMTransformerConfig)
class HMLSTMTransformerModel(TranslationModel):
    """HM-LSTM encoder and fairseq's Transformer decoder."""

    config_class = HMLSTMTransformerConfig
    decoder_class = HMLSTMTransformerDecoder
    scripted_decoder = scripting.TransformerDecoder


TINY_DECODER = {"decoder_layers": 2, "decoder_embed_dim": 64, "decoder_ffn_embed_dim": 128}
SMALL_DECODER = {"decoder_layers": 2, "decoder_embed_dim": 128, "decoder_ffn_embed_dim": 256}
SMALL_DROPOUT = dict.fromkeys(("dropout_input", "dropout_memory", "dropout"), 0.3)
IWSLT_DECODER = {"decoder_layers": 6, "decoder_embed_dim": 512, "decoder_ffn_embed_dim": 1024}
register_architectures(
    "hmlstm_transformer",
    {
        "hmlstm_transformer_tiny": {**TINY_ENCODER, **TINY_DECODER},
        "hmlstm_transformer_small": {**SMALL_ENCODER, **SMALL_DECODER, **SMALL_DROPOUT},
        "hmlstm_transformer_iwslt_de_en": {**IWSLT_ENCODER, **IWSLT_DECODER},
    },
)
