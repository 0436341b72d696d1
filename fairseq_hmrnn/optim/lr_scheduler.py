"""Learning rates: fairseq's reduce_lr_on_plateau, made to resume exactly."""

from dataclasses import dataclass
from typing import List

from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (
    ReduceLROnPlateauLRSchedule,
    ReduceLROnPlateauLRScheduleConfig,
)

from ..options import PROBABILITY, CheckedOptions, check_config, inherited, number, whole

LARGEST_LR = 1000


@dataclass
class ExactReduceLROnPlateauConfig(ReduceLROnPlateauLRScheduleConfig):
    lr_shrink: float = inherited(
        ReduceLROnPlateauLRScheduleConfig, "lr_shrink", number(0, 1, open_below=True, open_above=True)
    )
    lr_threshold: float = inherited(ReduceLROnPlateauLRScheduleConfig, "lr_threshold", PROBABILITY)
    lr_patience: int = inherited(ReduceLROnPlateauLRScheduleConfig, "lr_patience", whole())
    warmup_updates: int = inherited(ReduceLROnPlateauLRScheduleConfig, "warmup_updates", whole())
    warmup_init_lr: float = inherited(
        ReduceLROnPlateauLRScheduleConfig, "warmup_init_lr", number(0, LARGEST_LR, also=(-1,))
    )
    lr: List[float] = inherited(
        ReduceLROnPlateauLRScheduleConfig, "lr", number(0, LARGEST_LR, open_below=True, many=True)
    )


@register_lr_scheduler("exact_reduce_lr_on_plateau", dataclass=ExactReduceLROnPlateauConfig)
class ExactReduceLROnPlateau(CheckedOptions, ReduceLROnPlateauLRSchedule):
    """As `reduce_lr_on_plateau`: multiplies the learning rate by --lr-shrink when the validation loss at an epoch's end
    has not improved for --lr-patience epochs. The paper's rule is --lr-shrink 0.02 --lr-patience 0.

    fairseq writes the checkpoint of an epoch's end before its scheduler hears of that epoch's loss, and resumes without
    passing it on; nor does it keep the count of bad epochs. This one knows both (`resumption.hand_over_loss`). And with
    --reset-lr-scheduler it takes the --lr that it is given, as fairseq's other schedules do, not the optimizer's."""

    _missed_loss = None
    _goes_on = False  # the learning rate is what earlier updates left

    def __init__(self, cfg: ExactReduceLROnPlateauConfig, optimizer):
        check_config(cfg, ExactReduceLROnPlateauConfig)
        super().__init__(cfg, optimizer)

    def state_dict(self):
        return {**super().state_dict(), "num_bad_epochs": self.lr_scheduler.num_bad_epochs}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.lr_scheduler.num_bad_epochs = state_dict.get("num_bad_epochs", 0)  # fairseq's own rule keeps no count
        self._missed_loss = state_dict.get("missed_loss")
        self._goes_on = True

    def step(self, epoch, val_loss=None):
        """At an epoch's end, and once more when training has been resumed (without a loss)."""
        if val_loss is None:
            val_loss, self._missed_loss = self._missed_loss, None
        return super().step(epoch, val_loss)

    def step_update(self, num_updates):
        """After each update, and once when the optimizer has been loaded."""
        if num_updates > 0 and not self._goes_on:
            self._goes_on = True
            if num_updates > self.cfg.warmup_updates:
                self.optimizer.set_lr(self.cfg.lr[0])
        return super().step_update(num_updates)
