"""How probable a model finds a text."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple


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

    def __new__(cls, bits_per_character, bits, symbols, hypothesis):
        score = super().__new__(cls, bits_per_character, bits, symbols)
        score.hypothesis = hypothesis
        return score

    def __getitem__(self, key):
        return self.hypothesis[key] if isinstance(key, str) else super().__getitem__(key)
