"""fairseq's search over a tiny model, against every text that there is."""

import argparse
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from fairseq.sequence_generator import SequenceGenerator
from pairs import pairs
from small_language_model import make
from small_texts import dictionary_of

from fairseq_hmrnn.inference.sampler import Sampler, SamplingOptions
from fairseq_hmrnn.inference.search import PromptedGenerator
from fairseq_hmrnn.models import decoding

DICTIONARY = dictionary_of("abc")
EOS, UNK = DICTIONARY.eos(), DICTIONARY.unk()
SYMBOLS = [EOS, UNK, *(DICTIONARY.index(c) for c in "abc")]
BEAM = 6


def log_prob(model, prompt, new):
    """Natural logarithm of the probability of the symbols `new` after the prompt, by full forward passes."""
    text = torch.tensor([[EOS, *prompt, *new]])
    scores = model(text)[0][0].log_softmax(1)
    return sum(float(scores[len(prompt) + i, symbol]) for i, symbol in enumerate(new))


def search(model, prompts, **options):
    longest = max(map(len, prompts))
    pad = DICTIONARY.pad()
    prefix = torch.tensor([list(p) + [pad] * (longest - len(p)) for p in prompts])
    net_input = {"src_tokens": prefix, "src_lengths": torch.tensor([len(p) for p in prompts])}
    generator = PromptedGenerator([model], DICTIONARY, beam_size=BEAM, **options)
    return generator.generate([model], {"net_input": net_input}, prefix_tokens=prefix, bos_token=EOS)


def test_beam_search_finds_the_best_of_all_texts():
    model, prompts = make(DICTIONARY), [(4, 5, 6), (EOS, 4), (6,)]
    found = search(model, prompts, max_len_b=2, normalize_scores=False, score_new_only=True)
    for prompt, hypos in pairs(prompts, found):
        every = {new: log_prob(model, prompt, new) for new in itertools.product(SYMBOLS, repeat=2)}
        best = sorted(every, key=every.get, reverse=True)[:BEAM]
        assert [tuple(hypo["tokens"].tolist()) for hypo in hypos] == [(*prompt, *new) for new in best]
        for hypo, new in pairs(hypos, best):
            assert float(hypo["score"]) == pytest.approx(every[new], abs=1e-5)


def repeats(symbols, size, given):
    """Whether an n-gram of this size comes again with a symbol after the first `given`."""
    ngrams = [tuple(symbols[end - size : end]) for end in range(size, len(symbols) + 1)]
    return any(ngram in ngrams[:place] for place, ngram in enumerate(ngrams) if place + size > given)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated_after_the_prompt(size):
    """Which may itself repeat some."""
    model, prompts = make(DICTIONARY), [(4, 4, 4, 4), (6, 5, 6, 5, 6)]
    options = {"max_len_b": 2, "normalize_scores": False, "score_new_only": True}
    for prompt, hypos in pairs(prompts, search(model, prompts, no_repeat_ngram_size=size, **options)):
        every = {new: log_prob(model, prompt, new) for new in itertools.product(SYMBOLS, repeat=2)}
        allowed = [new for new in every if not repeats([*prompt, *new], size, len(prompt))]
        best = sorted(allowed, key=every.get, reverse=True)[:BEAM]
        found = [tuple(hypo["tokens"].tolist()) for hypo in hypos if hypo["score"] > -math.inf]
        assert found == [(*prompt, *new) for new in best] and len(allowed) < len(every)


def test_a_symbol_comes_again_where_no_other_is_left():
    """As within a prefix, which fairseq's own search forces symbol by symbol."""
    model = make(DICTIONARY)
    ((best, *_),) = search(model, [(4, 5)], max_len_b=9, no_repeat_ngram_size=1)
    *new, _ = best["tokens"].tolist()[2:]
    assert len(new) > len(SYMBOLS) - 2 == len(set(new[: len(SYMBOLS) - 2]))
    prefix = torch.tensor([[4, 5, 4, 5, 4, 5]])
    sample = {"net_input": {"src_tokens": prefix, "src_lengths": torch.tensor([6])}}
    generator = SequenceGenerator([model], DICTIONARY, beam_size=2, max_len_b=12, no_repeat_ngram_size=2)
    for hypo in generator.generate([model], sample, prefix_tokens=prefix)[0]:
        tokens = hypo["tokens"].tolist()
        assert tokens[:6] == prefix[0].tolist() and not repeats(tokens, 2, 6)


def test_weights_are_packed_once_for_prompts_of_all_lengths(monkeypatch):
    model, packings = make(DICTIONARY), []
    freeze = decoding.freeze
    monkeypatch.setattr(decoding, "freeze", lambda decoder: packings.append(decoder) or freeze(decoder))
    prompts = [(4, 5, 6), (EOS, 4), (6,)]
    before = search(model, prompts, max_len_b=2)
    assert len(packings) == 1
    with torch.no_grad():
        model.decoder.output_projection.bias.add_(torch.randn(len(DICTIONARY), dtype=torch.float64))
    after = search(model, prompts, max_len_b=2)
    assert len(packings) == 2  # not older than the weights
    assert not torch.allclose(before[0][0]["positional_scores"], after[0][0]["positional_scores"])


def test_the_least_length_counts_new_symbols():
    model, prompt = make(DICTIONARY), (4, 5)
    (hypos,) = search(model, [prompt], max_len_b=1, stop=EOS, min_len=1, normalize_scores=False)
    every = {(symbol, EOS): log_prob(model, prompt, (symbol, EOS)) for symbol in SYMBOLS[1:]}
    best = sorted(every, key=every.get, reverse=True)
    assert [tuple(hypo["tokens"].tolist()) for hypo in hypos[: len(best)]] == [(*prompt, *new) for new in best]


@pytest.mark.parametrize("prompt", [(4, 5), (4, EOS, 5), (EOS,)])
@pytest.mark.parametrize("new_only", [False, True])
def test_a_stop_symbol_ends_texts_but_not_prompts(prompt, new_only):
    model = make(DICTIONARY)
    (hypos,) = search(model, [prompt], max_len_b=1, stop=EOS, min_len=0, score_new_only=new_only)
    every = {new: log_prob(model, prompt, new) for new in [(EOS,), *((s, EOS) for s in SYMBOLS[1:])]}
    before = 0 if new_only else log_prob(model, (), prompt)
    scores = {new: (before + p) / (len(new) + (0 if new_only else len(prompt))) for new, p in every.items()}
    best = sorted(scores, key=scores.get, reverse=True)
    assert [tuple(hypo["tokens"].tolist()) for hypo in hypos] == [(*prompt, *new) for new in best]
    for hypo, new in pairs(hypos, best):
        assert float(hypo["score"]) == pytest.approx(scores[new], abs=1e-5)
        assert math.isfinite(float(hypo["positional_scores"].sum()))


def test_a_transformer_is_searched_and_not_sampled_from():
    """Its positions are those of whole prefixes."""
    args = argparse.Namespace(decoder_embed_dim=8, decoder_ffn_embed_dim=8, decoder_layers=1, decoder_attention_heads=2)
    args.tokens_per_sample = args.max_target_positions = 64
    base_lm_architecture(args)
    torch.manual_seed(1)
    task = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    model, text = TransformerLanguageModel.build_model(args, task).eval(), [EOS, 4, 5, 6]
    sampler = Sampler([model], SamplingOptions(greedy=True), DICTIONARY.pad())
    for use in (lambda: sampler.run([text]), lambda: sampler.read(text)):
        with pytest.raises(ValueError, match="TransformerDecoder has positional embeddings.* use beam search .*--beam"):
            use()
    (found,) = search(model, [text[1:]], max_len_b=2, normalize_scores=False, score_new_only=True)
    every = {new: log_prob(model, text[1:], new) for new in itertools.product(SYMBOLS, repeat=2)}
    best = sorted(every, key=every.get, reverse=True)[:BEAM]
    assert [tuple(hypo["tokens"][3:].tolist()) for hypo in found] == best
    with pytest.raises(ValueError, match="reads at most 64 symbols, .* may have 63 together, not 64: give a smaller"):
        search(model, [text[1:]], max_len_b=61)
    assert search(model, [text[1:]], max_len_b=60)
