"""The language model `hmlstm_lm` and its architectures."""

from __future__ import annotations

import functools
import logging
from typing import Callable, Optional

from fairseq.models import FairseqLanguageModel, register_model
from torch import Tensor

from ..options import CheckedOptions, check_config
from .architectures import register_architectures
from .carried_state import CarriedState
from .config import HMLSTMLanguageModelConfig
from .decoder import HMLSTMDecoder
from .dropout import let_dropout_grow
from .embeddings import check_criterion, load_embedding
from .start_files import StartsFromFiles

logger = logging.getLogger(__name__)

# Sizes and slopes of the published experiments (arXiv 1609.01704, section 4), which state no dropout.
NO_DROPOUT = {"dropout_input": 0.0, "dropout_recurrent": 0.0, "dropout_output": 0.0}
ARCHITECTURES = {
    "hmlstm_lm_ptb": {"hidden_sizes": "512,512,512", "output_dim": 512, "slope_per_epoch": 0.04, **NO_DROPOUT},
    "hmlstm_lm_text8": {"hidden_sizes": "1024,1024,1024", "output_dim": 2048, **NO_DROPOUT},
    "hmlstm_lm_enwik8": {"hidden_sizes": "1024,1024,1024", "output_dim": 2048, **NO_DROPOUT},
}


@register_model("hmlstm_lm", dataclass=HMLSTMLanguageModelConfig)
class HMLSTMLanguageModel(CheckedOptions, StartsFromFiles, FairseqLanguageModel):
    """Language model of "Hierarchical Multiscale Recurrent Neural Networks" (arXiv 1609.01704).

    Its state goes from one window of a stream to the next where a batch names stream and window (`data/streams.py`);
    training and evaluation each have a state of their own.
    """

    # The function that `from_pretrained` calls; `fairseq_hmrnn.inference`, which stands above the models, sets it.
    load_pretrained: Optional[Callable] = None

    def __init__(self, decoder: HMLSTMDecoder):
        super().__init__(decoder)
        hidden_sizes = decoder.hm_lstm.hidden_sizes
        self.carried_in_training = CarriedState(hidden_sizes, replays=True)
        self.carried_in_evaluation = CarriedState(hidden_sizes, replays=False)

    @classmethod
    def build_model(cls, cfg, task):
        check_config(cfg, HMLSTMLanguageModelConfig)
        if cfg.slope_per_epoch and not hasattr(task, "passes_epoch"):
            logger.warning(
                f"the slope stays {cfg.slope}: {type(task).__name__} does not pass the epoch to a model, "
                "slope-per-epoch requires --task hmlstm_language_modeling; slope-per-update works with any task"
            )
        check_criterion(cfg)
        model = cls(HMLSTMDecoder(cfg, task.source_dictionary, task.target_dictionary))
        load = functools.partial(load_embedding, model.decoder.embed_tokens, task.source_dictionary)
        model.start_from("decoder-embed-path", cfg.decoder_embed_path, load)
        let_dropout_grow(model, cfg)
        return model

    @classmethod
    def from_pretrained(cls, model_name_or_path, checkpoint_file=None, data_name_or_path=None, **kwargs):
        """An `inference.hub.LanguageModelHub` of a trained model: sample, score, segment, encode and decode.

        model_name_or_path: a checkpoint, or a folder with checkpoint_best.pt. checkpoint_file: its name there, several
        with ":" between them for an ensemble. The other arguments, such as dtype="bfloat16": see
        `inference.loading.load`.
        """
        return cls.load_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, **kwargs)

    def forward(
        self,
        src_tokens: Tensor,
        stream: Optional[str] = None,
        window: int = 0,
        reset: Optional[Tensor] = None,
        **kwargs,
    ):
        """As the decoder: logits (B, T, V) and a dictionary. src_tokens: (B, T), window number `window` of `stream` if
        that is given. reset: (B,) bool, rows whose state starts from zeros (in training; evaluation never forgets).
        FileNotFoundError if a file that the model was to start from is missing and no weights were loaded since."""
        self.check_files()
        if stream is None:
            return self.decoder(src_tokens, **kwargs)
        carried = self.carried_in_training if self.training else self.carried_in_evaluation
        like = self.decoder.hm_lstm.zero_state(0).z
        state = carried.start(stream, window, like, reset if self.training else None)
        logits, extra = self.decoder(src_tokens, state=state, **kwargs)
        carried.reach(stream, window, extra["state"])
        return logits, extra

    def set_num_updates(self, num_updates: int) -> None:
        """Called by fairseq before every batch: the number of completed updates."""
        super().set_num_updates(num_updates)
        self.carried_in_training.begin_update(num_updates)

    def set_epoch(self, epoch: int) -> None:
        """Called by the task; official fairseq has no such hook of its own."""
        self.decoder.slope_progress.set_epoch(epoch)


register_architectures("hmlstm_lm", ARCHITECTURES)
