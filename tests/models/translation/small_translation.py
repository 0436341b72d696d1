"""Small models for tests, of translation and of language, in float64, with weights large enough to make boundaries
vary."""

from types import SimpleNamespace

import torch
from small_language_model import with_large_weights
from small_texts import dictionary_of

from fairseq_hmrnn.models import HMLSTMLanguageModel, HMLSTMLSTMModel, HMLSTMModel, HMLSTMTransformerModel
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.translation.config import (
    HMLSTMLSTMConfig,
    HMLSTMTransformerConfig,
    HMLSTMTranslationConfig,
)

SOURCE, TARGET = dictionary_of("abcdefg"), dictionary_of("uvwxyz")
PAD = SOURCE.pad()
SIZES = {"embed_dim": 6, "hidden_sizes": "8,5,7"}
OFF = {"dropout_input": 0.0, "dropout_recurrent": 0.0, "dropout_memory": 0.0}
MODELS = {
    "hmlstm": (HMLSTMModel, HMLSTMTranslationConfig, {"output_dim": 9, "dropout_output": 0.0}),
    "hmlstm_unfed": (
        HMLSTMModel,
        HMLSTMTranslationConfig,
        {"output_dim": 9, "dropout_output": 0.0, "no_input_feeding": True, "decoder_hidden_sizes": "6,4"},
    ),
    "hmlstm_lstm": (
        HMLSTMLSTMModel,
        HMLSTMLSTMConfig,
        {"decoder_hidden_size": 9, "decoder_layers": 2, "decoder_dropout_in": 0.0, "decoder_dropout_out": 0.0},
    ),
    "hmlstm_transformer": (
        HMLSTMTransformerModel,
        HMLSTMTransformerConfig,
        {"decoder_embed_dim": 8, "decoder_ffn_embed_dim": 9, "decoder_attention_heads": 2, "dropout": 0.0},
    ),
}
MEMORIES = ("steps", "all-layers", "segments:1", "segments:2", "means:1")


def build_plain(name, target=TARGET, source=SOURCE, **options):
    """A model as fairseq builds it, with its own weights untouched, without dropout."""
    model_class, config, own = MODELS[name]
    task = SimpleNamespace(source_dictionary=source, target_dictionary=target)
    return model_class.build_model(config(**{**SIZES, **OFF, **own, **options}), task)


def make(name="hmlstm", source=SOURCE, target=TARGET, **options):
    """A model in evaluation mode, without dropout."""
    torch.manual_seed(3)
    return with_large_weights(build_plain(name, target, source, **options).double())


def tokens(batch, length, dictionary=SOURCE, seed=1):
    return torch.randint(4, len(dictionary), (batch, length), generator=torch.Generator().manual_seed(seed))


WORDS = dictionary_of([f"w{i}" for i in range(40)])
CUTOFFS = "9,20"  # the symbol PAD places after a cutoff is one like any other
ADAPTIVE = {
    "hmlstm": {"output_dim": 16},
    "hmlstm_unfed": {"output_dim": 16},
    "hmlstm_lstm": {"decoder_hidden_size": 16},
    "hmlstm_transformer": {"decoder_embed_dim": 16},
}
LANGUAGE_MODEL = {**SIZES, "output_dim": 16, "dropout_input": 0.0, "dropout_recurrent": 0.0, "dropout_output": 0.0}


def language_model(**options):
    """In evaluation mode, in float64, without dropout, with weights large enough to make boundaries vary."""
    torch.manual_seed(3)
    task = SimpleNamespace(source_dictionary=WORDS, target_dictionary=WORDS)
    cfg = HMLSTMLanguageModelConfig(**{**LANGUAGE_MODEL, **options})
    return with_large_weights(HMLSTMLanguageModel.build_model(cfg, task).double())
