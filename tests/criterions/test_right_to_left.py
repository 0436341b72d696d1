"""The network that reads from right to left."""

import torch

from fairseq_hmrnn.criterions.right_to_left import CONTEXT, RightToLeftPredictor, left_to_right

PAD, SYMBOLS, LENGTH = 1, 9, 14


def rows(length=LENGTH, seed=0):
    """source, target (2, length) of a text of which they are x_t and x_{t+1}."""
    text = torch.randint(4, SYMBOLS, (2, length + 1), generator=torch.Generator().manual_seed(seed))
    return text[:, :-1].clone(), text[:, 1:].clone()


def predictor():
    torch.manual_seed(0)
    return RightToLeftPredictor(SYMBOLS, PAD)


def test_each_symbol_is_predicted_from_those_behind_it_alone():
    source, target = rows()
    network = predictor()
    with torch.no_grad():
        nll, signals = network(source, target)
        for step in (0, 5, LENGTH - 1):
            hidden, _ = network.lstm(network.embed_tokens(target[:, step:].flip(1)))
            p = network.output_projection(hidden[:, -1]).softmax(-1)
            torch.testing.assert_close(signals.entropy[:, step], -(p * p.log()).sum(-1))
            torch.testing.assert_close(signals.surprisal[:, step], -p[[0, 1], source[:, step]].log())
    torch.testing.assert_close(nll, signals.surprisal.mean())
    assert signals.predicted.tolist() == [[True] * (LENGTH - CONTEXT) + [False] * CONTEXT] * 2


def test_padding_on_either_side_changes_nothing():
    source, target = rows()
    network = predictor()
    nll, signals = network(source, target)
    for left, right in ((3, 0), (0, 3), (2, 4)):
        wide = [torch.nn.functional.pad(x, (left, right), value=PAD) for x in (source, target)]
        wide_nll, wide_signals = network(*wide)
        inside = slice(left, left + LENGTH)
        torch.testing.assert_close(wide_nll, nll)
        torch.testing.assert_close(wide_signals.entropy[:, inside], signals.entropy)
        torch.testing.assert_close(wide_signals.surprisal[:, inside], signals.surprisal)
        assert torch.equal(wide_signals.predicted[:, inside], signals.predicted)
        assert wide_signals.predicted.sum() == signals.predicted.sum()


def test_read_from_left_to_right_each_symbol_is_predicted_from_those_before_it_alone():
    tokens, _ = rows()
    tokens[1, :4] = PAD
    network = predictor()
    nll, signals = left_to_right(network, tokens)
    surprisals = []
    for row, first in ((0, 0), (1, 4)):
        for step in range(first, LENGTH - 1):
            hidden, _ = network.lstm(network.embed_tokens(tokens[row : row + 1, first : step + 1]))
            p = network.output_projection(hidden[0, -1]).softmax(-1)
            torch.testing.assert_close(signals.entropy[row, step], -(p * p.log()).sum())
            surprisals.append(-p[tokens[row, step + 1]].log())
            torch.testing.assert_close(signals.surprisal[row, step], surprisals[-1])
        predicted = [first <= step < LENGTH - 1 for step in range(LENGTH)]
        assert signals.predicted[row].tolist() == predicted
    torch.testing.assert_close(nll, torch.stack(surprisals).mean())


def test_it_learns_by_its_own_loss_and_its_signals_carry_no_gradient():
    network = predictor()
    nll, signals = network(*rows())
    nll.backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert not signals.entropy.requires_grad and not signals.surprisal.requires_grad


def test_a_batch_of_padding_alone_is_no_number_to_fear():
    nothing = torch.full((2, 6), PAD)
    nll, signals = predictor()(nothing, nothing)
    nll.backward()
    assert nll.item() == 0 and not signals.predicted.any()
