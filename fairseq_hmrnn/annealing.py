"""Slope annealing: the hard sigmoid's slope as a pure function of training progress."""

from __future__ import annotations

from typing import NamedTuple


class SlopeSchedule(NamedTuple):
    """slope = min(maximum, start + per_epoch * completed epochs + per_update * updates).

    The paper's schedules: PTB SlopeSchedule(1, 5, per_epoch=0.04), IAM-OnDB SlopeSchedule(1, 3, per_epoch=0.004),
    Text8 and enwik8 SlopeSchedule(1, 1).
    """

    start: float = 1.0
    maximum: float = 5.0
    per_epoch: float = 0.0
    per_update: float = 0.0

    def check(self) -> SlopeSchedule:
        """Self, or ValueError for a slope that is not positive or that would fall."""
        if not 0 < self.start <= self.maximum:
            raise ValueError(f"slope ({self.start}) must be positive and at most slope-max ({self.maximum})")
        if self.per_epoch < 0 or self.per_update < 0:
            raise ValueError("slope-per-epoch and slope-per-update must not be negative: the slope only grows")
        return self

    def __call__(self, completed_epochs: int, num_updates: int) -> float:
        return min(self.maximum, self.start + self.per_epoch * completed_epochs + self.per_update * num_updates)
