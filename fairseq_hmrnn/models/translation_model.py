"""What the translation models have in common."""

from __future__ import annotations

import functools

from fairseq.models import FairseqEncoderDecoderModel

from .embeddings import check_criterion, check_shared_embeddings, load_embedding
from .hmlstm_encoder import HMLSTMEncoder
from .pretrained import DECODER_PARTS, ENCODER_PARTS, StartsFromFiles, load_pretrained


class TranslationModel(StartsFromFiles, FairseqEncoderDecoderModel):
    """An HM-LSTM encoder and, by subclass, a decoder: `decoder_class(cfg, dictionary, encoder)`."""

    decoder_class = None

    @classmethod
    def build_model(cls, cfg, task):
        if cfg.slope_per_epoch:
            raise ValueError("translation tasks do not tell a model the epoch: anneal with slope-per-update instead")
        check_criterion(cfg)
        check_shared_embeddings(cfg, task)
        encoder = HMLSTMEncoder(cfg, task.source_dictionary)
        model = cls(encoder, cls.decoder_class(cfg, task.target_dictionary, encoder))
        sides = (
            ("encoder", encoder, task.source_dictionary, ENCODER_PARTS),
            ("decoder", model.decoder, task.target_dictionary, DECODER_PARTS),
        )
        for name, part, dictionary, _ in sides:
            load = functools.partial(load_embedding, part.embed_tokens, dictionary)
            model.start_from(f"{name}-embed-path", getattr(cfg, f"{name}_embed_path"), load)
        for name, part, _, names in sides:
            path = getattr(cfg, f"load_pretrained_{name}_from", "")
            load = functools.partial(load_pretrained, part, parts=names)
            model.start_from(f"load-pretrained-{name}-from", path, load)
        return model

    def forward(self, *args, **kwargs):
        """As every encoder-decoder model of fairseq: src_tokens, src_lengths, prev_output_tokens."""
        self.check_files()
        return super().forward(*args, **kwargs)
