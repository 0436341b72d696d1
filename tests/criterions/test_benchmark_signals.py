"""Where the benchmark of signals says that a signal stands in the text, against one row after the other."""

import math

import pytest
import torch
from small_criterion import criterion_for

EOS = 2
LENGTHS = (11, 3, 9)  # of lines, their ends included


@pytest.fixture
def text():
    """Three lines."""
    tokens = torch.randint(4, 8, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    tokens[torch.tensor(LENGTHS).cumsum(0) - 1] = EOS
    return tokens


def rows_of(text, size):
    """The first place of every row, its source, and its target: the row itself, read after a line end."""
    for row in torch.arange(len(text)).split(list(LENGTHS) if size is None else size):
        target = text[row]
        yield int(row[0]), torch.cat([torch.tensor([EOS]), target[:-1]])[None], target[None]


def found_in(signals, model, criterion, text, size, monkeypatch):
    monkeypatch.setattr(signals, "ROWS", 2)  # several batches, in which rows are padded
    found = signals.Found.nothing(2, len(text))
    for sample in signals.batches(text, size, EOS, criterion.padding_idx):
        signals.read(model.eval(), criterion.eval(), sample, found)
    return found


@torch.no_grad()
@pytest.mark.parametrize("size", [None, 5], ids=["lines", "windows"])
def test_uncertainty_is_found_behind_the_symbol_that_was_read(
    import_benchmark, dictionary, model, text, size, monkeypatch
):
    criterion = criterion_for(dictionary, ".3,.1", boundary_regularizers="uncertainty")
    found = found_in(import_benchmark("signals"), model, criterion, text, size, monkeypatch)
    values, closed = torch.full((2, len(text)), -math.inf), torch.zeros(2, len(text), dtype=torch.bool)
    for first, source, _ in rows_of(text, size):
        logits, extra = model(source)
        probs, z = logits[0].softmax(-1), extra["trace"].boundaries[0, :, :2] > 0.5
        for step in range(1, source.size(1)):  # step 0 reads the line end before the row
            place = first + step - 1
            closed[:, place] = z[step]
            entropy = -(probs[step] * probs[step].log()).sum()
            values[0, place] = entropy
            if z[step, 0]:
                values[1, place] = entropy
    assert closed[0].any() and not closed[0].all() and (closed[0] != closed[1]).any()
    assert torch.equal(found.closed, closed) and not found.taught.any()
    torch.testing.assert_close(found.values, values)


def bidirectional_by_hand(model, criterion, source, target):
    """{step: signal about the place after the symbol that it reads}, where its neighbours are known too."""
    log_probs, back = model(source)[0][0].log_softmax(-1), criterion.right_to_left(source, target)[1]
    steps = source.size(1)
    sums = []
    for step in range(steps):
        of_next = log_probs[step]
        ahead = -(of_next.exp() * of_next).sum() - of_next[target[0, step]] / 4
        sums.append(ahead + back.entropy[0, step] + back.surprisal[0, step] / 4)
    known = range(1, steps - 6)  # the network that reads from right to left says nothing of the last 5
    return {step: sums[step] - (sums[step - 1] + sums[step + 1]) / 8 for step in known}


@torch.no_grad()
@pytest.mark.parametrize(
    "size, places", [(None, [0, 1, 2, 3, 14, 15]), (9, [0, 1, 9, 10]), (15, [*range(8), 15]), (5, [])]
)
def test_a_lexicon_is_found_at_the_last_symbol_of_segments(
    import_benchmark, dictionary, model, text, size, places, monkeypatch
):
    """What it hears, and what it teaches, comes a step later: at the first symbol of the next one."""
    criterion = criterion_for(dictionary, ".3,.1", boundary_regularizers="lexicon,none")
    monkeypatch.setattr(criterion.targets.estimator, "begins", lambda tokens, signal, known: known & (tokens % 2 == 0))
    found = found_in(import_benchmark("signals"), model, criterion, text, size, monkeypatch)
    values = torch.full((2, len(text)), -math.inf)
    for first, source, target in rows_of(text, size):
        for step, value in bidirectional_by_hand(model, criterion, source, target).items():
            place = first + step - 1
            values[0, place] = math.inf if EOS in (text[place], text[place + 1]) else value
    assert (values[0] > -math.inf).nonzero().flatten().tolist() == places
    torch.testing.assert_close(found.values, values)
    assert found.taught[0].nonzero().flatten().tolist() == [place for place in places if text[place + 1] % 2 == 0]
    assert not found.taught[1].any() and found.closed.any()
