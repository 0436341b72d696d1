"""A lexicon that is inferred during training: from what, when, what it then says of a batch, what a checkpoint has."""

import numpy as np
import pytest
import torch
from unspaced import ROW, f1, heard, language

from fairseq_hmrnn.criterions.lexicon_estimator import LexiconEstimator
from fairseq_hmrnn.criterions.rate_estimator import START, RateEstimator
from fairseq_hmrnn.segmentation.lexicon_search import infer

CPU = torch.device("cpu")


def taught(given=None):
    """A LexiconEstimator that heard of 20,000 places, after its first search."""
    found, (tokens, begins) = LexiconEstimator(given), language(20_000)
    found.remember(tokens, heard(begins), torch.ones_like(begins))
    found.search(100, CPU)
    return found


@pytest.fixture(scope="module")
def inferred():
    return taught()


def batch(rows=8):
    tokens, begins = language(rows * ROW, seed=5)
    return tokens, heard(begins, seed=6), begins


def test_a_lexicon_says_more_than_the_signal_alone(inferred):
    tokens, signal, gold = batch(40)
    known, inside = torch.ones_like(gold), torch.ones_like(gold)
    inside[:, 0] = False
    share = gold.double().mean().item()
    alone = signal >= signal.flatten().quantile(1 - share)
    found = inferred.begins(tokens, signal, known)
    assert f1(alone & inside, gold & inside) < 0.85 and f1(found & inside, gold & inside) > 0.95
    assert inferred.rate == pytest.approx(share, rel=0.05)


def test_before_there_is_one_the_highest_places_are_taken():
    tokens, signal, gold = batch()
    begins = LexiconEstimator().begins(tokens, signal, torch.ones_like(gold))
    assert begins.double().mean().item() == pytest.approx(START, abs=0.002)
    assert signal[begins].min() > signal[~begins].max()
    assert LexiconEstimator(0.1).begins(tokens, signal, torch.ones_like(gold)).double().mean().item() < 0.11


def test_a_rate_that_is_told_is_kept():
    found = taught(0.27)
    tokens, signal, gold = batch(40)
    begins = found.begins(tokens, signal, torch.ones_like(gold))
    assert found.rate == 0.27 and begins.double().mean().item() == pytest.approx(0.27, rel=0.12)
    assert f1(begins, gold) > 0.93


def test_what_is_not_known_changes_nothing(inferred):
    """Padding at either end of a row; its symbols and signal are never looked at."""
    tokens, signal, gold = batch()
    known = torch.ones_like(gold)
    known[:3, :9] = known[2:5, 90:] = False
    known[6] = False
    begins = inferred.begins(tokens, signal, known)
    other = inferred.begins(tokens.masked_fill(~known, 9), signal.masked_fill(~known, 1e6), known)
    assert torch.equal(begins, other) and not begins[~known].any() and begins.sum() > 100
    assert not inferred.begins(tokens, signal, torch.zeros_like(known)).any()
    short = inferred.begins(tokens[:3, 9:], signal[:3, 9:], known[:3, 9:])
    assert f1(short, begins[:3, 9:]) > 0.95  # the threshold is that of other places


def test_nothing_is_inferred_from_too_little(caplog):
    found, (tokens, begins) = LexiconEstimator(), language(1000)
    found.remember(tokens, heard(begins), torch.ones_like(begins))
    found.search(100, CPU)
    assert found.lexicon is None and found.rate == START and "no lexicon was found" in caplog.text
    assert infer(np.full(50, -1), np.zeros(50), 0.2) is None


def test_a_checkpoint_has_all_of_it(inferred, tmp_path):
    torch.save(inferred.state_dict(), tmp_path / "state.pt")
    other = LexiconEstimator()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))  # from torch 2.6 on: data only
    tokens, signal, gold = batch()
    again = (tokens, signal, torch.ones_like(gold))
    assert torch.equal(other.begins(*again), inferred.begins(*again))
    assert (other.rate, other.threshold, other.last) == (inferred.rate, inferred.threshold, inferred.last)
    for found in (other, taught()):
        found.remember(*again)
        found.search(200, CPU)
    assert other.lexicon.counts.tolist() == found.lexicon.counts.tolist() and other.rate == found.rate


def test_a_training_may_go_on_with_something_else(inferred):
    """What has the same name goes on, what the options tell does not."""
    told, rate, empty = LexiconEstimator(0.3), RateEstimator(), LexiconEstimator()
    told.load_state_dict(inferred.state_dict())
    rate.load_state_dict(inferred.state_dict())
    assert told.lexicon is not None and told.rate == 0.3
    assert rate.rate == inferred.rate and set(rate.state_dict()) == set(RateEstimator().state_dict())
    empty.load_state_dict(rate.state_dict())
    assert empty.lexicon is None and empty.rate == inferred.rate and torch.equal(empty.symbols, inferred.symbols)
    told.load_state_dict(rate.state_dict())  # of a search that knows no lexicon
    assert told.lexicon is not None and told.rate == 0.3
