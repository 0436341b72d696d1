"""A small language model for tests, in float64, with weights large enough to make boundaries vary."""

import torch
from small_texts import dictionary_of

from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.decoder import HMLSTMDecoder
from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel

DICTIONARY = dictionary_of("abcdefg")
PAD = DICTIONARY.pad()


def with_large_weights(model):
    """In evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def make(dictionary=DICTIONARY, **options):
    """In evaluation mode, without dropout."""
    torch.manual_seed(3)
    off = {"dropout_input": 0.0, "dropout_output": 0.0, "dropout_recurrent": 0.0}
    options = {"embed_dim": 6, "hidden_sizes": "8,5,7", "output_dim": 9, **off, **options}
    decoder = HMLSTMDecoder(HMLSTMLanguageModelConfig(**options), dictionary)
    return with_large_weights(HMLSTMLanguageModel(decoder).double())


def tokens(batch, length):
    return torch.randint(4, len(DICTIONARY), (batch, length), generator=torch.Generator().manual_seed(1))
