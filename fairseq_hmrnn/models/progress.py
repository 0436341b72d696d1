"""What a model must know of its training at inference, kept where every checkpoint has it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from ..annealing import SlopeSchedule


class SlopeProgress(nn.Module):
    """The annealed slope. Progress is an integer buffer: it is in every checkpoint and `.half()` leaves it alone."""

    def __init__(self, schedule: SlopeSchedule):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("progress", torch.zeros(2, dtype=torch.long))  # completed epochs, updates
        self._progress = [0, 0]  # the same on the host: reading the buffer would wait for a GPU

    @property
    def slope(self) -> float:
        return self.schedule(*self._progress)

    @property
    def num_updates(self) -> int:
        return self._progress[1]

    def set_epoch(self, epoch: int) -> None:
        """fairseq counts epochs from 1."""
        self._set(0, epoch - 1)

    def set_num_updates(self, num_updates: int) -> None:
        self._set(1, num_updates)

    def _set(self, index: int, value: int) -> None:
        if self._progress[index] != value:
            self._progress[index] = value
            self.progress[index] = value

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._progress = self.progress.tolist()


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
