"""fairseq's search with models for translation."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from small_translation import MODELS, PAD, TARGET, make, tokens


def test_no_ngram_of_a_translation_is_repeated():
    """fairseq's own search forbids nothing on a CPU."""
    model, x = make("hmlstm"), tokens(8, 7)
    sample = {"net_input": {"src_tokens": x, "src_lengths": x.ne(PAD).sum(1)}}
    repeated = []
    for size in (0, 2):
        options = {"beam_size": 3, "min_len": 10, "max_len_b": 12, "no_repeat_ngram_size": size}
        found = SequenceGenerator([model], TARGET, **options).generate([model], sample)
        bigrams = [list(zip(hypo["tokens"], hypo["tokens"][1:])) for hypos in found for hypo in hypos]
        repeated.append(sum(len(each) > len(set((int(a), int(b)) for a, b in each)) for each in bigrams))
    assert repeated[0] and not repeated[1]


@pytest.mark.parametrize("name", MODELS)
def test_a_beam_of_one_is_greedy_search(name):
    model, x = make(name, encoder_memory="segments:1", bidirectional=True), tokens(3, 7)
    x[0, :3] = PAD
    sample = {"net_input": {"src_tokens": x, "src_lengths": x.ne(PAD).sum(1)}}
    found = SequenceGenerator([model], TARGET, beam_size=1, max_len_b=12).generate([model], sample)
    for row, hypotheses in enumerate(found):
        y = torch.tensor([[TARGET.eos()]])
        for _ in hypotheses[0]["tokens"]:
            logits = model(x[row : row + 1], None, y)[0][:, -1]
            logits[:, PAD] = -torch.inf
            if y.size(1) == 1:
                logits[:, TARGET.eos()] = -torch.inf  # at least one symbol
            y = torch.cat([y, logits.argmax(1, keepdim=True)], dim=1)
        expected, tokens_found = y[0, 1:], hypotheses[0]["tokens"]
        if len(tokens_found) == 13:  # stopped by length, with the end symbol
            expected, tokens_found = expected[:-1], tokens_found[:-1]
        assert torch.equal(expected, tokens_found)
