"""A network that reads the text beside the model, in training only: how well the symbols after a symbol predict it,
and in a translation source, which the model does not predict, those before it."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn

from .boundary_regularizers import Signals, entropy_and_surprisal, masked_mean

SIZE = 128  # of embedding and state
CONTEXT = 5  # steps at a row's end that say nothing: with fewer symbols to read than this, everything is uncertain


class RightToLeftPredictor(nn.Module):
    """p(x_t | x_{t+1} ... x_{T+1}) for every step t of a batch: embedding, an LSTM, softmax.

    It reads a row and nothing after it. num_symbols, padding_idx: of the dictionary.
    """

    def __init__(self, num_symbols: int, padding_idx: int):
        super().__init__()
        self.padding_idx = padding_idx
        self.embed_tokens = nn.Embedding(num_symbols, SIZE, padding_idx)
        self.lstm = nn.LSTM(SIZE, SIZE, batch_first=True)
        self.output_projection = nn.Linear(SIZE, num_symbols)

    def forward(self, source: Tensor, target: Tensor) -> Tuple[Tensor, Signals]:
        """source (B, T): x_t; target (B, T): x_{t+1}; both padded at either end or not at all.

        Returns the mean of -log p(x_t | x_{t+1} ...) in nats, and what these predictions say of every step, without
        gradient. The last CONTEXT steps of a row count as not predicted.
        """
        padding = target.eq(self.padding_idx).flip(1)
        order = padding.to(torch.uint8).sort(dim=1, stable=True)[1]  # rows reversed, padding after the text
        hidden, _ = self.lstm(self.embed_tokens(target.flip(1).gather(1, order)))
        hidden = torch.zeros_like(hidden).scatter(1, order.unsqueeze(-1).expand_as(hidden), hidden).flip(1)
        log_probs = self.output_projection(hidden).float().log_softmax(-1)
        entropy, surprisal = entropy_and_surprisal(log_probs, source)
        known = source.ne(self.padding_idx) & target.ne(self.padding_idx)
        remaining = known.flip(1).cumsum(1).flip(1)
        return masked_mean(surprisal, known), Signals(entropy, surprisal.detach(), known & (remaining > CONTEXT))


def left_to_right(predictor: RightToLeftPredictor, tokens: Tensor) -> Tuple[Tensor, Signals]:
    """p(x_{t+1} | x_1 ... x_t) for every step t of tokens (B, T), by a predictor that reads them in the other order.

    Returns the mean of -log p(x_{t+1} | ...) in nats, and what these predictions say of every step, without gradient.
    """
    following = followers(tokens, predictor.padding_idx)
    nll, signals = predictor(following.flip(1), tokens.flip(1))
    predicted = following.ne(predictor.padding_idx) & tokens.ne(predictor.padding_idx)
    return nll, Signals(signals.entropy.flip(1), signals.surprisal.flip(1), predicted)


def followers(tokens: Tensor, padding_idx: int) -> Tensor:
    """The symbol after each of tokens (B, T), padding after the last."""
    return torch.cat([tokens[:, 1:], tokens.new_full((tokens.size(0), 1), padding_idx)], dim=1)
