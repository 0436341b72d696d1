"""The contestants of long_memory.py: three layers of equal size between an embedding and an answer, recurrent ones or
those of fairseq's Transformer."""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from calibration import closest_size
from fairseq.models.transformer import TransformerConfig
from fairseq.modules import SinusoidalPositionalEmbedding
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from long_memory_tasks import Task
from torch import Tensor, nn

from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, LayerSteps
from fairseq_hmrnn.criterions.boundary_terms import parse_rates, parse_terms
from fairseq_hmrnn.models.slope import SlopeProgress, SlopeSchedule
from fairseq_hmrnn.modules import HMLSTM, LayerOutput

LAYERS = 3
HEADS = 2
# Last steps that the Transformer sees: by default as long as the sequences of training, but for the longest of `digits`
# (64 pixels, a gap of 200, a step for the answer), whose first pixels are lost to it.
WINDOW = 256
STEPS = 1000  # of a call of the recurrence; the state is carried, so that memory does not grow with the gap


class Contestant(NamedTuple):
    """kind: of the layers. regularizers and rates: of HM-LSTM, as the criterion takes them; options: of HMLSTM; slope:
    by update. chrono: start the gates from the times of training (Tallec and Ollivier 2018, arXiv 1804.11188).
    """

    label: str
    kind: str
    regularizers: str = "none"
    rates: str = ""
    options: Mapping[str, object] = MappingProxyType({})
    slope: SlopeSchedule = SlopeSchedule(maximum=1)
    chrono: bool = False


NESTED = {"nested_boundaries": True}
USUAL = ("hm_lstm", "rate", ".2,.05")
PRICE = ("hm_lstm", "cost=0:.03:200")
ANNEALED = SlopeSchedule(maximum=5, per_update=0.004)

CONTESTANTS = {
    "hm_lstm": Contestant("HM-LSTM, rates .2, .05", *USUAL),
    "hm_lstm_cost": Contestant("HM-LSTM, nested, cost", *PRICE, options=NESTED),
    "lstm": Contestant("nn.LSTM", "lstm"),
    "lstm_chrono": Contestant("nn.LSTM, chrono", "lstm", chrono=True),
    "gru": Contestant("nn.GRU", "gru"),
    "transformer": Contestant(f"Transformer, window {WINDOW}", "transformer"),
    # on request
    "hm_lstm_none": Contestant("HM-LSTM, no regulariser", "hm_lstm"),
    "hm_lstm_nested": Contestant("HM-LSTM, nested, rates .2, .05", *USUAL, options=NESTED),
    "hm_lstm_rare": Contestant("HM-LSTM, rates .02, .002", "hm_lstm", "rate", ".02,.002"),
    "hm_lstm_slope": Contestant("HM-LSTM, rates .2, .05, slope to 5", *USUAL, slope=ANNEALED),
    "hm_lstm_gradient": Contestant("HM-LSTM, rates .2, .05, gradient 1", *USUAL, options={"detector_grad_scale": 1.0}),
    "hm_lstm_shut": Contestant("HM-LSTM, rates .2, .05, bias -2", *USUAL, options={"detector_bias": -2.0}),
    "hm_lstm_unnested": Contestant("HM-LSTM, cost", *PRICE),
    "hm_lstm_cost_slope": Contestant("HM-LSTM, nested, cost, slope to 5", *PRICE, options=NESTED, slope=ANNEALED),
}
DEFAULT = ("hm_lstm", "hm_lstm_cost", "lstm", "lstm_chrono", "gru")


class Attention(nn.Module):
    """Decoder layers of fairseq's Transformer, normalised before, with sinusoidal positions and no dropout."""

    def __init__(self, size: int):
        super().__init__()
        cfg = TransformerConfig()
        cfg.dropout = 0.0
        cfg.decoder.embed_dim, cfg.decoder.ffn_embed_dim = size, 2 * size
        cfg.decoder.attention_heads, cfg.decoder.normalize_before = HEADS, True
        self.layers = nn.ModuleList([TransformerDecoderLayerBase(cfg, no_encoder_attn=True) for _ in range(LAYERS)])
        self.positions = SinusoidalPositionalEmbedding(size, padding_idx=0, init_size=WINDOW + 1)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, state: None = None):
        """x (T, B, H) of the last steps; returns the same of every step and those before it, and no state."""
        steps = torch.ones(x.size(1), x.size(0), dtype=torch.long)
        later = torch.full((x.size(0), x.size(0)), float("-inf")).triu(1)
        x = x + self.positions(steps).transpose(0, 1)
        for layer in self.layers:
            x, *_ = layer(x, self_attn_mask=later)
        return self.norm(x), None


LAYER_KINDS = {
    "lstm": lambda size: nn.LSTM(size, size, LAYERS),
    "gru": lambda size: nn.GRU(size, size, LAYERS),
    "transformer": Attention,
}


class Model(nn.Module):
    """Embedding, three layers, and answers from their last steps.

    task: whose inputs and answers they are. longest: gap of training, for chrono initialisation.
    """

    def __init__(self, contestant: Contestant, task: Task, hidden: int, longest: int):
        super().__init__()
        self.embed = nn.Embedding(task.symbols, hidden) if task.symbols else nn.Linear(task.features, hidden)
        self.is_hm_lstm = contestant.kind == "hm_lstm"
        self.window = WINDOW if contestant.kind == "transformer" else 0
        if self.is_hm_lstm:
            self.recurrence = HMLSTM(hidden, [hidden] * LAYERS, layer_norm=True, **contestant.options)
            self.slope = SlopeProgress(contestant.slope)
            self.mix = LayerOutput([hidden] * LAYERS, hidden)
            rates = parse_rates(contestant.rates)
            self.terms = parse_terms(contestant.regularizers, rates)
            self.rates = [rate.share for rate in rates] or [None] * (LAYERS - 1)
        else:
            self.recurrence = LAYER_KINDS[contestant.kind](hidden)
            self.mix = nn.Linear(hidden, hidden)
        if contestant.kind == "lstm":
            start_gates(self.recurrence, longest if contestant.chrono else None)
        self.out = nn.Linear(hidden, task.outputs)

    def forward(self, inputs: Tensor, answers: int, update: Optional[int] = None):
        """inputs: of a Batch. Returns predictions (N, B, outputs) of the last N = `answers` steps, and the penalty on
        boundaries in that update of training; 0 without one."""
        if self.is_hm_lstm and update is not None:
            self.slope.set_num_updates(update)
        state, last, traces = None, None, []
        for part in inputs[-self.window :].split(STEPS):
            output = self.read(part, state)
            hidden, state = (output.hidden, output.state) if self.is_hm_lstm else ((output[0],), output[1])
            ends = [h[-answers:] for h in hidden]
            last = ends if last is None else [torch.cat(pair)[-answers:] for pair in zip(last, ends)]
            if self.is_hm_lstm and update is not None:
                traces.append((output.boundaries, output.boundary_probs))
        features = self.mix(last) if self.is_hm_lstm else F.relu(self.mix(last[0]))
        return self.out(features), self._penalty(*zip(*traces), update) if traces else 0.0

    def read(self, inputs: Tensor, state=None):
        """The recurrence's output for these steps after a state, with the slope of the last update of training."""
        x = self.embed(inputs)
        return self.recurrence(x, state, slope=self.slope.slope) if self.is_hm_lstm else self.recurrence(x, state)

    def _penalty(self, boundaries: Sequence[Tensor], boundary_probs: Sequence[Tensor], update: int) -> Tensor:
        """The regularisers' sum over layers, as the criterion boundary_regularized_cross_entropy adds it."""
        z, z_tilde = (torch.cat(list(parts)).transpose(0, 1) for parts in (boundaries, boundary_probs))
        valid, total = torch.ones_like(z[..., 0], dtype=torch.bool), z.new_zeros(())
        for layer, rate in enumerate(self.rates):
            steps = LayerSteps(z[..., layer], z_tilde[..., layer], valid, rate)
            for term in self.terms[layer if len(self.terms) > 1 else 0]:
                total = total + term.weight(update) * REGULARIZERS[term.name](steps)
        return total

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def start_gates(lstm: nn.LSTM, longest: Optional[int]) -> None:
    """Forget biases of 1, with which HMLSTM starts too; with `longest` chrono initialisation, log U(1, longest - 1) and
    its negative for the input gates."""
    size = lstm.hidden_size
    for layer in range(lstm.num_layers):
        bias = getattr(lstm, f"bias_ih_l{layer}").detach()
        getattr(lstm, f"bias_hh_l{layer}").detach().zero_()
        bias.zero_()
        bias[size : 2 * size] = 1 if longest is None else torch.empty(size).uniform_(1, longest - 1).log()
        if longest is not None:
            bias[:size] = -bias[size : 2 * size]


def equal_size(contestant: Contestant, task: Task, parameters: int, longest: int) -> int:
    """The size of the layers with which a contestant comes nearest to that number of parameters."""

    def parameters_of(hidden: int) -> int:
        return Model(contestant, task, hidden, longest).num_parameters

    step = HEADS if contestant.kind == "transformer" else 1
    return closest_size(parameters, parameters_of, start=2 * step, step=step)
