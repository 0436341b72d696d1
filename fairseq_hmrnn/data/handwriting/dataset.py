"""Prepared lines as fairseq's datasets give them to a model."""

from __future__ import annotations

import math
from typing import Dict, List

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor

from .store import CHARACTER, WORD, Strokes

GOLD = ("pen_up", "character", "word")  # the last axis of a batch's gold boundaries


class HandwritingDataset(FairseqDataset):
    """Lines of pen strokes; a line of N points is N - 1 predictions, each of the step after those read.

    longest: lines of more predictions are left out. shuffle: lines of the same length come in random order.
    ValueError where no line is left.
    """

    def __init__(self, strokes: Strokes, longest: float = math.inf, shuffle: bool = True):
        self.strokes = strokes
        self.lines = np.flatnonzero(strokes.lengths - 1 <= longest)
        if not len(self.lines):
            raise ValueError(f"no line has at most {longest} steps: raise --max-line-steps")
        self.sizes = strokes.lengths[self.lines] - 1
        self.shuffle = shuffle

    def __getitem__(self, index: int) -> Dict[str, Tensor]:
        """steps: (N, 3). gold: (N, 3) bool, whether a stroke, a character, a word ends; known: (3,) bool."""
        line = self.lines[index]
        place = self.strokes.line(line)
        steps, marks, known = self.strokes.steps[place], self.strokes.marks[place], self.strokes.known[line]
        gold = np.stack([steps[:, 2] > 0, marks & CHARACTER > 0, marks & WORD > 0], axis=1)
        return {
            "id": torch.tensor(index),
            "steps": torch.from_numpy(steps.copy()),
            "gold": torch.from_numpy(gold),
            "known": torch.tensor([True, bool(known & CHARACTER), bool(known & WORD)]),
        }

    def __len__(self) -> int:
        return len(self.sizes)

    def collater(self, samples: List[Dict[str, Tensor]]) -> Dict:
        """A batch: net_input with steps (B, T, 3) and valid (B, T) bool; target (B, T, 3), each step's successor, in
        float64, which fairseq's --fp16 and --bf16 leave as it is; gold and known (B, T, 3) bool, see GOLD."""
        if not samples:
            return {}
        lengths = [len(sample["steps"]) - 1 for sample in samples]
        steps = torch.nn.utils.rnn.pad_sequence([sample["steps"][:-1] for sample in samples], batch_first=True)
        target = torch.nn.utils.rnn.pad_sequence([sample["steps"][1:] for sample in samples], batch_first=True)
        gold = torch.nn.utils.rnn.pad_sequence([sample["gold"][:-1] for sample in samples], batch_first=True)
        valid = torch.arange(steps.size(1)) < torch.tensor(lengths).unsqueeze(1)
        known = torch.stack([sample["known"] for sample in samples])
        return {
            "id": torch.stack([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(lengths),
            "net_input": {"steps": steps, "valid": valid},
            "target": target.double(),
            "gold": gold,
            "known": known.unsqueeze(1) & valid.unsqueeze(-1),
        }

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices) -> np.ndarray:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """By length; lines of the same length in random order, so that batches differ from seed to seed."""
        order = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return order[np.argsort(self.sizes[order], kind="stable")]
