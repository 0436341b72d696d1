"""A small language model and a batch for it."""

import pytest
import torch
from small_texts import dictionary_of

from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.decoder import HMLSTMDecoder
from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel


@pytest.fixture
def dictionary():
    return dictionary_of("abcd")


@pytest.fixture
def model(dictionary):
    torch.manual_seed(2)
    cfg = HMLSTMLanguageModelConfig(embed_dim=4, hidden_sizes="6,5,4", output_dim=5)
    cfg.dropout_input = cfg.dropout_output = cfg.dropout_recurrent = 0.0  # so that losses can be compared
    return HMLSTMLanguageModel(HMLSTMDecoder(cfg, dictionary)).train()


@pytest.fixture
def sample(dictionary):
    source = torch.randint(4, 8, (3, 9), generator=torch.Generator().manual_seed(0))
    target = source.roll(-1, 1)
    source[1, 6:] = target[1, 6:] = dictionary.pad()
    return {"net_input": {"src_tokens": source}, "target": target, "ntokens": int(target.ne(dictionary.pad()).sum())}
