"""Dropout that fairseq's `--retain-dropout` reaches, and its growth over training."""

from __future__ import annotations

from fairseq.modules import FairseqDropout
from torch import nn

from ..modules import HMLSTM


class RecurrentDropout(FairseqDropout):
    """Hands the switch on to the variational dropout inside recurrences: they draw their masks themselves.

    owner: the class under whose name --retain-dropout-modules finds it.
    """

    def __init__(self, owner: type, *recurrences: HMLSTM):
        self.recurrences = recurrences  # a tuple: they are submodules of the owner; first, for p is theirs
        super().__init__(recurrences[0].recurrent_dropout, owner.__name__)

    @property
    def p(self) -> float:
        return self.recurrences[0].recurrent_dropout

    @p.setter
    def p(self, value: float) -> None:
        for recurrence in self.recurrences:
            recurrence.recurrent_dropout = value

    def make_generation_fast_(self, *args, **kwargs):
        """Called by fairseq before inference."""
        super().make_generation_fast_(*args, **kwargs)
        for recurrence in self.recurrences:
            recurrence.retain_dropout = self.apply_during_inference


class DropoutGrowth(nn.Module):
    """Dropout that grows linearly over training, after "Curriculum Dropout" (arXiv 1703.06229): low at first,
    when the model cannot yet memorise the text.

    model: of which every dropout grows, by the same factor. start: that factor before the first update, in [0, 1].
    updates: after how many it is 1. A model that is loaded has the dropout that its checkpoint had come to; one that
    never received a number of updates has all of it.
    """

    def __init__(self, model: nn.Module, start: float, updates: int):
        super().__init__()
        self.start, self.updates = start, updates
        kinds = FairseqDropout, nn.Dropout  # the latter in fairseq's adaptive softmax
        # A tuple: they are submodules of the model.
        self.whole = tuple((module, module.p) for module in model.modules() if isinstance(module, kinds))

    def factor(self, num_updates: int) -> float:
        """The factor of every dropout after so many updates."""
        return self.start + (1 - self.start) * min(1.0, num_updates / self.updates)

    def set_num_updates(self, num_updates: int) -> None:
        """Called by fairseq before every batch."""
        factor = self.factor(num_updates)
        for dropout, whole in self.whole:
            dropout.p = factor * whole


def let_dropout_grow(model: nn.Module, cfg) -> None:
    """Gives the model its growth of dropout if the options (`HMLSTMConfig`) have one."""
    if cfg.dropout_growth_updates:
        model.dropout_growth = DropoutGrowth(model, cfg.dropout_growth_start, cfg.dropout_growth_updates)


def drops_out(dropout: FairseqDropout) -> bool:
    """Whether its next call is random."""
    return dropout.p > 0 and (dropout.training or dropout.apply_during_inference)
