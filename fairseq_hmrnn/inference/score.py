"""How probable a model finds a text."""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple

from torch import Tensor


class _Score(NamedTuple):
    bits_per_character: float
    bits: List[float]
    symbols: List[str]


class Score(_Score):
    """bits_per_character: over the text's characters. bits: of every symbol. symbols: as in the dictionary.

    By name it has what fairseq's `score` returns, in nats: `score["positional_scores"]` (T,), `score["tokens"]` (T,),
    `score["score"]`, their mean, and None for `attention` and `alignment`.
    """

    hypothesis: Dict[str, Any]

    @classmethod
    def of(cls, tokens: Tensor, log_probs: Tensor, symbols: List[str], num_characters: int) -> Score:
        """tokens, log_probs: (T,), the indices of `symbols` and log p of each."""
        bits = (-log_probs / math.log(2)).tolist()
        score = cls(sum(bits) / num_characters, bits, symbols)
        score.hypothesis = {"tokens": tokens, "score": log_probs.mean(), "positional_scores": log_probs}
        score.hypothesis.update(attention=None, alignment=None)
        return score

    def __getitem__(self, key):
        return self.hypothesis[key] if isinstance(key, str) else super().__getitem__(key)
