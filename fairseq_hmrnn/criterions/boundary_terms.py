"""The options that name boundary regularisers, their weights and the target rates, as text."""

from __future__ import annotations

import math
from typing import List, NamedTuple, Sequence, Tuple

from .boundary_regularizers import REGULARIZERS


class Term(NamedTuple):
    """A regulariser with its weight, which goes from `start` to `end` in a straight line over `updates` updates."""

    name: str
    start: float = 1.0
    end: float = 1.0
    updates: int = 0

    def weight(self, num_updates: int) -> float:
        if num_updates >= self.updates:
            return self.end
        return self.start + (self.end - self.start) * num_updates / self.updates


def needing(need: str, terms: Sequence[Sequence[Term]]) -> List[str]:
    """The names, in order and each once, of the regularisers among the terms of all layers that need one of NEEDS."""
    names = (term.name for layer in terms for term in layer)
    return [name for name in dict.fromkeys(names) if need in REGULARIZERS[name].needs]


def parse_regularizers(text: str) -> List[List[Term]]:
    """The terms of each layer: "rate+uncertainty=.1,rate".

    An entry is `none`, or terms joined by +; a term is NAME, NAME=WEIGHT or NAME=START:END:UPDATES. ValueError with a
    remedy otherwise.
    """
    entries = [entry.strip() for entry in text.split(",")]
    return [[] if entry == "none" else list(map(_parse_term, entry.split("+"))) for entry in entries]


def _parse_term(text: str) -> Term:
    name, _, weight = text.strip().partition("=")
    if name not in REGULARIZERS:
        raise ValueError(
            f"unknown boundary regularizer {name!r}: choose from {', '.join(REGULARIZERS)} or none, such as "
            "rate+uncertainty=.1,rate"
        )
    try:
        start, end, updates = _parse_weight(weight)
    except ValueError:
        start = math.nan
    if not (start >= 0 and end >= 0 and updates >= 0 and math.isfinite(start + end)):
        raise ValueError(
            f"the weight of a boundary regularizer is a number from 0 or START:END:UPDATES, such as {name}=.1 or "
            f"{name}=0:.1:1000, not {weight!r}"
        )
    return Term(name, start, end, updates)


def _parse_weight(text: str) -> Tuple[float, float, int]:
    if not text:
        return 1.0, 1.0, 0
    if ":" not in text:
        return float(text), float(text), 0
    start, end, updates = text.split(":")
    return float(start), float(end), int(updates)


def parse_terms(text: str, rates: List[float]) -> List[List[Term]]:
    """The regularisers by layer, one entry for all layers; without rates the default is none."""
    if not rates and text == "rate":
        return [[]]
    terms = parse_regularizers(text)
    without_rate = needing("rate", terms)
    if without_rate and not rates:
        names = ", ".join(without_rate)
        raise ValueError(f"{names} in boundary-regularizers requires --boundary-rates, such as .2,.05")
    return terms


def parse_rates(text: str) -> List[float]:
    """ ".2,.05" to [0.2, 0.05]; ValueError with a remedy otherwise."""
    if not text:
        return []
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [math.nan]
    if not all(0 < rate < 1 for rate in rates):
        raise ValueError(
            f"boundary-rates must be numbers between 0 and 1, exclusive, separated by commas, not {text!r}"
        )
    return rates
