"""What the translation models have in common."""

from __future__ import annotations

import os
from typing import Optional

from fairseq.models import FairseqEncoderDecoderModel

from ..options import CheckedOptions, check_config
from .hmlstm_encoder import HMLSTMEncoder
from .pretrained import DECODER_PARTS, ENCODER_PARTS, load_pretrained


class TranslationModel(CheckedOptions, FairseqEncoderDecoderModel):
    """An HM-LSTM encoder and, by subclass, a decoder: `decoder_class(cfg, dictionary, encoder)`, of `config_class`."""

    config_class = None
    decoder_class = None

    def __init__(self, encoder, decoder):
        super().__init__(encoder, decoder)
        self.missing_pretrained: Optional[str] = None

    @classmethod
    def build_model(cls, cfg, task):
        check_config(cfg, cls.config_class)
        if cfg.slope_per_epoch:
            raise ValueError("translation tasks do not tell a model the epoch: anneal with slope-per-update instead")
        encoder = HMLSTMEncoder(cfg, task.source_dictionary)
        model = cls(encoder, cls.decoder_class(cfg, task.target_dictionary, encoder))
        model._start_from(encoder, cfg.load_pretrained_encoder_from, ENCODER_PARTS)
        model._start_from(model.decoder, getattr(cfg, "load_pretrained_decoder_from", ""), DECODER_PARTS)
        return model

    def _start_from(self, part, path: str, names) -> None:
        """Load a pretrained part. A trained model that is loaded later does without the file, training does not."""
        if path and os.path.isfile(path):
            load_pretrained(part, path, names)
        elif path:
            self.missing_pretrained = path

    def load_state_dict(self, *args, **kwargs):
        self.missing_pretrained = None
        return super().load_state_dict(*args, **kwargs)

    def forward(self, *args, **kwargs):
        """As every encoder-decoder model of fairseq: src_tokens, src_lengths, prev_output_tokens."""
        if self.missing_pretrained is not None:
            raise FileNotFoundError(f"no {self.missing_pretrained}, which load-pretrained-... names")
        return super().forward(*args, **kwargs)
