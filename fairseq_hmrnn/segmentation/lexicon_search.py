"""The lexicon of a text, and how often its segments begin, by a signal of where they do."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .lexicon import Lexicon, Rows
from .rate_search import as_characters, find_rate, held_out_cost, runs

WEIGHT = 10.0  # nats for each standard deviation of the signal, beside the nats of the lexicon
WEIGHT_OF_DETECTOR = 3.0  # the same if the signal is z~ of a detector that was taught to find segments
CERTAIN = 1000.0  # nats: the score of a place where a segment begins for certain
ROUNDS = 3  # of counting a lexicon and segmenting by it
TIMES = (0.6, 0.75, 0.9, 1.0, 1.15, 1.3)  # the rate that the signal alone gives: rates that are compared
LARGEST = 0.95  # of thresholds
NEARLY, NEARLY_OF_DETECTOR = 1.005, 1.01  # times the lowest cost is nearly as good
WINDOW, PIECE = 500, 300_000  # symbols of a row, and of those that share a lexicon, of a text that is segmented
SAMPLE = 40_000  # symbols in which its rate is looked for


class Inferred(NamedTuple):
    """threshold: the share of places whose score by the signal alone is above 0. rate: the share of places at which
    segments begin, by signal and lexicon."""

    threshold: float
    rate: float
    lexicon: Lexicon


def infer(symbols: np.ndarray, signal: np.ndarray, given: Optional[float] = None) -> Optional[Inferred]:
    """The lexicon of a text and the rates that it goes with; None where find_rate finds none.

    symbols, signal: as for find_rate. given: the rate, if it need not be found: otherwise it is the lowest of some
    whose segments are predicted nearly best (rate_search.py).
    """
    alone = find_rate(symbols, signal) if given is None else given
    known = symbols >= 0
    if alone is None or not known.any():
        return None
    places = _places(known)
    text, inside = np.append(symbols, -1)[places], places < len(symbols)
    rows, values = Rows(text), np.append(signal, 0)[places]
    free = inside & np.isfinite(values)
    found = []
    for rate in [alone] if given is not None else [alone * times for times in TIMES if alone * times < 1]:
        begins = (scored(values, inside, rate) >= 0) & inside
        begins, inferred = _rounds(rows, free, begins, rate, lambda share: scored(values, inside, share))
        if inferred is not None:
            found.append((_cost(rows, begins), inferred))
    return _first_of_nearly_best(found, NEARLY)


def _cost(rows: Rows, begins: np.ndarray) -> float:
    """held_out_cost of a segmentation of rows."""
    symbols = np.pad(rows.symbols, ((0, 0), (0, 1)), constant_values=-1).ravel()
    return held_out_cost(as_characters(symbols), symbols >= 0, np.pad(begins, ((0, 0), (0, 1))).ravel())


def _first_of_nearly_best(found: Sequence[Tuple[float, Any]], nearly: float) -> Any:
    """What has the first cost that is nearly the lowest, of pairs in the order of rates; None if there is none."""
    lowest = min((cost for cost, _ in found), default=0)
    return next((each for cost, each in found if cost <= nearly * lowest), None)


def _rounds(
    rows: Rows, free: np.ndarray, begins: np.ndarray, rate: float, scores: Callable[[float], np.ndarray]
) -> Tuple[np.ndarray, Optional[Inferred]]:
    """From one segmentation to another whose segments begin at nearly this rate, and what is inferred from that.

    free: bool (R, T), the places that the rate is a share of. scores: (R, T) by the threshold.
    """
    threshold, places = rate, max(free[:, 1:].sum(), 1)
    begins[:, 0] = False
    lexicon = Lexicon.of(rows, begins)
    for _ in range(ROUNDS):
        if lexicon is None:
            return begins, None
        begins = lexicon.segment(rows, scores(threshold), begins)
        lexicon, share = Lexicon.of(rows, begins), float((begins & free).sum() / places)
        threshold = min(threshold * rate / max(share, 1e-6), LARGEST)
    return begins, None if lexicon is None else Inferred(threshold, share, lexicon)


def resegmented(symbols: np.ndarray, begins: np.ndarray, z_tilde: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """bool (S,), where segments of a text begin by a detector and a lexicon together.

    symbols: (S,) whole numbers from 0. begins: bool (S,), by the detector; z_tilde: its probabilities of that. certain:
    bool (S,), where one begins for certain, as where lines end. The rate is that of the detector elsewhere, or a
    multiple of it that does better in the first SAMPLE symbols. Of a long text, each PIECE has a lexicon of its own.
    """
    begins = begins | certain
    if not begins.any():
        return begins
    numbered = np.unique(symbols, return_inverse=True)[1]
    text, found = (numbered, begins, np.where(certain, np.inf, z_tilde)), np.zeros(len(symbols), dtype=bool)
    sample = _Piece(*(x[:SAMPLE] for x in text))
    tried = [(sample.segmented(times)[0], times) for times in TIMES]
    times = _first_of_nearly_best([each for each in tried if np.isfinite(each[0])], NEARLY_OF_DETECTOR) or 1.0
    for start in range(0, len(symbols), PIECE):
        piece = slice(start, start + PIECE)
        _, found[piece] = _Piece(*(x[piece] for x in text)).segmented(times)
    return found


class _Piece:
    """A piece of a text laid out in rows: symbols, begins and signal as for resegmented and find_rate, (S,)."""

    def __init__(self, symbols: np.ndarray, begins: np.ndarray, signal: np.ndarray):
        self.begins, free = begins, np.isfinite(signal)
        self.rate = float(begins[free].mean()) if free.any() else 0.0
        known = np.arange(len(symbols) + len(symbols) // WINDOW) % (WINDOW + 1) < WINDOW  # a gap after each row
        places = _places(known)
        self.places = np.where(places < len(known), places - places // (WINDOW + 1), len(symbols))
        self.inside = self.places < len(symbols)
        self.rows = Rows(np.append(symbols, -1)[self.places])
        self.signal, self.free = np.append(signal, 0.0)[self.places], np.append(free, False)[self.places]

    def segmented(self, times: float) -> Tuple[float, np.ndarray]:
        """The cost of the segmentation at so many times the detector's rate, infinite where nothing is inferred, and
        where segments begin in it."""
        rate = self.rate * times
        if not 0 < rate < LARGEST:
            return np.inf, self.begins
        again = np.append(self.begins, False)[self.places]
        again, inferred = _rounds(self.rows, self.free, again, rate, self._scores)
        if inferred is None:
            return np.inf, self.begins
        cost = _cost(self.rows, again)
        again[:, 0] = self.begins[self.places[:, 0]]  # of which a row says nothing
        found = np.zeros(len(self.begins), dtype=bool)
        found[self.places[self.inside]] = again[self.inside]
        return cost, found

    def _scores(self, share: float) -> np.ndarray:
        return scored(self.signal, self.inside, share, WEIGHT_OF_DETECTOR)


def scored(signal: np.ndarray, inside: np.ndarray, share: float, weight: float = WEIGHT) -> np.ndarray:
    """The score of a segment that begins at each place: `weight` times the signal, in standard deviations above its
    (1 - share) quantile over the places inside. CERTAIN where the signal is inf; such places do not count in the
    quantile."""
    certain = np.isposinf(signal)
    values = signal[inside & ~certain]
    if not len(values):
        return np.where(certain, CERTAIN, 0.0)
    return np.where(certain, CERTAIN, weight * (signal - np.quantile(values, 1 - share)) / max(values.std(), 1e-6))


def _places(known: np.ndarray) -> np.ndarray:
    """(R, T): of each run of known places their indices, after them len(known). Of a run longer than WINDOW rows are
    made: otherwise one long line among many short ones would be as good as padding alone."""
    first, stop = runs(known).T
    rows = -((first - stop) // WINDOW)  # of each run
    start = np.repeat(first, rows) + WINDOW * (np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows))
    length = np.minimum(np.repeat(stop, rows) - start, WINDOW)[:, None]
    columns = np.arange(length.max())
    return np.where(columns < length, start[:, None] + columns, len(known))
