"""What every module with an HM-LSTM has beside it: dropout, the slope of the detectors, and the trace of a batch."""

from __future__ import annotations

from fairseq.modules import FairseqDropout
from torch import Tensor

from ..modules import HMLSTM
from ..ops import HMLSTMOutput
from ..trace import BoundaryTrace
from .config import HMLSTMConfig, build_slope_schedule
from .dropout import RecurrentDropout
from .slope import SlopeProgress


class Recurrent:
    """Mixed into a module with an HM-LSTM, `hm_lstm`."""

    hm_lstm: HMLSTM

    def add_dropout_and_slope(self, cfg: HMLSTMConfig, *recurrences: HMLSTM) -> None:
        """Add `dropout_input`, `dropout_recurrent`, which is that of these recurrences, and `slope_progress`."""
        self.dropout_input = FairseqDropout(cfg.dropout_input, type(self).__name__)
        self.dropout_recurrent = RecurrentDropout(type(self), *recurrences)
        self.slope_progress = SlopeProgress(build_slope_schedule(cfg))

    def trace(self, boundaries: Tensor, boundary_probs: Tensor, valid: Tensor) -> BoundaryTrace:
        """The trace of a batch: boundaries and probs (B, T, L), valid (B, T)."""
        detectors, updates = self.hm_lstm.num_detectors, self.slope_progress.num_updates
        return BoundaryTrace(boundaries, boundary_probs, valid, detectors, updates)

    def trace_of_output(self, output: HMLSTMOutput, valid: Tensor) -> BoundaryTrace:
        """The trace in a recurrence's output, which is time-major; valid (B, T)."""
        return self.trace(output.boundaries.transpose(0, 1), output.boundary_probs.transpose(0, 1), valid)
