"""Dynamic evaluation against the update rule written out, and its command."""

import math
import re

import pytest
import torch
from command_results import base2_loss
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.data import Dictionary
from pairs import pairs, same_bits
from running import run
from small_language_model import make
from small_training import TASK

from fairseq_hmrnn.cli import evaluate
from fairseq_hmrnn.data.indexed import count_symbols
from fairseq_hmrnn.inference.dynamic_evaluation import (
    DynamicEvaluation,
    DynamicOptions,
    TextWindows,
    gradient_rms,
    nats_of_mean,
    parameters_of,
)

OPTIONS = DynamicOptions(learning_rate=3e-3, decay=0.4, segment=7, epsilon=1e-4)


def windows(count, streams, length, seed):
    """Sources and targets (streams, length) of consecutive windows of random symbols."""
    symbols = torch.randint(4, 10, (streams, count * length + 1), generator=torch.Generator().manual_seed(seed))
    borders = range(0, count * length, length)
    return [(symbols[:, i : i + length], symbols[:, i + 1 : i + length + 1]) for i in borders]


def losses(decoder, text):
    """Of each window the mean loss, with the state carried on, and its gradients before the next one is read."""
    state = None
    for source, target in text:
        logits, extra = decoder(source, state=state)
        state = extra["state"].detach()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        gradients = torch.autograd.grad(loss, parameters_of(decoder), allow_unused=True)
        yield loss.item(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters_of(decoder), gradients)]


@pytest.mark.parametrize("bits, told", [(2.0, "2.0000, Perplexity: 4.00"), (1500.0, "1500.0000, Perplexity: inf")])
def test_a_score_is_printed_however_bad(bits, told):
    assert evaluate._score(bits * math.log(2) * 7, 7) == f"Evaluated 7 tokens, Loss (base 2): {told}"


def test_weights_follow_the_update_rule():
    decoder, known, text = make().decoder, windows(3, 4, 10, seed=1), windows(4, 1, OPTIONS.segment, seed=2)
    squares = [sum(g**2 for g in gs) / 3 for gs in zip(*(gradients for _, gradients in losses(decoder, known)))]
    rms = gradient_rms(decoder, known)
    for mine, square in pairs(rms, squares):
        torch.testing.assert_close(mine, square.sqrt())

    start = [parameter.detach().clone() for parameter in parameters_of(decoder)]
    evaluation = DynamicEvaluation(decoder, rms, OPTIONS)
    found = [nats.mean().item() for nats in evaluation.score(text)]
    reached = [parameter.detach().clone() for parameter in parameters_of(decoder)]
    evaluation.restore()
    assert same_bits(parameters_of(decoder), start)

    flat = torch.cat([r.flatten() for r in rms])
    expected = []
    for loss, gradients in losses(decoder, text):
        expected.append(loss)
        with torch.no_grad():
            for p, first, r, g in zip(parameters_of(decoder), start, rms, gradients):
                pull = OPTIONS.decay * (r / flat.mean()).clamp(max=1 / OPTIONS.decay)
                p += pull * (first - p) - OPTIONS.learning_rate * g / (r + OPTIONS.epsilon)
    assert found == pytest.approx(expected, abs=1e-5)
    for mine, parameter in pairs(reached, parameters_of(decoder)):
        torch.testing.assert_close(mine, parameter.detach(), atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(mine, first, atol=1e-3) for mine, first in pairs(reached, start))


def test_a_segment_is_scored_before_it_is_learned():
    decoder, text = make().decoder, windows(2, 1, 7, seed=3)
    rms = gradient_rms(decoder, windows(2, 4, 10, seed=1))
    static = list(DynamicEvaluation(decoder, None, DynamicOptions(0.0)).score(text))
    dynamic = list(DynamicEvaluation(decoder, rms, OPTIONS).score(text))
    assert torch.equal(static[0], dynamic[0])
    assert not torch.allclose(static[1], dynamic[1], atol=1e-4)


NOT_FINITE = [float("nan"), float("inf")]


@pytest.mark.parametrize(
    "option, said, values",
    [
        ("learning_rate", "the learning rate must be a number from 0, got", [-1.0, *NOT_FINITE]),
        ("decay", r"the decay must lie in \[0, 1\], got", [-0.1, 1.5, *NOT_FINITE]),
        ("segment", "a segment has at least 1 symbol, got", [0]),
        ("epsilon", "epsilon must be a positive number, got", [0.0, -1.0, *NOT_FINITE]),
    ],
)
def test_options_out_of_range(option, said, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{said} {value}"):
            OPTIONS._replace(**{option: value}).check()
    with pytest.raises(ValueError, match=said):
        DynamicEvaluation(make().decoder, [], OPTIONS._replace(**{option: values[0]}))
    assert OPTIONS.check() is OPTIONS and OPTIONS._replace(learning_rate=0.0, decay=1.0).check()


def test_a_learning_rate_requires_the_size_of_gradients():
    with pytest.raises(ValueError, match="gradient_rms"):
        DynamicEvaluation(make().decoder, None, OPTIONS)
    with pytest.raises(ValueError, match="no training text"):
        gradient_rms(make().decoder, [])


def test_a_text_has_a_symbol_for_each_stream(data):
    dictionary = Dictionary.load(str(data / "dict.txt"))
    symbols = count_symbols(str(data / "test"))
    windows = TextWindows(str(data), "test", dictionary, dictionary, 10, symbols)
    assert len(list(windows)) == len(windows) == 1 and windows.num_symbols == symbols
    beginning = TextWindows(str(data), "test", dictionary, dictionary, 10, first=25)
    whole = [pair for pair, _ in zip(TextWindows(str(data), "test", dictionary, dictionary, 10), range(3))]
    assert beginning.num_symbols == 25 and len(beginning) == 3
    for short, long in pairs(beginning, whole):
        assert all(torch.equal(a, b[:, : a.size(1)]) for a, b in pairs(short, long))
    with pytest.raises(ValueError, match="too few"):
        TextWindows(str(data), "test", dictionary, dictionary, 10, symbols + 1)


def test_an_ensemble_is_the_mean_of_probabilities(data, trained, tmp_path):
    nats = [torch.tensor([0.5, 4.0]), torch.tensor([2.5, 0.1])]
    mean = (torch.exp(-nats[0]) + torch.exp(-nats[1])) / 2
    torch.testing.assert_close(nats_of_mean(nats), -mean.log())
    first, second = trained / "checkpoint_last.pt", tmp_path / "other.pt"
    other = load_checkpoint_to_cpu(str(first))
    random = torch.Generator().manual_seed(1)
    for weight in (weight for weight in other["model"].values() if weight.is_floating_point()):
        weight += 0.2 * torch.randn(weight.shape, generator=random)
    torch.save(other, second)
    parts = ((first,), (second,), (first, first), (first, second))
    one, two, same, both = (base2_loss(run("fairseq-hmrnn", "evaluate", *part, data).stdout) for part in parts)
    assert same == one < two and both < (one + two) / 2 - 0.01, (one, two, both)


def test_the_command(data, trained):
    checkpoint = trained / "checkpoint_last.pt"
    options = ["--path", checkpoint, "--gen-subset", "test", "--stateful", "--tokens-per-sample", "50", "--cpu"]
    by_fairseq = base2_loss(run("fairseq-eval-lm", data, *TASK, *options).stdout)
    static = run("fairseq-hmrnn", "evaluate", checkpoint, data).stdout
    assert base2_loss(static) == pytest.approx(by_fairseq, abs=2e-3)  # of which fairseq prints three decimals
    options = ["--dynamic", "--streams", "4", "--statistics", "5", "--learning-rate", "0.001"]
    dynamic = run("fairseq-hmrnn", "evaluate", checkpoint, data, *options).stdout
    assert base2_loss(dynamic) < base2_loss(static) - 0.01
    assert re.search(r"Evaluated (\d+)", dynamic).group(1) == re.search(r"Evaluated (\d+)", static).group(1)
    for option in (["--learning-rate", "0.001"], ["--streams", "4"]):
        ignored = run("fairseq-hmrnn", "evaluate", checkpoint, data, *option, check=False)
        assert ignored.returncode == 2 and "require --dynamic" in ignored.stdout
    assert "Evaluated 30 tokens" in run("fairseq-hmrnn", "evaluate", checkpoint, data, "--first", "30").stdout
    missing = run("fairseq-hmrnn", "evaluate", checkpoint, data, "--subset", "other", check=False)
    assert missing.returncode == 2 and "no split other" in missing.stdout
