"""The rate of boundaries that a signal itself gives: that at which its segments predict the text best.

A signal says of every place of a text how likely a segment begins there. At each rate, the highest places cut the text
into other segments, and of these a model is made: how often one follows another, backed off to how often it comes at
all, and that to its spelling. A segment is predicted from the counts of all others, itself left out, so that neither a
few long ones win, which never come again, nor many short ones, which say little of what follows. Where rates do nearly
as well as the best, the lowest of them is taken. To choose the threshold on a branching entropy by what segments it
makes: Zhikov et al. 2010; absolute discounting with leaving one out: Ney et al. 1994; the simplest of models that do
nearly as well: Breiman et al. 1984. What else was tried stands in docs/boundaries.md.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple, Union

import numpy as np

from ..text import code_points, text_of

RATES = 0.04 * 1.06 ** np.arange(50)  # those that are compared; the last is .70
NEARLY = 1.02  # times the lowest cost is nearly as good
DISCOUNT = 0.8  # of every count
SPELLING_PRIOR = 5.0  # the weight of a symbol's frequency, in symbols, against what follows the one before it
FEWEST = 2000  # places with a signal from which on a rate is looked for
PREDICTED = 0.25  # least share of the symbols to be predicted: in short rows, long segments are cut short

Many = Union[int, np.ndarray]  # one number, or one for each place


def find_rate(symbols: np.ndarray, signal: np.ndarray) -> Optional[float]:
    """The best share of the places at which a segment begins; None where fewer than FEWEST are known, or where no rate
    has segments so short that rows are more than their ends.

    symbols: (S,) whole numbers, negative where nothing is known, which is between the rows of a text. signal: (S,), of
    the place before each symbol, read where it is known; inf where a segment begins for certain, as where lines end:
    such places count in no rate.
    """
    known = symbols >= 0
    ranked = np.sort(signal[known & np.isfinite(signal)])
    if known.sum() < FEWEST or not len(ranked):
        return None
    text = as_characters(symbols)
    counts = np.maximum(np.rint(RATES * len(ranked)), 1).astype(int)
    costs = np.array([held_out_cost(text, known, signal >= ranked[-count]) for count in counts])
    best = int(costs.argmin())
    if not np.isfinite(costs[best]):
        return None
    while best > 0 and costs[best - 1] <= NEARLY * costs.min():
        best -= 1
    return float(RATES[best])


def as_characters(symbols: np.ndarray) -> str:
    """Whole numbers from -1, (S,), as a character each."""
    return text_of(np.maximum(symbols, -1) + 1)


def held_out_cost(text: str, known: np.ndarray, begins: np.ndarray) -> float:
    """Nats a symbol at which segments are predicted, each by the counts of all others.

    text: S symbols. known: (S,) bool. begins: (S,) bool, where a segment begins. Segments at the ends of a row may
    be cut short, and none is predicted without a whole one before it. Infinite if less than PREDICTED of the text is.
    """
    opens = known & ~np.append(False, known[:-1])  # rows
    begins = (begins & known) | opens
    first = np.flatnonzero(begins)
    stop = np.flatnonzero(known & np.append(begins[1:] | ~known[1:], True)) + 1
    whole = ~opens[first] & np.append(known, False)[stop]
    types: Dict[str, int] = {}
    pieces = (text[start:end] for start, end in zip(first[whole].tolist(), stop[whole].tolist()))
    kind = np.full(len(first), -1)
    kind[whole] = [types.setdefault(piece, len(types)) for piece in pieces]
    predicted = whole[1:] & whole[:-1]
    length = (stop - first)[1:][predicted].sum()
    if length < max(PREDICTED * known.sum(), 1):
        return np.inf
    every = kind[whole]
    spelling = spelling_cost(list(types), np.bincount(every, minlength=len(types)) == 1)
    log_p = _log_of_segments(every, kind[:-1][predicted], kind[1:][predicted], spelling)
    return float(-log_p.sum() / length)


def _log_of_segments(every: np.ndarray, before: np.ndarray, after: np.ndarray, spelling: np.ndarray) -> np.ndarray:
    """log p(after | before), (N,), without the counts of this pair itself.

    every, before, after: types of all segments and of the N pairs, 0 to K - 1. spelling: (K,), -log p of each type.
    """
    count = np.bincount(every, minlength=len(spelling))[after] - 1
    types = len(spelling) - (count == 0)
    with np.errstate(divide="ignore"):
        log_p = discounted(count, max(len(every) - 1, 1), types, -spelling[after])
    count, total, kinds = (counts - 1 for counts in _pair_counts(before, after, len(spelling)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, discounted(count, total, kinds + (count > 0), log_p), log_p)


def discounted(count: np.ndarray, total: Many, kinds: Many, log_backoff: np.ndarray) -> np.ndarray:
    """log of (max(count - d, 0) + d kinds backoff) / total."""
    log_own = np.log(np.maximum(count - DISCOUNT, 0) / total)
    return np.logaddexp(log_own, np.log(DISCOUNT * kinds / total) + log_backoff)


def runs(known: np.ndarray) -> np.ndarray:
    """(N, 2), where each run of true places of known (S,) begins, and the place after its last one."""
    edges = np.diff(np.concatenate([[False], known, [False]]).astype(np.int8))
    return np.flatnonzero(edges).reshape(-1, 2)


def spelling_cost(types: List[str], once: np.ndarray) -> np.ndarray:
    """-log p of the spelling of each type, (K,) in nats, by a bigram of symbols with a mark at both ends of a type.

    once: bool (K,), which came once: left out, such a type is none, and each of its pairs counts one time less.
    Otherwise, where symbols are thousands, long strings that never come again would predict themselves best.
    """
    written = "\0" + "\0".join(types) + "\0"
    _, letters = np.unique(code_points(written), return_inverse=True)
    before, after = letters[:-1], letters[1:]
    size, starts = int(letters.max()) + 1, before == 0
    own = once[starts.cumsum() - 1].astype(float)
    frequency = (np.bincount(after, minlength=size)[after] + 1 - own) / (len(after) + size)
    count, total, _ = _pair_counts(before, after, size)
    p = (count - own + SPELLING_PRIOR * frequency) / (total - own + SPELLING_PRIOR)
    return np.add.reduceat(-np.log(p), np.flatnonzero(starts))


def _pair_counts(before: np.ndarray, after: np.ndarray, size: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of N pairs of whole numbers below size, (N,): how often it comes, how often its first one does, and in
    how many kinds of pair that does."""
    pairs, inverse, counts = np.unique(before.astype(np.int64) * size + after, return_inverse=True, return_counts=True)
    firsts, kinds = np.bincount(before, minlength=size), np.bincount(pairs // size, minlength=size)
    return counts[inverse], firsts[before], kinds[before]
