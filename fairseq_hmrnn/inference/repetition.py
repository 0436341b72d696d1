"""`--no-repeat-ngram-size`: on a CPU fairseq's own compares with padding after a hypothesis, and forbids nothing."""

from __future__ import annotations

import functools
import math
from typing import Callable

import torch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor, nn

from ..fairseq_hooks import is_of_this_package, wrap_once


class NoRepeatedNGrams(nn.Module):
    """In place of fairseq's NGramRepeatBlock: forbids each symbol that would complete an n-gram which the hypothesis
    already has, unless no other is left, as within a prompt. size: symbols of an n-gram."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        """lprobs (bsz * beam_size, V), in place. tokens: (bsz * beam_size, longest), begin symbol and `step` more."""
        if step < self.size:
            return lprobs
        ngrams = tokens[:, 1 : step + 1].unfold(1, self.size, 1)
        begun = tokens[:, None, step + 2 - self.size : step + 1]  # what the next symbol would complete
        rows, places = (ngrams[..., :-1] == begun).all(-1).nonzero(as_tuple=True)
        without = lprobs.index_put((rows, ngrams[rows, places, -1]), lprobs.new_tensor(-math.inf))
        return lprobs.copy_(torch.where(without.isfinite().any(1, keepdim=True), without, lprobs))


def _exchange_block(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of fairseq's generator, for this package's models."""

    @functools.wraps(init)
    def with_block(self, models, *args, **kwargs):
        init(self, models, *args, **kwargs)
        single = models.models if isinstance(models, EnsembleModel) else models
        if self.repeat_ngram_blocker is not None and is_of_this_package(*map(type, single)):
            self.repeat_ngram_blocker = NoRepeatedNGrams(self.repeat_ngram_blocker.no_repeat_ngram_size)

    return with_block


def install() -> None:
    """Have the option hold for this package's models. Called when the package is imported."""
    wrap_once(SequenceGenerator, "__init__", _exchange_block)
