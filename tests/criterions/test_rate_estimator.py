"""A rate that is found during training: what is remembered, when it is searched, and what a checkpoint has of it."""

import numpy as np
import pytest
import torch

from fairseq_hmrnn.criterions import rate_estimator
from fairseq_hmrnn.criterions.rate_estimator import MEMORY, START, RateEstimator, without_repeated_rows

CPU = torch.device("cpu")


def remember(found, first, rows, columns):
    """Rows of new symbols from `first` on, the signal of each its negative, the last of each row unknown."""
    tokens = first + torch.arange(rows * columns).view(rows, columns)
    known = torch.ones(rows, columns, dtype=torch.bool)
    known[:, -1] = False
    found.remember(tokens, -tokens.float(), known)
    return torch.cat([torch.cat([row[:-1], torch.tensor([-1, -1])]) for row in tokens])


def test_the_latest_places_are_searched_in_their_order(monkeypatch, caplog):
    seen = []
    monkeypatch.setattr(rate_estimator, "find_rate", lambda symbols, signal: seen.append((symbols, signal)))
    found, expected = RateEstimator(), []
    for batch in range(5):
        expected.append(remember(found, 10_000 * batch, 9, 999))
    expected = torch.cat(expected)[-MEMORY:]
    assert found.filled > MEMORY
    found.search(100, CPU)
    (symbols, signal), *_ = seen
    assert np.array_equal(symbols, expected.numpy())
    assert np.array_equal(signal[symbols >= 0], -symbols[symbols >= 0].astype(np.float32))
    assert found.rate == START and "no rate was found after 100 updates, layer 1 stays at 0.250" in caplog.text


@pytest.mark.parametrize("batches", [1, 5])
def test_of_windows_that_are_cut_anew_those_of_one_epoch_are_searched(batches):
    found = RateEstimator()
    expected = torch.cat([remember(found, 10_000 * batch, 9, 999) for batch in range(batches)])
    assert (found.filled > MEMORY) == (batches == 5)
    found.newest = 5000
    symbols, signal = found._text()
    assert np.array_equal(symbols, expected[-5000:].numpy()) and len(signal) == 5000
    assert np.array_equal(signal[symbols >= 0], -symbols[symbols >= 0].astype(np.float32))


def test_a_batch_may_be_larger_than_the_memory():
    found = RateEstimator()
    expected = remember(found, 0, 50, 1000)
    assert found.filled == MEMORY and torch.equal(found.symbols.long(), expected[-MEMORY:])


def test_a_row_that_comes_again_counts_once():
    rows = [[1, 2, 3], [4, 5], [1, 2, 3], [1, 2]]
    symbols = np.concatenate([[*row, -1] for row in rows]).astype(np.int32)
    left = without_repeated_rows(symbols)
    assert left.tolist() == [-1, -1, -1, -1, 4, 5, -1, 1, 2, 3, -1, 1, 2, -1] and symbols[0] == 1


def test_it_is_searched_after_updates_that_the_schedule_names(monkeypatch):
    answers = iter([0.3, None, 0.2, 0.4, 0.1, 0.3, 0.2] + [0.1 + 0.1 * (n % 2) + n / 100 for n in range(20)])
    monkeypatch.setattr(rate_estimator, "find_rate", lambda symbols, signal: next(answers))
    found, at = RateEstimator(), []
    for update in range(2100):
        before = found.rate
        found.search(update, CPU)
        found.search(update, CPU)  # the next part of an update's batch
        if found.rate != before:
            at.append((update, found.rate))
    assert at[:3] == [(100, 0.3), (300, pytest.approx(0.25)), (400, pytest.approx(0.3))]
    assert [update for update, _ in at] == [100, *range(300, 1001, 100), 1500, 2000]


def test_a_rate_of_all_steps_is_forgotten(caplog):
    """As checkpoints have it from before it was one within lines."""
    found, old = RateEstimator(), RateEstimator().state_dict()
    del old["of_all_steps"]
    found.load_state_dict({**old, "rate": 0.3, "last": 0.3, "filled": 100, "symbols": torch.ones(MEMORY)})
    assert found.rate == START and found.filled == 0 and np.isnan(found.last) and found.symbols.max() == -1
    assert "the checkpoint's rate is of all steps: the search within lines starts again" in caplog.text


def test_a_checkpoint_has_all_of_it():
    found, other = RateEstimator(), RateEstimator()
    remember(found, 0, 3, 50)
    found.rate, found.last, found.searched = 0.3, 0.35, 100
    other.load_state_dict(found.state_dict())
    remember(found, 500, 3, 50)
    remember(other, 500, 3, 50)
    for name, value in vars(found).items():
        assert np.array_equal(vars(other)[name], value), name
