"""A lexicon that is inferred while a model learns, from what its detector listens to."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from .found_rate import START, FoundRate
from .lexicon import Lexicon, Rows, Spelling
from .rate_search import find_rate, held_out_cost, spelled

WEIGHT = 5.0  # of the signal in its standard deviations, against nats of the lexicon
ROUNDS = 2  # of counting a lexicon and segmenting by it
TIMES = (0.6, 0.75, 0.9, 1.0, 1.15)  # the rate that the signal alone gives: thresholds that are compared
NEARLY = 1.01  # times the lowest cost is nearly as good


class Inferred(NamedTuple):
    """threshold: the share of places where the signal is high enough by itself. rate: that at which segments begin."""

    threshold: float
    rate: float
    lexicon: Lexicon


class FoundLexicon(FoundRate):
    """A lexicon inferred from the last places of a text, and the rates that go with it.

    told: the rate if it is known. rate: of boundaries; threshold: see Inferred; both the mean of the last two that were
    found. lexicon: None until there is one.
    """

    def __init__(self, told: Optional[float] = None):
        super().__init__()
        self.told, self.rate = told, START if told is None else told
        self.threshold, self.lexicon = self.rate, None

    def begins(self, tokens: Tensor, signal: Tensor, known: Tensor) -> Tensor:
        """bool (B, T), the places before symbols where a segment begins. tokens, signal, known: as of `remember`."""
        symbols, values, inside = (x.cpu().numpy() for x in (tokens, signal.double(), known))
        if not inside.any():
            return torch.zeros_like(known)
        scores = scored(values, inside, self.threshold)
        if self.lexicon is None:
            return torch.from_numpy((scores >= 0) & inside).to(known.device)
        order = np.argsort(~inside, axis=1, kind="stable")  # what is known to the left
        rows = Rows(np.take_along_axis(np.where(inside, symbols, -1), order, 1))
        found = self.lexicon.segment(rows, np.take_along_axis(scores, order, 1))
        begins = np.zeros_like(inside)
        np.put_along_axis(begins, order, found, 1)
        return torch.from_numpy(begins & inside).to(known.device)

    def _find(self) -> Optional[Dict[str, Any]]:
        found = infer(*self._text(), self.told)
        return None if found is None else _plain(found)

    def _take(self, found: Dict[str, Any]) -> None:
        threshold, rate, self.lexicon = _inferred(found)
        if self.told is not None:
            return
        is_first = np.isnan(self.last)
        self.threshold = threshold if is_first else (self.threshold + threshold) / 2
        self.rate = rate if is_first else (rate + self.last) / 2
        self.last = rate

    def state_dict(self) -> Dict[str, Any]:
        state = super().state_dict()
        if self.lexicon is not None:
            state["lexicon"] = _plain(Inferred(0.0, 0.0, self.lexicon))
        return state

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.lexicon is not None:
            self.lexicon = _inferred(self.lexicon).lexicon


def _plain(found: Inferred) -> Dict[str, Any]:
    """As processes send it and checkpoints have it."""
    arrays = (found.lexicon.keys, found.lexicon.counts, *found.lexicon.spelling)
    return {"rates": (found.threshold, found.rate), "arrays": [torch.from_numpy(array) for array in arrays]}


def _inferred(plain: Dict[str, Any]) -> Inferred:
    keys, counts, *spelling = (tensor.cpu().numpy() for tensor in plain["arrays"])
    return Inferred(*plain["rates"], Lexicon(keys, counts, Spelling(*spelling)))


def infer(symbols: np.ndarray, signal: np.ndarray, told: Optional[float] = None) -> Optional[Inferred]:
    """The lexicon of a text and the rates that it goes with; None where find_rate finds none.

    symbols, signal: as for find_rate. told: the threshold, if it need not be found: otherwise it is the lowest of some
    whose segments are foretold nearly best (rate_search.py).
    """
    alone = find_rate(symbols, signal) if told is None else told
    known = symbols >= 0
    if alone is None or not known.any():
        return None
    places = _places(known)
    text, inside = np.append(symbols, -1)[places], places < len(symbols)
    rows, values = Rows(text), np.append(signal, 0)[places]
    flat = np.pad(text, ((0, 0), (0, 1)), constant_values=-1).ravel()
    found = []
    for threshold in [alone] if told is not None else [alone * times for times in TIMES]:
        begins, lexicon = _rounds(rows, scored(values, inside, threshold), inside)
        if lexicon is not None:
            cost = held_out_cost(spelled(flat), flat >= 0, np.pad(begins, ((0, 0), (0, 1))).ravel())
            found.append((cost, Inferred(threshold, float(begins.sum() / inside[:, 1:].sum()), lexicon)))
    lowest = min((cost for cost, _ in found), default=0)
    return next((inferred for cost, inferred in found if cost <= NEARLY * lowest), None)


def _rounds(rows: Rows, scores: np.ndarray, inside: np.ndarray) -> Tuple[np.ndarray, Optional[Lexicon]]:
    """From the places where the signal alone is high enough: the last segmentation and its lexicon."""
    begins = (scores >= 0) & inside
    begins[:, 0] = False
    lexicon = Lexicon.of(rows, begins)
    for _ in range(ROUNDS):
        if lexicon is None:
            break
        begins = lexicon.segment(rows, scores, begins)
        lexicon = Lexicon.of(rows, begins)
    return begins, lexicon


def scored(signal: np.ndarray, inside: np.ndarray, share: float) -> np.ndarray:
    """What a segment that begins at a place gains by the signal there: 0 at the one that the highest `share` of the
    places inside exceed."""
    values = signal[inside]
    return WEIGHT * (signal - np.quantile(values, 1 - share)) / max(values.std(), 1e-6)


def _places(known: np.ndarray) -> np.ndarray:
    """(R, T): of each run of known places, their indices; behind them len(known)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8))).reshape(-1, 2)
    columns = np.arange(np.diff(edges).max())
    return np.where(columns < np.diff(edges), edges[:, :1] + columns, len(known))
