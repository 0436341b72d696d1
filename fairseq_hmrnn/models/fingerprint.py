"""Which dictionary a model was trained with, kept where every checkpoint has it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


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
                "data folder: use the dict.txt it was trained with (fairseq-hmrnn prepare text --dict FILE)"
            )
        return state_dict
