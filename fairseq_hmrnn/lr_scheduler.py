"""Learning rates: fairseq's reduce_lr_on_plateau, made to resume exactly."""

from dataclasses import dataclass

from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
    ReduceLROnPlateauLRSchedule,
    ReduceLROnPlateauLRScheduleConfig,
)


@dataclass
class ExactReduceLROnPlateauConfig(ReduceLROnPlateauLRScheduleConfig):
    pass


@register_lr_scheduler("exact_reduce_lr_on_plateau", dataclass=ExactReduceLROnPlateauConfig)
class ExactReduceLROnPlateau(ReduceLROnPlateauLRSchedule):
    """As `reduce_lr_on_plateau`: multiplies the learning rate by --lr-shrink when the validation loss at an epoch's end
    has not improved for --lr-patience epochs. The paper's rule is --lr-shrink 0.02 --lr-patience 0.

    fairseq writes the checkpoint of an epoch's end before its scheduler hears of that epoch's loss, and resumes
    without telling it; nor does it keep the count of bad epochs. This one knows both (`compat.hand_over_loss`).
    """

    _missed_loss = None

    def state_dict(self):
        return {**super().state_dict(), "num_bad_epochs": self.lr_scheduler.num_bad_epochs}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.lr_scheduler.num_bad_epochs = state_dict.get("num_bad_epochs", 0)  # fairseq's own rule keeps no count
        self._missed_loss = state_dict.get("missed_loss")

    def step(self, epoch, val_loss=None):
        """At an epoch's end, and once more when training has been resumed (without a loss)."""
        if val_loss is None:
            val_loss, self._missed_loss = self._missed_loss, None
        return super().step(epoch, val_loss)
