"""Models of handwriting: the next step of a pen, from all before it."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
from fairseq.models import BaseFairseqModel, register_model
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..modules import LayerOutput, MixtureDensity, StepDistribution
from ..ops import capturing, valid_or_none
from ..options import DROPOUT, SIZE, CheckedOptions, Parsed, check_config, option, whole
from ..trace import KEY
from .architectures import register_architectures
from .config import SLOPE, HMLSTMConfig, build_hm_lstm, parse_sizes
from .dropout import let_dropout_grow
from .recurrent import Recurrent

STEP_SIZE = 3  # dx, dy and whether the stroke ends


class HandwritingModel(BaseFairseqModel):
    """A linear layer that reads a step, a recurrence, and the density of the next step.

    Subclasses implement the recurrence, `recur`.
    """

    def __init__(self, embed_dim: int, output_dim: int, mixtures: int):
        super().__init__()
        self.embed_step = nn.Linear(STEP_SIZE, embed_dim)
        self.density = MixtureDensity(output_dim, mixtures)

    def forward(self, steps: Tensor, valid: Optional[Tensor] = None, state=None) -> Tuple[Tensor, Dict]:
        """The density of the step after each of steps (B, T, 3).

        valid: (B, T) bool, False at padding; None: there is none. state: that the steps before have reached, None
        before the first. Returns the parameters (B, T, 6 M + 1) that `distribution` takes and a dict with `valid`, the
        `state` reached and, of a model with boundaries, the batch's BoundaryTrace as `trace`.
        """
        if valid is None:
            valid = torch.ones(steps.shape[:2], dtype=torch.bool, device=steps.device)
        features, extra = self.recur(self.embed_step(steps).transpose(0, 1), valid, state)
        return self.density(features.transpose(0, 1)), {"valid": valid, **extra}

    def recur(self, x: Tensor, valid: Tensor, state) -> Tuple[Tensor, Dict]:
        """x: (T, B, embed_dim), valid: (B, T). Returns features (T, B, output_dim) and the rest of the dict."""
        raise NotImplementedError

    def distribution(self, parameters: Tensor, bias: float = 0.0) -> StepDistribution:
        """The distribution with the parameters (..., 6 M + 1) that `forward` returns; bias: see
        `MixtureDensity.distribution`."""
        return self.density.distribution(parameters, bias)


@dataclass
class HMLSTMHandwritingConfig(HMLSTMConfig):
    """Options of `hmlstm_handwriting`. Sizes and slopes are those of the paper's experiment on IAM-OnDB."""

    embed_dim: int = option(64, "size of the linear layer that reads dx, dy and the pen", SIZE)
    hidden_sizes: str = option(
        "400,400,400", "sizes of the layers, bottom to top, separated by commas", Parsed(parse_sizes)
    )
    output_dim: int = option(400, "size of the output module's embedding h_e", SIZE)
    mixtures: int = option(20, "Gaussians of the density of the next step", whole(1, 1000))
    slope_max: float = option(3.0, "largest slope (paper: 3 for IAM-OnDB)", SLOPE)
    dropout_input: float = option(0.0, "dropout on what reads the step", DROPOUT)
    dropout_recurrent: float = option(
        0.0, "variational dropout on the recurrent product: one mask for all steps", DROPOUT
    )
    dropout_output: float = option(0.0, "dropout on the output module's embedding", DROPOUT)


@register_model("hmlstm_handwriting", dataclass=HMLSTMHandwritingConfig)
class HMLSTMHandwritingModel(Recurrent, CheckedOptions, HandwritingModel):
    """HM-LSTM over a pen's steps, the gated output module and a mixture density (arXiv 1609.01704, section 4.2)."""

    def __init__(self, cfg: HMLSTMHandwritingConfig):
        super().__init__(cfg.embed_dim, cfg.output_dim, cfg.mixtures)
        self.hm_lstm = build_hm_lstm(cfg, cfg.embed_dim)
        self.layer_output = LayerOutput(self.hm_lstm.hidden_sizes, cfg.output_dim, self.hm_lstm.bfloat16_products)
        self.add_dropout_and_slope(cfg, self.hm_lstm)
        self.dropout_output = FairseqDropout(cfg.dropout_output, type(self).__name__)

    @classmethod
    def build_model(cls, cfg, task):
        check_config(cfg, HMLSTMHandwritingConfig)
        if getattr(task, "source_dictionary", None) is not None:
            raise ValueError("hmlstm_handwriting reads pen strokes, not symbols: give --task hmlstm_handwriting")
        model = cls(cfg)
        let_dropout_grow(model, cfg)
        return model

    def recur(self, x: Tensor, valid: Tensor, state) -> Tuple[Tensor, Dict]:
        state = self.hm_lstm.zero_state(x.size(1)) if state is None else state
        slope = self.slope_progress.slope
        output = self.hm_lstm(self.dropout_input(x), state, valid_or_none(valid.t()), slope)
        changed = None if capturing() else output.changed(state, valid.t())
        features = self.dropout_output(self.layer_output.over_sequence(output.hidden, changed))
        return features, {KEY: self.trace_of_output(output, valid), "state": output.state}

    def set_epoch(self, epoch: int) -> None:
        """Called by the task."""
        self.slope_progress.set_epoch(epoch)


register_architectures("hmlstm_handwriting", {"hmlstm_handwriting_iam": {"slope_per_epoch": 0.004}})
