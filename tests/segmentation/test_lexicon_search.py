"""The lexicon of a text: which rate it goes with, and what it makes of a detector's boundaries."""

import numpy as np
import pytest
from unspaced import f1, heard, language

from fairseq_hmrnn.segmentation import lexicon_search
from fairseq_hmrnn.segmentation.lexicon import Rows
from fairseq_hmrnn.segmentation.lexicon_search import CERTAIN, infer, resegmented, scored


def flat(places, seed=0):
    """Symbols, where words begin, and z~ of a detector that tells of them with noise, each (S,)."""
    symbols, begins = language(places, seed)
    z_tilde = heard(begins).clamp(0, 1)
    return symbols.flatten().numpy(), begins.flatten().numpy(), z_tilde.flatten().numpy()


@pytest.mark.parametrize("wrong", [0.8, 1.0, 1.2])
def test_a_rate_is_found_that_the_signal_alone_misses(wrong, monkeypatch):
    symbols, gold, signal = flat(12_000)
    symbols[::100] = -1
    monkeypatch.setattr(lexicon_search, "find_rate", lambda symbols, signal: wrong * gold.mean())
    assert infer(symbols, signal).rate == pytest.approx(gold.mean(), rel=0.12)


@pytest.mark.parametrize("rate", [0.2, 0.3])
def test_a_rate_that_is_told_is_kept(rate):
    symbols, _, signal = flat(12_000)
    symbols[::100] = -1
    assert infer(symbols, signal, rate).rate == pytest.approx(rate, rel=0.08)


@pytest.mark.parametrize("told, every", [(True, 3), (False, 8)])
def test_where_lines_end_counts_in_no_rate(told, every):
    """Where segments begin for certain they do, and share and threshold are of the other places."""
    symbols, gold, signal = flat(12_000)
    symbols[::100] = -1
    certain = gold & (np.arange(len(gold)) % every == 0)
    rate = gold[~certain].mean()
    assert rate < 0.91 * gold.mean()
    found = infer(symbols, np.where(certain, np.inf, signal), rate if told else None)
    assert found.rate == pytest.approx(rate, rel=0.08)
    values, everywhere = np.where(certain, np.inf, signal), np.ones(len(gold), dtype=bool)
    scores = scored(values, everywhere, rate)
    assert (scores[certain] == CERTAIN).all() and (scores[~certain] >= 0).mean() == pytest.approx(rate, abs=0.002)
    assert scored(values[certain], everywhere[certain], rate).tolist() == [CERTAIN] * certain.sum()


def test_a_detectors_own_rate_is_kept_within_lines(monkeypatch):
    """As many segments begin as it closes, whatever the share of line ends."""
    monkeypatch.setattr(lexicon_search, "TIMES", (1.0,))
    symbols, gold, z_tilde = flat(12_000)
    certain = np.arange(len(gold)) % 4 == 0
    begins = z_tilde > 0.5
    found = resegmented(symbols, begins, z_tilde, certain)
    assert found[~certain].mean() == pytest.approx(begins[~certain].mean(), rel=0.08) and found[certain].all()
    nothing = resegmented(symbols, np.zeros_like(begins), z_tilde, certain)
    assert np.array_equal(nothing, certain)


@pytest.mark.parametrize("piece", [4000, 10**6])
def test_a_detectors_boundaries_are_put_where_words_begin(piece, monkeypatch):
    """A text of several pieces, each cut into rows; where a segment begins for sure, it does."""
    monkeypatch.setattr(lexicon_search, "PIECE", piece)
    symbols, gold, z_tilde = flat(12_000)
    begins, certain = z_tilde > 0.6, np.zeros(len(gold), dtype=bool)
    certain[7::40] = True
    found = resegmented(symbols, begins, z_tilde, certain)
    free = ~certain & ~np.roll(certain, 1) & ~np.roll(certain, -1)
    assert f1(begins & free, gold & free) < 0.82 and f1(found & free, gold & free) > 0.9
    assert found[certain].all() and found.shape == symbols.shape


def test_symbols_may_have_any_number():
    """The highest code point, for instance."""
    symbols, _, z_tilde = flat(3000)
    nothing = np.zeros(3000, dtype=bool)
    found = resegmented(symbols, z_tilde > 0.6, z_tilde, nothing)
    assert np.array_equal(found, resegmented(0x10FFFF - symbols, z_tilde > 0.6, z_tilde, nothing)) and found.any()


@pytest.mark.parametrize("places", [5, 500])
def test_a_rate_stays_where_none_is_known_to_be_better(places, monkeypatch):
    """As in a text too short to say what a rate is worth, or one of which nothing is foretold."""
    symbols, _, z_tilde = flat(1000)
    symbols, z_tilde, certain = symbols[:places], z_tilde[:places], np.zeros(places, dtype=bool)
    monkeypatch.setattr(lexicon_search, "_cost", lambda rows, begins: np.inf)
    found = resegmented(symbols, z_tilde > 0.6, z_tilde, certain)
    monkeypatch.setattr(lexicon_search, "TIMES", (1.0,))
    assert np.array_equal(found, resegmented(symbols, z_tilde > 0.6, z_tilde, certain)) and found.any()


def test_one_long_line_among_short_ones_costs_no_more_than_they(monkeypatch):
    """All rows are padded to the longest, and there are several numbers for each of LONGEST lengths at every place."""
    symbols, gold, signal = flat(9000)
    symbols[:6000:20] = -1
    places = []
    monkeypatch.setattr(lexicon_search, "Rows", lambda text: places.append(text.size) or Rows(text))
    assert infer(symbols, signal, gold.mean()).rate == pytest.approx(gold.mean(), rel=0.1)
    assert places and max(places) <= lexicon_search.WINDOW * (300 + 3000 // lexicon_search.WINDOW)


@pytest.mark.parametrize("size", [0, 1, 2, 500, 501, 1001])
def test_a_text_of_any_size(size):
    symbols, _, z_tilde = flat(1100)
    symbols, z_tilde, certain = symbols[:size], z_tilde[:size], np.arange(size) % 100 == 0
    found = resegmented(symbols, z_tilde > 0.6, z_tilde, certain)
    assert found.shape == (size,) and found.dtype == bool and (found[certain]).all()


def test_nothing_is_cut_where_the_detector_cuts_nothing():
    symbols, nothing = np.arange(900) % 7, np.zeros(900, dtype=bool)
    assert not resegmented(symbols, nothing, np.zeros(900), nothing).any()
