"""Dropout that fairseq's `--retain-dropout` reaches."""

from __future__ import annotations

from fairseq.modules import FairseqDropout

from ..modules import HMLSTM


class RecurrentDropout(FairseqDropout):
    """Hands the switch on to the variational dropout inside recurrences: they draw their masks themselves.

    owner: the class under whose name --retain-dropout-modules finds it.
    """

    def __init__(self, owner: type, *recurrences: HMLSTM):
        super().__init__(recurrences[0].recurrent_dropout, owner.__name__)
        self.recurrences = recurrences  # a tuple: they are submodules of the owner

    def make_generation_fast_(self, *args, **kwargs):
        """Told by fairseq before inference."""
        super().make_generation_fast_(*args, **kwargs)
        for recurrence in self.recurrences:
            recurrence.retain_dropout = self.apply_during_inference


def drops_out(dropout: FairseqDropout) -> bool:
    """Whether its next call is random."""
    return dropout.p > 0 and (dropout.training or dropout.apply_during_inference)
