"""Handwriting by torch.nn.LSTM, for comparisons: `fairseq-train --user-dir` of this folder, `--arch lstm_handwriting`.
Input layer, output module and density are those of hmlstm_handwriting; each layer of the LSTM is heard by the output
module, as there."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from torch import nn

from fairseq_hmrnn.models.handwriting import HandwritingModel
from fairseq_hmrnn.modules import LayerOutput


@dataclass
class LSTMHandwritingConfig(FairseqDataclass):
    embed_dim: int = field(default=64, metadata={"help": "size of the linear layer that reads dx, dy and the pen"})
    hidden_size: int = field(default=400, metadata={"help": "size of every layer"})
    num_layers: int = field(default=3, metadata={"help": "layers"})
    output_dim: int = field(default=400, metadata={"help": "size of the output module's embedding"})
    mixtures: int = field(default=20, metadata={"help": "Gaussians of the density of the next step"})


@register_model("lstm_handwriting", dataclass=LSTMHandwritingConfig)
class LSTMHandwritingModel(HandwritingModel):
    def __init__(self, cfg: LSTMHandwritingConfig):
        super().__init__(cfg.embed_dim, cfg.output_dim, cfg.mixtures)
        below = [cfg.embed_dim] + [cfg.hidden_size] * (cfg.num_layers - 1)
        self.layers = nn.ModuleList([nn.LSTM(size, cfg.hidden_size) for size in below])
        self.layer_output = LayerOutput([cfg.hidden_size] * cfg.num_layers, cfg.output_dim)
        for layer in self.layers:  # the forget bias that HMLSTM starts with
            nn.init.constant_(layer.bias_ih_l0.detach()[cfg.hidden_size : 2 * cfg.hidden_size], 1.0)

    @classmethod
    def build_model(cls, cfg, task):
        return cls(cfg)

    def recur(self, x, valid, state):
        """As HandwritingModel; padding stands after a line, so that it changes none of its steps."""
        hidden, states = [], []
        for layer, start in zip(self.layers, state or [None] * len(self.layers)):
            x, reached = layer(x, start)
            hidden.append(x)
            states.append(reached)
        return self.layer_output(hidden), {"state": states}
