"""Which dictionary a model was trained with, kept where every checkpoint has it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

REMEDIES = {
    "": "dict.txt it was trained with (fairseq-hmrnn prepare text --dict FILE)",
    "source": "dict.LANG.txt it was trained with (fairseq-preprocess --srcdict FILE)",
    "target": "dict.LANG.txt it was trained with (fairseq-preprocess --tgtdict FILE)",
}


class DictionaryFingerprint(nn.Module):
    """Refuses a checkpoint that was trained with another dictionary, even one of the same size. A checkpoint that is
    older than the fingerprint of its module is taken as it is.

    side: "source" or "target" of a translation, "" of a language model.
    """

    fingerprint: Tensor

    def __init__(self, dictionary, side: str = ""):
        super().__init__()
        digest = hashlib.sha256("\n".join(dictionary.symbols).encode()).digest()
        fingerprint = int.from_bytes(digest[:6], "little")  # 48 bits: averaging checkpoints sums integers
        self.register_buffer("fingerprint", torch.tensor(fingerprint))
        self.num_symbols, self.side = len(dictionary), side

    def upgrade_state_dict_named(self, state_dict, name):
        """Called by fairseq before it loads a checkpoint, so that this error comes before any shape mismatch."""
        found = state_dict.setdefault(f"{name}.fingerprint", self.fingerprint.clone())
        if found.item() != self.fingerprint.item():
            kind = f"{self.side} dictionary".strip()
            raise ValueError(
                f"the checkpoint was trained with another {kind} than the {self.num_symbols} symbols of this data "
                f"folder: use the {REMEDIES[self.side]}"
            )
        return state_dict
