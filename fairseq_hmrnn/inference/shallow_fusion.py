"""`--lm-path`: a language model whose probabilities join those of a translation predicts the same symbols."""

from __future__ import annotations

import functools
from typing import Callable

from fairseq.sequence_generator import SequenceGenerator

from ..fairseq_hooks import is_of_this_package, wrap_once


def _check_dictionary(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of fairseq's generator, which adds numbers of equal index, whatever they stand for."""

    @functools.wraps(init)
    def with_check(self, models, tgt_dict, *args, lm_model=None, **kwargs):
        is_ours = lm_model is not None and is_of_this_package(type(lm_model))
        if is_ours and lm_model.decoder.dictionary.symbols != tgt_dict.symbols:
            raise ValueError(
                "the dictionary of the language model of --lm-path is not that of the target language: train it on "
                "text prepared with fairseq-preprocess --only-source --srcdict and the target language's dict.*.txt"
            )
        init(self, models, tgt_dict, *args, lm_model=lm_model, **kwargs)

    return with_check


def install() -> None:
    """Have this package's language models checked. Called when the package is imported."""
    wrap_once(SequenceGenerator, "__init__", _check_dictionary)
