"""A language model over torch.nn.LSTM, as people write it, for comparisons: `fairseq-train --user-dir` of this folder,
`--arch nn_lstm_lm`. With --stateful its state goes from window to window, as that of hmlstm_lm does."""

from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqDecoder, FairseqLanguageModel, register_model
from torch import nn

import fairseq_hmrnn  # noqa: F401  registers the task
from fairseq_hmrnn.models.carried_state import CarriedState
from fairseq_hmrnn.ops import HMLSTMState


@dataclass
class NNLSTMLanguageModelConfig(FairseqDataclass):
    embed_dim: int = field(default=128, metadata={"help": "size of the symbol embedding"})
    hidden_size: int = field(default=256, metadata={"help": "size of every layer"})
    num_layers: int = field(default=3, metadata={"help": "layers"})
    dropout_input: float = field(default=0.1, metadata={"help": "dropout on the embedding"})
    dropout_output: float = field(default=0.1, metadata={"help": "dropout on the output of every layer"})
    init_range: Optional[float] = field(
        default=None,
        metadata={"help": "the LSTM starts uniform in +-this, as fairseq's in .1 (default: PyTorch's own)"},
    )


class NNLSTMDecoder(FairseqDecoder):
    """Embedding, torch.nn.LSTM, softmax."""

    def __init__(self, cfg: NNLSTMLanguageModelConfig, dictionary):
        super().__init__(dictionary)
        self.dropout_input, self.dropout_output = cfg.dropout_input, cfg.dropout_output
        self.embed_tokens = nn.Embedding(len(dictionary), cfg.embed_dim, dictionary.pad())
        self.lstm = nn.LSTM(
            cfg.embed_dim, cfg.hidden_size, cfg.num_layers, batch_first=True, dropout=cfg.dropout_output
        )
        for parameter in () if cfg.init_range is None else self.lstm.parameters():
            nn.init.uniform_(parameter, -cfg.init_range, cfg.init_range)
        self.output_projection = nn.Linear(cfg.hidden_size, len(dictionary))

    def forward(self, prev_output_tokens, encoder_out=None, state=None, **kwargs):
        """prev_output_tokens: (B, T). state: h and c, (L, B, H) each, zeros if None. Logits (B, T, V), and a dict with
        the state reached."""
        x = F.dropout(self.embed_tokens(prev_output_tokens), self.dropout_input, self.training)
        x, state = self.lstm(x, state)
        return self.output_projection(F.dropout(x, self.dropout_output, self.training)), {"state": state}

    def max_positions(self):
        return 2**31 - 1


@register_model("nn_lstm_lm", dataclass=NNLSTMLanguageModelConfig)
class NNLSTMLanguageModel(FairseqLanguageModel):
    def __init__(self, decoder: NNLSTMDecoder):
        super().__init__(decoder)
        sizes = [decoder.lstm.hidden_size] * decoder.lstm.num_layers
        self.carried_in_training = CarriedState(sizes, replays=True)
        self.carried_in_evaluation = CarriedState(sizes, replays=False)

    @classmethod
    def build_model(cls, cfg, task):
        return cls(NNLSTMDecoder(cfg, task.source_dictionary))

    def forward(self, src_tokens, stream=None, window=0, reset=None, **kwargs):
        """src_tokens: (B, T), which is window number `window` of `stream` if that is given; reset: (B,) bool, the rows
        that then start from zeros in training."""
        if stream is None:
            return self.decoder(src_tokens, **kwargs)
        carried = self.carried_in_training if self.training else self.carried_in_evaluation
        start = carried.start(stream, window, self.decoder.output_projection.bias, reset if self.training else None)
        if start is not None:
            kwargs["state"] = (torch.stack(start.h), torch.stack(start.c))
        logits, extra = self.decoder(src_tokens, **kwargs)
        h, c = extra["state"]
        no_boundaries = h.new_zeros(h.size(1), h.size(0))
        carried.reach(stream, window, HMLSTMState(tuple(h), tuple(c), no_boundaries))
        return logits, extra

    def set_num_updates(self, num_updates):
        super().set_num_updates(num_updates)
        self.carried_in_training.begin_update(num_updates)
