"""A lexicon and the best segmentation by it, against direct computation and every segmentation of short rows."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from fairseq_hmrnn.segmentation.lexicon import LONGEST, Lexicon, Rows, best_segmentation
from fairseq_hmrnn.segmentation.rate_search import DISCOUNT, SPELLING_PRIOR

TEXT = ["abcabd", "abcab", "ddabcab", "a", "babcabdabc"]


def rows_of(lines, begins=()):
    """Rows of letters, and where in each segments begin."""
    width = max(map(len, lines))
    symbols = np.array([[ord(c) - ord("a") for c in line] + [-1] * (width - len(line)) for line in lines])
    where = np.zeros(symbols.shape, dtype=bool)
    for row, places in enumerate(begins):
        where[row, list(places)] = True
    return Rows(symbols), where


def direct_p(words, word, own):
    """Of a segment by the counts of `words`, without one of them if it is its own, which if it came once is left out of
    the spelling too: each of its pairs counts one time less."""
    count, types = Counter(words), set(words)
    pairs = [pair for each in types for pair in zip([None, *each], [*each, None])]
    pair, first, frequency = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    size = 1 + max(ord(c) - ord("a") + 1 for each in types for c in each) + 1  # marks, symbols, and all others

    def p(a, b):
        less = int(own and count[word] == 1)
        share = (frequency[b] + 1 - less) / (len(pairs) + size)
        return (pair[a, b] - less + SPELLING_PRIOR * share) / (first[a] - less + SPELLING_PRIOR)

    spelling = math.prod(p(a, b) for a, b in zip([None, *word], [*word, None]))
    return (max(count[word] - own - DISCOUNT, 0) + DISCOUNT * len(types) * spelling) / len(words)


BEGINS = [(2, 3, 5), (1, 3), (2, 4), (), (1, 4, 6, 7)]
WHOLE = {(0, 2): "c", (0, 3): "ab", (1, 1): "bc", (2, 2): "ab", (4, 1): "abc", (4, 4): "ab", (4, 6): "d"}


def test_probabilities_equal_direct_computation():
    """Of every string in the rows; WHOLE are the segments whose both ends lie in a row, by row and first place."""
    rows, begins = rows_of(TEXT, BEGINS)
    lexicon = Lexicon.of(rows, begins)
    assert sorted(lexicon.counts) == [1, 1, 1, 1, 3]
    for left_out in (None, begins):
        log_p = lexicon.log_p(rows, left_out)
        for row, stop, length in itertools.product(range(5), range(1, 11), range(1, LONGEST + 1)):
            start = stop - length
            if start < 0 or stop > len(TEXT[row]):
                assert log_p[row, stop - 1, length - 1] == -np.inf
                continue
            word = TEXT[row][start:stop]
            own = left_out is not None and WHOLE.get((row, start)) == word
            expected = math.log(direct_p(list(WHOLE.values()), word, own))
            assert log_p[row, stop - 1, length - 1] == pytest.approx(expected, rel=1e-9), (row, start, stop)


def test_a_symbol_that_never_came_is_rarer_than_any_other():
    rows, begins = rows_of(TEXT, BEGINS)
    lexicon, (new, _) = Lexicon.of(rows, begins), rows_of(["z", "a", "d"])
    unseen, no_segment, segment = lexicon.log_p(new)[:, 0, 0]
    assert unseen < no_segment < segment


def worth(log_p, scores, cuts, length, row, cut_short):
    """Of one segmentation of a row, which begins at 0 and the places `cuts`."""
    edges = [0, *cuts, length]
    total = sum(scores[row, cut] for cut in cuts)
    for index, (start, stop) in enumerate(zip(edges, edges[1:])):
        outer = index in (0, len(edges) - 2)
        total += cut_short * (stop - start) if outer else log_p[row, stop - 1, stop - start - 1]
    return total


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_all_segmentations_is_found(seed):
    random = np.random.default_rng(seed)
    lengths = [1, 2, 5, 8, 10]
    rows = Rows(np.array([random.integers(0, 3, n).tolist() + [-1] * (11 - n) for n in lengths]))
    log_p = np.where(rows.whole, random.normal(-3, 2, rows.whole.shape), -np.inf)
    scores = random.normal(0, 2, rows.symbols.shape)
    found = best_segmentation(rows, log_p, scores, -1.5)
    for row, length in enumerate(lengths):
        cuts = [c for n in range(length) for c in itertools.combinations(range(1, length), n)]
        best = max(cuts, key=lambda places: worth(log_p, scores, places, length, row, -1.5))
        assert np.flatnonzero(found[row]).tolist() == list(best), row


def test_no_segment_is_longer_than_the_longest():
    rows = Rows(np.zeros((1, 60), dtype=int))
    log_p = np.where(rows.whole, -1.0, -np.inf)
    cuts = np.flatnonzero(best_segmentation(rows, log_p, np.full((1, 60), -9.0), -0.1)[0])
    assert np.diff([0, *cuts, 60]).max() <= LONGEST and len(cuts) == 3


def test_a_lexicon_mends_a_signal_that_errs():
    """Words of a random lexicon, the frequent ones more often, and a signal that one boundary in four lacks."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), n)) for n in random.integers(3, 6, 40)]
    share = 1 / np.arange(1, 41)
    lines = [random.choice(words, 20, p=share / share.sum()) for _ in range(100)]
    rows, gold = rows_of(["".join(line) for line in lines], [np.cumsum([*map(len, line[:-1])]) for line in lines])
    begins = gold & (random.random(gold.shape) < 0.75)
    before, scores = (begins & gold).sum() / gold.sum(), np.where(begins, 2.0, -2.0)
    for _ in range(3):
        begins = Lexicon.of(rows, begins).segment(rows, scores, begins)
    right = (begins & gold).sum()
    assert before < 0.76 and right > 0.9 * gold.sum() and right > 0.99 * begins.sum()
