"""Sampling symbol by symbol, for as long as one likes, in constant memory."""

from __future__ import annotations

import math
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

NOISE_NUMBERS = 2**16  # drawn at a time: one call for many steps


class SamplingOptions(NamedTuple):
    """How the next symbol is chosen.

    temperature: divides the logits, > 0. top_k: only the k most probable symbols, 0 for all. top_p: only the most
    probable symbols that together have this probability, 1 for all. greedy: always the most probable symbol.
    seed: of the random numbers; None draws one.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    seed: Optional[int] = None

    def check(self) -> SamplingOptions:
        """Itself; ValueError where a value has no meaning."""
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a positive number, not {self.temperature}: for 0 use greedy")
        if self.top_k < 0:
            raise ValueError(f"top-k must be 0 (all symbols) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1 (all symbols), not {self.top_p}")
        return self


class Step(NamedTuple):
    """tokens: the new symbol of each sample. log_probs: what the model, temperature and limits aside, gave each of
    them, in nats; None unless asked for. boundaries: per sample and layer, whether a segment ended with the symbol
    *before* it, None for a model without boundaries."""

    tokens: List[int]
    log_probs: Optional[List[float]]
    boundaries: Optional[List[List[float]]]


class Sampler:
    """Continues prompts with an ensemble of fairseq language models that decode incrementally.

    models: with a `decoder`, of one dictionary. never: symbols that are never chosen, for instance padding.
    """

    def __init__(self, models: Sequence, options: SamplingOptions, pad: int, never: Sequence[int] = ()):
        self.decoders = [model.decoder for model in models]
        self.options = options.check()
        self.pad, self.never = pad, list(never)
        self.random = torch.Generator()
        if options.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(options.seed)
        self.noise: Iterator[Tensor] = iter(())

    def run(self, prompts: Sequence[Sequence[int]], scores: bool = False) -> Iterator[Step]:
        """Endlessly the next symbols of all prompts; a prompt begins with the model's begin symbol.

        Prompts of different lengths go together: a sample waits on padding, which leaves an HM-LSTM's state alone.
        """
        states: List[dict] = [{} for _ in self.decoders]
        for column in self._columns(prompts):
            logits, boundaries = self._feed(column, states)
        while True:
            tokens = self._choose(logits)
            log_probs = None
            if scores:
                log_probs = logits.log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
            yield Step(tokens.tolist(), log_probs, None if boundaries is None else boundaries.tolist())
            logits, boundaries = self._feed(tokens.unsqueeze(1), states)

    def read(self, prompt: Sequence[int]) -> Tuple[List[float], List[Optional[List[float]]]]:
        """For the symbols of one prompt after its begin symbol: log-probabilities, and the boundaries that `run`
        reports later than them: element i belongs to the symbol before."""
        states: List[dict] = [{} for _ in self.decoders]
        log_probs, boundaries = [], []
        for column, symbol in zip(self._columns([prompt[:-1]]), prompt[1:]):
            logits, found = self._feed(column, states)
            log_probs.append(float(logits.log_softmax(1)[0, symbol]))
            boundaries.append(None if found is None else found[0].tolist())
        return log_probs, boundaries

    def _columns(self, prompts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """(B, 1) of every step, shorter prompts padded at their start."""
        longest = max(map(len, prompts))
        padded = [[self.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        if any(len(prompt) < longest for prompt in prompts) and not all(hasattr(d, "hm_lstm") for d in self.decoders):
            raise ValueError("prompts of different lengths want an HM-LSTM: sample one after the other")
        device = next(self.decoders[0].parameters()).device
        return iter(torch.tensor(padded, device=device).split(1, dim=1))

    @torch.no_grad()
    def _feed(self, tokens: Tensor, states: List[dict]) -> Tuple[Tensor, Optional[Tensor]]:
        """tokens (B, 1). Returns logits, or of an ensemble log-probabilities, (B, V), and the first model's
        boundaries (B, L)."""
        found = [decoder(tokens, incremental_state=state) for decoder, state in zip(self.decoders, states)]
        boundaries = found[0][1].get("boundaries") if isinstance(found[0][1], dict) else None
        logits = [logits[:, -1].float() for logits, _ in found]
        if len(logits) == 1:
            mean = logits[0]
        else:
            mean = torch.stack([x.log_softmax(1) for x in logits]).logsumexp(0) - math.log(len(logits))
        return mean, None if boundaries is None else boundaries[:, -1]

    def _choose(self, logits: Tensor) -> Tensor:
        """(B,) symbols: the largest of log-probability plus Gumbel noise is a sample of the distribution."""
        options = self.options
        if self.never:
            logits = logits.clone()
            logits[:, self.never] = -math.inf
        if options.greedy:
            return logits.argmax(1)
        scaled = logits if options.temperature == 1 else logits / options.temperature
        if options.top_k or options.top_p < 1:
            scaled = limited(scaled, options.top_k, options.top_p)
        return (scaled + self._next_noise(scaled)).argmax(1)

    def _next_noise(self, like: Tensor) -> Tensor:
        noise = next(self.noise, None)
        if noise is None:
            count = max(1, NOISE_NUMBERS // like.numel())
            exponential = torch.empty(count, *like.shape).exponential_(generator=self.random)
            self.noise = iter(exponential.clamp_(min=1e-30).log_().neg_().to(like.device).unbind(0))
            noise = next(self.noise)
        return noise


def limited(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """logits (B, V), -inf for all but the top_k most probable symbols and all but the smallest set of most probable
    symbols whose probability reaches top_p. The most probable one always stays."""
    values, order = logits.sort(dim=1, descending=True)
    drop = torch.zeros_like(values, dtype=torch.bool)
    if top_k:
        drop[:, top_k:] = True
    if top_p < 1:
        probs = values.masked_fill(drop, -math.inf).softmax(1)
        drop |= probs.cumsum(1) - probs >= top_p
    return logits.masked_fill(drop.scatter(1, order, drop), -math.inf)
