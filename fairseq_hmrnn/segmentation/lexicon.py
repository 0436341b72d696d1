"""A lexicon of segments, and the best segmentation of a text by it and by a signal.

A lexicon holds how often each segment occurs in a segmentation. One that occurs c times of N has the probability
    (max(c - d, 0) + d K p(spelling)) / N,
K the number of types and p(spelling) a bigram of symbols estimated from the types, so that a rare string is paid for by
its spelling. The best segmentation has the highest sum of log-probabilities of segments and scores of the places at
which they begin; it is found by dynamic programming (Viterbi 1967), and a new lexicon is counted in it. To infer a
lexicon so: Brent 1999; by a Dirichlet process, whose base is the spelling: Goldwater et al. 2009; discounted and with
leaving one out: Ney et al. 1994. Here the signal says what a lexicon alone gets wrong.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

import numpy as np

from .rate_search import SPELLING_PRIOR, discounted

LONGEST = 16  # symbols of a segment
CUT_SHORT = 1.25  # cost per symbol of a segment cut by a row's edge, in mean spelling costs of a symbol

_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xD1B54A32D192ED03], dtype=np.uint64).view(np.int64)  # odd, otherwise any


class Spelling(NamedTuple):
    """A bigram of symbols, of which 0 marks both ends of a segment and symbol s is s + 1.

    pairs: (P,) codes of those that came, in order. counts: (P,). before_counts: (S,) how often each came before
    another. after_counts: (S,) how often each came after another. The last of the S stands for all that never came.
    """

    pairs: np.ndarray
    counts: np.ndarray
    before_counts: np.ndarray
    after_counts: np.ndarray

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray) -> Spelling:
        """Estimated from pairs, (N,) each."""
        size = int(max(before.max(), after.max())) + 2
        pairs, counts = np.unique(before.astype(np.int64) * size + after, return_counts=True)
        return cls(pairs, counts, np.bincount(before, minlength=size), np.bincount(after, minlength=size))

    @property
    def log_p_by_symbol(self) -> float:
        """The mean over the pairs."""
        size = len(self.before_counts)
        return float((self.counts * self.log_p(self.pairs // size, self.pairs % size)).sum() / self.counts.sum())

    def log_p(self, before: np.ndarray, after: np.ndarray, less: int = 0) -> np.ndarray:
        """log p(after | before), of two arrays of one shape, all pairs counted `less` times less."""
        size = len(self.before_counts)
        before, after = np.minimum(before, size - 1), np.minimum(after, size - 1)
        count = _look_up(self.pairs, self.counts, before.astype(np.int64) * size + after)
        frequency = np.maximum(self.after_counts[after] + 1 - less, 1) / (self.after_counts.sum() + size)
        first = np.maximum(self.before_counts[before] - less, 0)
        return np.log((np.maximum(count - less, 0) + SPELLING_PRIOR * frequency) / (first + SPELLING_PRIOR))


class Lexicon(NamedTuple):
    """keys: (K,) of the types (see Rows), in order. counts: (K,) how often each came."""

    keys: np.ndarray
    counts: np.ndarray
    spelling: Spelling

    @classmethod
    def of(cls, rows: Rows, begins: np.ndarray) -> Optional[Lexicon]:
        """Counted in a segmentation of rows; None if that has no whole segment. begins: bool (R, T)."""
        row, stop, length = rows.segments(begins)
        if not len(row):
            return None
        keys, chosen, counts = np.unique(rows.keys[row, stop, length], return_index=True, return_counts=True)
        row, stop, length = row[chosen], stop[chosen], length[chosen]
        before, after = [rows.symbols[row, stop] + 1], [np.zeros_like(row)]
        for back in range(LONGEST):
            row, stop, length = (x[length >= back] for x in (row, stop, length))
            previous = rows.symbols[row, stop - back - 1] + 1
            before.append(np.where(length == back, 0, previous))
            after.append(rows.symbols[row, stop - back] + 1)
        return cls(keys, counts, Spelling.of(np.concatenate(before), np.concatenate(after)))

    def log_p(self, rows: Rows, begins: Optional[np.ndarray] = None) -> np.ndarray:
        """(R, T, LONGEST): of the segment that ends at a place, by its length less one; -inf where there is none.

        begins: the segmentation that the lexicon was counted in; each of its segments is then left out of its own
        count and, if it came once, out of the spelling.
        """
        count, spelled = _look_up(self.keys, self.counts, rows.keys), self._spelled(rows)
        if begins is not None:
            own = rows.segments(begins)
            count[own] -= 1
            spelled[own] = np.where(count[own] == 0, self._spelled(rows, 1)[own], spelled[own])
        with np.errstate(divide="ignore"):
            log_p = discounted(count, self.counts.sum(), len(self.keys), spelled)
        return np.where(rows.whole, log_p, -np.inf)

    def segment(self, rows: Rows, scores: np.ndarray, begins: Optional[np.ndarray] = None) -> np.ndarray:
        """The best segmentation, as best_segmentation has it. begins: as of log_p."""
        return best_segmentation(rows, self.log_p(rows, begins), scores, CUT_SHORT * self.spelling.log_p_by_symbol)

    def _spelled(self, rows: Rows, less: int = 0) -> np.ndarray:
        """(R, T, LONGEST): log p of the spelling. less: as of Spelling.log_p."""
        symbols = np.maximum(rows.symbols, 0) + 1
        mark = np.zeros_like(symbols)
        first, last = self.spelling.log_p(mark, symbols, less), self.spelling.log_p(symbols, mark, less)
        inner = np.zeros(symbols.shape)
        inner[:, 1:] = self.spelling.log_p(symbols[:, :-1], symbols[:, 1:], less)
        total = inner.cumsum(1)
        spelled = np.zeros((*symbols.shape, LONGEST))
        for back in range(min(LONGEST, symbols.shape[1])):
            start = slice(0, symbols.shape[1] - back)
            spelled[:, back:, back] = first[:, start] + total[:, back:] - total[:, start] + last[:, back:]
        return spelled


class Rows:
    """Rows of a text, each of one piece, and a key of every string in them of up to LONGEST symbols.

    symbols: (R, T) whole numbers, those of a row at its left, negative after them. lengths: (R,). whole: bool
    (R, T, LONGEST), where the string that ends at a place and has so many symbols and one more lies within the row.
    keys: int64, of the same shape; equal strings have equal keys, different ones practically never.
    """

    def __init__(self, symbols: np.ndarray):
        self.symbols, known = symbols, symbols >= 0
        self.lengths = known.sum(1)
        places = np.arange(symbols.shape[1])
        self.whole = known[:, :, None] & (places[:, None] >= np.arange(LONGEST))
        self.keys = np.zeros((*symbols.shape, LONGEST), dtype=np.int64)
        by, of = _MULTIPLIERS
        own = (symbols + 2).astype(np.int64) * of
        self.keys[:, :, 0] = own * by
        for more in range(1, min(LONGEST, symbols.shape[1])):
            self.keys[:, more:, more] = (self.keys[:, more - 1 : -1, more - 1] + own[:, more:]) * by

    def segments(self, begins: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """From a segmentation, begins (R, T), the segments that are whole and not too long: row, last place and
        length - 1.

        The first and the last segment of a row may be cut short.
        """
        row, start = np.nonzero(begins)
        stop, same = start[1:] - 1, row[1:] == row[:-1]
        length = stop - start[:-1]
        fits = same & (length < LONGEST)
        return row[:-1][fits], stop[fits], length[fits]


def best_segmentation(rows: Rows, log_p: np.ndarray, scores: np.ndarray, cut_short: float) -> np.ndarray:
    """bool (R, T), where a segment begins, but for the first of a row.

    log_p: (R, T, LONGEST) of the segments (Lexicon). scores: (R, T) of a segment that begins at a place.
    cut_short: log p per symbol of the first and the last segment of a row, of which more may stand outside it.
    """
    num_rows, size = rows.symbols.shape
    best = np.full((num_rows, size + 1), -np.inf)  # of the text before a place, with the score of a segment there
    best[:, 0] = 0
    length = np.ones((num_rows, size + 1), dtype=np.int64)
    every = np.arange(num_rows)
    for stop in range(1, size + 1):
        longest = min(LONGEST, stop)
        reached = best[:, stop - longest : stop][:, ::-1] + log_p[:, stop - 1, :longest]
        if stop <= LONGEST:
            reached[:, stop - 1] = cut_short * stop
        chosen = reached.argmax(1)
        length[:, stop] = chosen + 1
        best[:, stop] = reached[every, chosen] + (scores[:, stop] if stop < size else 0)
    tail = np.arange(1, LONGEST + 1)
    before = rows.lengths[:, None] - tail
    reached = np.where(before >= 0, best[every[:, None], np.maximum(before, 0)] + cut_short * tail, -np.inf)
    place = np.maximum(rows.lengths - reached.argmax(1) - 1, 0)
    begins = np.zeros((num_rows, size), dtype=bool)
    while place.any():
        begins[every, place] |= place > 0
        place = np.maximum(place - np.where(place > 0, length[every, place], 0), 0)
    return begins


def _look_up(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each came, of the shape of `wanted`; 0 for a key that is not there. keys: in order."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)
