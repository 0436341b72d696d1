"""The language model `hmlstm_lm` and its architectures."""

from __future__ import annotations

import os

from fairseq.models import FairseqLanguageModel, register_model, register_model_architecture

from . import hub
from .config import HMLSTMLanguageModelConfig
from .hmlstm_decoder import HMLSTMDecoder

# Sizes and slopes of the published experiments (arXiv 1609.01704, section 4), which state no dropout.
NO_DROPOUT = {"dropout_input": 0.0, "dropout_recurrent": 0.0, "dropout_output": 0.0}
PUBLISHED = {
    "hmlstm_lm_ptb": {"hidden_sizes": "512,512,512", "output_dim": 512, "slope_per_epoch": 0.04, **NO_DROPOUT},
    "hmlstm_lm_text8": {"hidden_sizes": "1024,1024,1024", "output_dim": 2048, **NO_DROPOUT},
    "hmlstm_lm_enwik8": {"hidden_sizes": "1024,1024,1024", "output_dim": 2048, **NO_DROPOUT},
}


@register_model("hmlstm_lm", dataclass=HMLSTMLanguageModelConfig)
class HMLSTMLanguageModel(FairseqLanguageModel):
    """Language model of "Hierarchical Multiscale Recurrent Neural Networks" (arXiv 1609.01704)."""

    @classmethod
    def build_model(cls, cfg, task):
        return cls(HMLSTMDecoder(cfg, task.source_dictionary, task.target_dictionary))

    @classmethod
    def from_pretrained(cls, model_name_or_path, checkpoint_file=None, data_name_or_path=None, **kwargs):
        """A `hub.LanguageModelHub` of a trained model: sample, score, segment, encode and decode.

        model_name_or_path: a checkpoint, or a folder with checkpoint_best.pt. checkpoint_file: its name there, several
        with ":" between them for an ensemble. The other arguments: see `hub.load`.
        """
        names = [""] if checkpoint_file is None else checkpoint_file.split(os.pathsep)
        paths = [os.path.join(model_name_or_path, name) if name else model_name_or_path for name in names]
        return hub.load(paths, data_name_or_path, **kwargs)

    def set_epoch(self, epoch: int) -> None:
        """Told by the task; official fairseq has no such hook of its own."""
        self.decoder.slope_progress.set_epoch(epoch)


def _register(name: str, settings: dict) -> None:
    @register_model_architecture("hmlstm_lm", name)
    def architecture(args):
        for option, value in settings.items():
            setattr(args, option, getattr(args, option, value))


for _name, _settings in PUBLISHED.items():
    _register(_name, _settings)
