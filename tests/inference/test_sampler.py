"""Sampling in constant memory, against loops over full forward passes and against probabilities."""

import math

import numpy as np
import pytest
import torch
from pairs import pairs
from small_language_model import DICTIONARY, PAD, make

from fairseq_hmrnn.inference import sampler
from fairseq_hmrnn.inference.sampler import Sampler, SamplingOptions, limited
from fairseq_hmrnn.models import decoding
from fairseq_hmrnn.ops import cpu

BEGIN = DICTIONARY.eos()


def sample(models, prompts, length, never=(PAD,), **options):
    steps = Sampler(models, SamplingOptions(**options), PAD, never).run(prompts)
    return list(zip(*[next(steps).tokens for _ in range(length)]))


def test_greedy_equals_an_argmax_loop_over_full_forward_passes():
    model, prompts = make(), [[BEGIN], [BEGIN, 5, 6, 7], [BEGIN, 8, 8]]
    found = sample([model], prompts, 15, greedy=True)
    for prompt, symbols in pairs(prompts, found):  # of different lengths, in one batch
        text = list(prompt)
        for _ in range(15):
            logits = model(torch.tensor([text]))[0][0, -1].clone()
            logits[PAD] = -math.inf
            text.append(int(logits.argmax()))
        assert tuple(text[len(prompt) :]) == symbols


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_diverged_model_is_named(backend):
    model = make(backend=backend)
    with torch.no_grad():
        model.decoder.output_projection.bias[5] = math.nan
    with pytest.raises(ValueError, match="training has diverged"):
        sample([model], [[BEGIN]], 1)


def chi_square(counts, probs):
    """Distance in standard deviations of the chi-square statistic from its mean."""
    expected = counts.sum() * probs
    freedom = int((probs > 0).sum()) - 1
    kept = expected > 0
    assert not counts[~kept].any()
    return float((((counts - expected)[kept] ** 2 / expected[kept]).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 1.7, "top_k": 5, "top_p": 0.9}]
)
def test_frequencies_match_probabilities(options):
    model, rows = make(), 4000
    logits = model(torch.tensor([[BEGIN, 6]]))[0][0, -1].detach() / options.get("temperature", 1)
    logits[PAD] = -math.inf
    probs = limited(logits.unsqueeze(0), options.get("top_k", 0), options.get("top_p", 1.0))[0].softmax(0)
    found = torch.tensor(sample([model], [[BEGIN, 6]] * rows, 1, seed=1, **options)).squeeze(1)
    assert abs(chi_square(torch.bincount(found, minlength=len(probs)).double(), probs)) < 5
    assert abs(chi_square(torch.bincount(found, minlength=len(probs)).double(), probs.flip(0) + 1e-9)) > 5


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}])
def test_greedy_does_not_go_with_what_it_would_ignore(other):
    with pytest.raises(ValueError, match="greedy always takes the most probable symbol: leave "):
        SamplingOptions(greedy=True, **other).check()


def test_second_symbols_follow_the_first():
    model, rows = make(), 6000
    found = torch.tensor(sample([model], [[BEGIN]] * rows, 2, seed=2))
    frequent = [first for first, count in enumerate(torch.bincount(found[:, 0]).tolist()) if count > 300]
    assert len(frequent) > 1
    for first in frequent:
        second = found[found[:, 0] == first, 1]
        logits = model(torch.tensor([[BEGIN, first]]))[0][0, -1].detach()
        logits[PAD] = -math.inf
        counts = torch.bincount(second, minlength=len(logits)).double()
        assert abs(chi_square(counts, logits.softmax(0))) < 5


def test_limits_keep_the_smallest_sets():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    limits = (2, 1.0), (0, 0.5), (0, 0.51), (1, 0.9), (9, 1.0)
    kept = [limited(logits, k, p).isfinite()[0].tolist() for k, p in limits]
    assert kept == [
        [False, True, False, True],
        [False, True, False, False],
        [False, True, False, True],
        [False, True, False, False],
        [True] * 4,
    ]


def test_seeds():
    model, prompts = make(), [[BEGIN, 5]] * 3
    first = sample([model], prompts, 30, seed=4)
    assert first == sample([model], prompts, 30, seed=4) == sample([model], prompts, 30, seed=np.int64(4))
    assert first != sample([model], prompts, 30, seed=5)
    assert len(set(first)) == 3


@pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
@pytest.mark.parametrize(
    "options", [{}, {"greedy": True}, {"temperature": 0.6, "top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.9}]
)
def test_the_compiled_kernel_samples_what_torch_samples(monkeypatch, options):
    """Across several calls of the kernel, with prompts of different lengths, one of them longer than a call."""
    monkeypatch.setattr(sampler, "COMPILED_SYMBOLS", 12)
    monkeypatch.setattr(sampler, "NOISE_NUMBERS", 500)  # ends within a call
    model, prompts = make(), [[BEGIN, *[5, 7] * 10], [BEGIN], [BEGIN, 4, 4]]

    def steps():
        found = Sampler([model], SamplingOptions(seed=3, **options), PAD, [PAD, 6]).run(prompts, scores=True)
        return zip(*[next(found) for _ in range(40)])

    tokens, log_probs, boundaries = steps()
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", "python")
    monkeypatch.setattr(decoding.CompiledSteps, "sample", None)
    expected_tokens, expected_log_probs, expected_boundaries = steps()
    assert (tokens, boundaries) == (expected_tokens, expected_boundaries)
    torch.testing.assert_close(torch.tensor(log_probs), torch.tensor(expected_log_probs), rtol=0, atol=1e-5)


@pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
@pytest.mark.parametrize("numbers", [60, 2**16])
def test_what_comes_after_a_sample_does_not_depend_on_the_speed(monkeypatch, numbers):
    """How many symbols a call of the kernel makes does, and those that nobody takes are no part of the sequence."""
    monkeypatch.setattr(sampler, "NOISE_NUMBERS", numbers)
    model = make()

    def samples():
        drawn = Sampler([model], SamplingOptions(seed=3), PAD, [PAD])
        runs = (drawn.run([[BEGIN, 5]]) for _ in range(3))
        return [[next(steps).tokens for _ in range(7 + count)] for count, steps in enumerate(runs)]

    found = []
    for seconds in (-1, math.inf):
        monkeypatch.setattr(sampler, "CALL_SECONDS", seconds)
        found.append(samples())
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", "python")
    monkeypatch.setattr(decoding.CompiledSteps, "sample", None)
    assert found == [samples()] * 2


def test_an_ensemble_averages_probabilities():
    models = [make(), make(hidden_sizes="4,6", boundary="soft")]
    prompt = [BEGIN, 5, 7]
    probs = sum(model(torch.tensor([prompt[:-1]]))[0][0, -1].softmax(0) for model in models) / 2
    log_probs, boundaries = Sampler(models, SamplingOptions(), PAD).read(prompt)
    assert log_probs[-1] == pytest.approx(float(probs[7].log()), abs=1e-6)
    assert len(log_probs) == len(boundaries) == 2 and len(boundaries[0]) == 3  # the first model's layers


def test_steps_report_scores_and_boundaries():
    model = make()
    steps = Sampler([model], SamplingOptions(seed=1), PAD).run([[BEGIN]], scores=True)
    found = [next(steps) for _ in range(12)]
    text = torch.tensor([[BEGIN] + [step.tokens[0] for step in found]])
    logits, extra = model(text)
    expected = logits[0].log_softmax(1)[torch.arange(12), text[0, 1:]]
    torch.testing.assert_close(torch.tensor([step.log_probs[0] for step in found]), expected.float(), rtol=0, atol=1e-5)
    assert [step.boundaries[0] for step in found] == extra["trace"].boundaries[0, :12].tolist()


@pytest.mark.parametrize("prompts", [[], [[]], [[], [BEGIN]]])
def test_a_prompt_has_a_symbol(prompts):
    with pytest.raises(ValueError, match="give at least one prompt, each of at least one symbol"):
        sample([make()], prompts, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_k": 2.5}, "top-k must be a whole number, 0 .* not 2.5"),
        ({"top_p": 0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"seed": 1.5}, "seed must be a whole number of 64 bits"),
        ({"seed": 2**65}, "seed must be a whole number of 64 bits"),
        ({"seed": True}, "seed must be a whole number of 64 bits, .* not True"),
        ({"top_k": True}, "top-k must be a whole number, .* not True"),
    ],
)
def test_options_without_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler([make()], SamplingOptions(**options), PAD)


@pytest.mark.parametrize("top_k", [0, 3])
def test_samples_are_the_same_under_another_default_dtype(monkeypatch, top_k):
    expected = sample([make()], [[2]] * 2, 9, top_k=top_k, seed=4)
    model = make()
    try:
        torch.set_default_dtype(torch.float64)
        assert sample([model], [[2]] * 2, 9, top_k=top_k, seed=4) == expected
    finally:
        torch.set_default_dtype(torch.float32)
