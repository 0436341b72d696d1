"""The search for a rate: its cost against direct computation, and words of known lengths, found."""

import math
from collections import Counter

import numpy as np
import pytest
from unspaced import letters_of_words

from fairseq_hmrnn.segmentation import rate_search
from fairseq_hmrnn.segmentation.rate_search import DISCOUNT, SPELLING_PRIOR, find_rate, held_out_cost, spelling_cost


def spelled(symbols):
    return "".join(chr(symbol + 1) for symbol in symbols)


def rows_of(symbols, begins):
    """Rows of segments, lists of symbols each."""
    rows, open_row = [], False
    for symbol, begin in zip(symbols, begins):
        if symbol < 0:
            open_row = False
            continue
        if not open_row:
            rows.append([[]])
            open_row = True
        elif begin:
            rows[-1].append([])
        rows[-1][-1].append(symbol)
    return [[tuple(segment) for segment in row] for row in rows]


def direct_spelling(types, once=()):
    """Types that came once are left out: each pair of theirs counts one time less."""
    pairs = [pair for word in types for pair in zip([None, *word], [*word, None])]
    count, total, frequency = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)

    def p(a, b, own):
        share = (frequency[b] + 1 - own) / (len(pairs) + len(frequency))
        return (count[a, b] - own + SPELLING_PRIOR * share) / (total[a] - own + SPELLING_PRIOR)

    return {word: math.prod(p(a, b, word in once) for a, b in zip([None, *word], [*word, None])) for word in types}


def direct_cost(symbols, begins):
    whole = [row[1:-1] for row in rows_of(symbols, begins)]  # the first and the last may be cut short
    every = [word for row in whole for word in row]
    pairs = [pair for row in whole for pair in zip(row, row[1:])]
    once = {word for word, count in Counter(every).items() if count == 1}
    spelling, nats = direct_spelling(set(every), once), 0
    for index, (before, word) in enumerate(pairs):
        others, count = pairs[:index] + pairs[index + 1 :], Counter(every)
        count[word] -= 1
        types = sum(n > 0 for n in count.values())
        p = (max(count[word] - DISCOUNT, 0) + DISCOUNT * types * spelling[word]) / (len(every) - 1)
        following = Counter(b for a, b in others if a == before)
        if following:
            own = max(following[word] - DISCOUNT, 0)
            p = (own + DISCOUNT * len(following) * p) / sum(following.values())
        nats -= math.log(p)
    return nats / sum(len(word) for _, word in pairs)


@pytest.mark.parametrize("seed", range(4))
def test_cost_equals_direct_computation(seed):
    random = np.random.default_rng(seed)
    symbols = random.choice([0, 0, 0, 1, 1, 2], 90)
    symbols[[0, 30, 31, 60]] = -1
    begins = random.random(90) < 0.6
    found = held_out_cost(spelled(symbols), symbols >= 0, begins)
    assert found == pytest.approx(direct_cost(symbols.tolist(), begins.tolist()), rel=1e-10)


def test_spelling_equals_direct_computation():
    types = ["\1\2", "\2", "\1\1\3", "\ud800"]  # a symbol may have any number, a surrogate's too
    expected = direct_spelling([tuple(word) for word in types], [tuple(types[2])])
    once = np.array([False, False, True, False])
    assert np.exp(-spelling_cost(types, once)) == pytest.approx([expected[tuple(word)] for word in types])


@pytest.mark.parametrize("shortest, longest", [(2, 3), (3, 6), (6, 10)])
def test_the_rate_of_words_is_found_whatever_their_length(shortest, longest):
    symbols, begins = letters_of_words(6000, shortest, longest)
    signal = begins + np.random.default_rng(1).normal(0, 0.2, len(begins))
    symbols[::100] = -1
    assert find_rate(symbols, signal) == pytest.approx(begins.mean(), rel=0.1)
    assert find_rate(symbols, signal * 9 - 4) == find_rate(symbols, signal)  # it is the order that counts


def test_where_lines_end_counts_in_no_rate():
    """The signal is inf there: half of the places at which segments begin, all of which are still segments."""
    symbols, begins = letters_of_words(12_000, 3, 6)
    signal = begins + np.random.default_rng(1).normal(0, 0.2, len(begins))
    certain = begins & (np.arange(len(begins)) % 2 == 0)
    signal[certain] = np.inf
    symbols[::500] = -1
    within = begins[~certain].mean()
    assert within < 0.7 * begins.mean()
    assert find_rate(symbols, signal) == pytest.approx(within, rel=0.1)


def test_nothing_is_found_where_there_is_too_little():
    symbols = np.arange(rate_search.FEWEST + 50) % 7
    assert find_rate(symbols, np.zeros(len(symbols))) is not None
    assert find_rate(symbols, np.where(np.arange(len(symbols)) < 60, np.inf, 0)) is not None  # known all the same
    assert find_rate(symbols, np.full(len(symbols), np.inf)) is None
    symbols[:60] = -1
    assert find_rate(symbols, np.zeros(len(symbols))) is None
    symbols, begins = letters_of_words(6000, 3, 6)
    symbols[::4] = -1  # rows of three symbols have no two segments that are whole
    assert find_rate(symbols, begins.astype(float)) is None


def test_long_strings_do_not_foretell_themselves():
    """Thousands of symbols, words of one or two: few strings come again, and the longest never do."""
    choose = np.random.default_rng(0)
    words = [choose.integers(0, 2000, 1 + n % 2) for n in range(1500)]
    share = 1 / np.arange(1, 1501)
    text = [words[n] for n in choose.choice(1500, 8000, p=share / share.sum())]
    begins = np.concatenate([[True] + [False] * (len(word) - 1) for word in text])
    symbols = np.concatenate(text)
    symbols[::100] = -1
    signal = begins + choose.normal(0, 0.3, len(begins))
    assert find_rate(symbols, signal) == pytest.approx(begins.mean(), rel=0.25)
