"""What a model must know of its training at inference, kept where every checkpoint has it."""

from __future__ import annotations

import hashlib
from typing import Union

import torch
from torch import Tensor, nn

from ..annealing import SlopeSchedule
from ..ops import capturing


class SlopeProgress(nn.Module):
    """The annealed slope. Progress is an integer buffer: it is in every checkpoint and `.half()` leaves it alone."""

    def __init__(self, schedule: SlopeSchedule):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("progress", torch.zeros(2, dtype=torch.long))  # completed epochs, updates
        self._progress = [0, 0]  # the same on the host: reading the buffer would wait for a GPU
        # Slope and updates for recorded graphs: a number would be a constant of the graph, compiled anew when it grows.
        self._as_tensors = torch.tensor([schedule(0, 0), 0], dtype=torch.float64)

    @property
    def slope(self) -> Union[float, Tensor]:
        """A number; where a graph is recorded, a tensor () of float64 on the host."""
        return self._as_tensors[0].clone() if capturing() else self.schedule(*self._progress)

    @property
    def num_updates(self) -> Union[int, Tensor]:
        """As `slope`, in int64."""
        return self._as_tensors[1].long() if capturing() else self._progress[1]

    def set_epoch(self, epoch: int) -> None:
        """fairseq counts epochs from 1."""
        self._set(0, epoch - 1)

    def set_num_updates(self, num_updates: int) -> None:
        self._set(1, num_updates)

    def _set(self, index: int, value: int) -> None:
        if self._progress[index] != value:
            self._progress[index] = value
            self.progress[index] = value
            self._progress_changed()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._progress = self.progress.tolist()
        self._progress_changed()

    def _progress_changed(self) -> None:
        self._as_tensors[0], self._as_tensors[1] = self.schedule(*self._progress), self._progress[1]


class DictionaryFingerprint(nn.Module):
    """Refuses a checkpoint that was trained with another dictionary, even one of the same size."""

    def __init__(self, dictionary):
        super().__init__()
        digest = hashlib.sha256("\n".join(dictionary.symbols).encode()).digest()
        fingerprint = int.from_bytes(digest[:6], "little")  # 48 bits: averaging checkpoints sums integers
        self.register_buffer("fingerprint", torch.tensor(fingerprint))
        self.num_symbols = len(dictionary)

    def upgrade_state_dict_named(self, state_dict, name):
        """Called by fairseq before it loads a checkpoint, so that this error comes before any shape mismatch."""
        found = state_dict.get(f"{name}.fingerprint")
        if found is not None and found.item() != self.fingerprint.item():
            raise ValueError(
                f"the checkpoint was trained with another dictionary than the {self.num_symbols} symbols of this "
                "data folder: use the dict.txt it was trained with (prepare_text.py --dict FILE)"
            )
        return state_dict
