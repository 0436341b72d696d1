"""Reading a known text with a language model, a window at a time: memory does not grow with the text."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor

from ..ops import HMLSTMOutput, HMLSTMState

WINDOW = 1000  # symbols per forward pass; the state is carried, so that it changes nothing but memory


@torch.no_grad()
def read_windows(
    decoder, tokens: Tensor, state: Optional[HMLSTMState] = None, size: int = WINDOW
) -> Iterator[Tuple[Tensor, HMLSTMOutput]]:
    """Windows of at most `size` of the tokens (T,): each one's logits, or log-probabilities, (T', V), and what the
    recurrence made of it, with a batch of 1. decoder: an HMLSTMDecoder, in evaluation. state: before the first token,
    zeros if None."""
    for window in tokens.split(size):
        output, _ = decoder.recur(window.unsqueeze(0), state)
        state = output.state
        yield decoder.predict(decoder.layer_output(output.hidden)).squeeze(1), output


def output_symbols(tokens: Tensor, dictionary) -> Tensor:
    """Tokens as a model with this output dictionary predicts them: those that a smaller one does not have, as unknown
    (--output-dictionary-size)."""
    return tokens.masked_fill(tokens >= len(dictionary), dictionary.unk())


def check_lookahead(lookahead: int) -> None:
    """ValueError unless it can be how many symbols of the next segment a layer reads before it closes one."""
    if lookahead < 0:
        raise ValueError(f"lookahead counts symbols from 0, got {lookahead}")
