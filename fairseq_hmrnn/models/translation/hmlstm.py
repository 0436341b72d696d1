"""The translation model `hmlstm`: HM-LSTM on both sides."""

from __future__ import annotations

from fairseq.models import register_model

from ..architectures import register_architectures
from . import scripting
from .attention_decoder import HMLSTMAttentionDecoder
from .config import IWSLT_ENCODER, SMALL_ENCODER, TINY_ENCODER, HMLSTMTranslationConfig
from .model import TranslationModel


@register_model("hmlstm", dataclass=HMLSTMTranslationConfig)
class HMLSTMModel(TranslationModel):
    """HM-LSTM encoder and HM-LSTM decoder with attention."""

    config_class = HMLSTMTranslationConfig
    decoder_class = HMLSTMAttentionDecoder
    scripted_decoder = scripting.AttentionDecoder


SMALL_DROPOUT = dict.fromkeys(("dropout_input", "dropout_memory", "dropout_output"), 0.3)
register_architectures(
    "hmlstm",
    {
        "hmlstm_tiny": {**TINY_ENCODER, "output_dim": 64},
        "hmlstm_small": {**SMALL_ENCODER, "output_dim": 128, **SMALL_DROPOUT},
        "hmlstm_iwslt_de_en": {**IWSLT_ENCODER, "output_dim": 256},
    },
)
