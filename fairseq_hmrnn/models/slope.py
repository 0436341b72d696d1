"""Slope annealing: the hard sigmoid's slope as a pure function of training progress, which every checkpoint has."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from ..ops import capturing


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


class SlopeProgress(nn.Module):
    """The annealed slope. Progress is an integer buffer: it is in every checkpoint and `.half()` leaves it alone.

    Recorded graphs follow `set_epoch`, `set_num_updates`, loading and what a call outside of them has read.
    """

    progress: Tensor

    def __init__(self, schedule: SlopeSchedule):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("progress", torch.zeros(2, dtype=torch.long))  # completed epochs, updates
        # The same on the host, for reading the buffer would wait for a GPU, and of which buffer it is the same.
        self._progress, self._read = [0, 0], (self.progress, self._changes)
        # Slope and updates for recorded graphs: a number would be a constant of the graph, compiled anew when it grows.
        self._as_tensors = torch.tensor([schedule(0, 0), 0], dtype=torch.float64)

    @property
    def slope(self) -> Union[float, Tensor]:
        """A number; where a graph is recorded, a tensor () of float64 on the host."""
        return self._as_tensors[0].clone() if capturing() else self.schedule(*self._on_host())

    @property
    def num_updates(self) -> Union[int, Tensor]:
        """As `slope`, in int64."""
        return self._as_tensors[1].long() if capturing() else self._on_host()[1]

    def set_epoch(self, epoch: int) -> None:
        """fairseq counts epochs from 1."""
        self._set(0, epoch - 1)

    def set_num_updates(self, num_updates: int) -> None:
        self._set(1, num_updates)

    def _set(self, index: int, value: int) -> None:
        if self._on_host()[index] != value:
            self._progress[index] = value
            self.progress[index] = value
            self._progress_changed()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._take(self.progress.tolist())

    def _on_host(self) -> List[int]:
        """The buffer's numbers. Averages of models and torch's distributed wrapper write to it too: on a CPU it is read
        every time, on a GPU where it is another one or torch has counted a change, which it does not of all."""
        if self.progress.device.type == "cpu":
            found = self.progress.tolist()
            if found != self._progress:
                self._take(found)
        elif not self.progress.is_meta:
            buffer, version = self._read
            if buffer is not self.progress or version != self._changes:
                self._take(self.progress.tolist())
        return self._progress

    @property
    def _changes(self) -> Optional[int]:
        """How often torch has counted a change of the buffer; None in inference mode, where it does not."""
        return None if self.progress.is_inference() else self.progress._version

    def _take(self, progress: List[int]) -> None:
        self._progress = progress
        self._progress_changed()

    def _progress_changed(self) -> None:
        self._as_tensors[0], self._as_tensors[1] = self.schedule(*self._progress), self._progress[1]
        self._read = self.progress, self._changes
