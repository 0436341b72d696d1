"""Sampling symbol by symbol, for as long as one likes, in constant memory."""

from __future__ import annotations

import math
import numbers
import time
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..models.decoding import CompiledSteps
from ..ops.cpu.generation import SymbolChoice, check_numbers
from ..trace import trace_of
from .reader import closes, mean_log_probs, output_symbols

LEAST_TEMPERATURE = 1e-6
NOISE_NUMBERS = 2**16  # drawn at a time: one call for many steps
COMPILED_SYMBOLS = 256  # at most, that one call of the compiled kernel chooses or reads
CALL_SECONDS = 0.02  # calls grow until they take so long: text keeps flowing


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
        if not LEAST_TEMPERATURE <= self.temperature <= 1 / LEAST_TEMPERATURE:  # else logits overflow
            raise ValueError(
                f"temperature must be a positive number, from {LEAST_TEMPERATURE:g} to {1 / LEAST_TEMPERATURE:g}, not "
                f"{self.temperature}: for 0 use greedy"
            )
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise ValueError(f"top-k must be a whole number, 0 (all symbols) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1 (all symbols), not {self.top_p}")
        if self.greedy and (self.temperature, self.top_k, self.top_p) != (1, 0, 1):
            raise ValueError("greedy always takes the most probable symbol: leave temperature, top-k and top-p out")
        if self.seed is not None and not (_is_whole(self.seed) and -(2**63) <= self.seed < 2**64):
            raise ValueError(f"seed must be a whole number of 64 bits, or None to draw one, not {self.seed!r}")
        return self


class SampledStep(NamedTuple):
    """tokens: the new symbol of each sample. log_probs: what the model, temperature and limits aside, gave each of
    them, in nats; None unless asked for. boundaries: per sample and layer, whether a segment ended with the symbol
    *before* it, None for a model without boundaries."""

    tokens: List[int]
    log_probs: Optional[List[float]]
    boundaries: Optional[List[List[float]]]


class Sampler:
    """Continues prompts with an ensemble of fairseq language models whose steps read one symbol each, such as HM-LSTM
    and fairseq's lstm_lm; not with those that have positional embeddings.

    models: with a `decoder`, of one dictionary. never: symbols that are never chosen, for instance padding.
    """

    def __init__(self, models: Sequence, options: SamplingOptions, pad: int, never: Sequence[int] = ()):
        self.decoders = [model.decoder for model in models]
        options = options.check()
        self.options = options._replace(top_k=min(int(options.top_k), len(self.decoders[0].dictionary)))
        self.pad, self.never = pad, list(never)
        self.random = torch.Generator()
        if options.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(int(options.seed))  # torch takes none of numpy's
        self.noise = torch.empty(0, dtype=torch.float32)  # (steps, B, V), not used yet

    def run(self, prompts: Sequence[Sequence[int]], scores: bool = False) -> Iterator[SampledStep]:
        """Yields the next symbols of all prompts without end; a prompt begins with the model's begin symbol.

        Prompts of different lengths go together: a sample waits on padding, which leaves an HM-LSTM's state alone. The
        models must not change while this goes on. ValueError for no prompt or an empty one, for models with positional
        embeddings, and for different lengths with others than HM-LSTM.
        """
        if not prompts or not all(map(len, prompts)):
            raise ValueError("give at least one prompt, each of at least one symbol, which may be the begin symbol")
        columns = self._columns(prompts)
        steps = self._compiled_steps(len(prompts))
        return self._run(columns, scores) if steps is None else self._run_compiled(steps, columns, scores)

    def _run(self, prompts: Tensor, scores: bool) -> Iterator[SampledStep]:
        """As `run`, by steps of the models themselves. prompts (B, T)."""
        states: List[dict] = [{} for _ in self.decoders]
        for column in prompts.split(1, dim=1):
            logits, boundaries = self._feed(column, states)
        while True:
            tokens = self._choose(logits)
            log_probs = None
            if scores:
                log_probs = logits.log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
            yield SampledStep(tokens.tolist(), log_probs, None if boundaries is None else boundaries.tolist())
            logits, boundaries = self._feed(tokens.unsqueeze(1), states)

    def read(self, prompt: Sequence[int]) -> Tuple[List[float], List[Optional[List[float]]]]:
        """For the symbols of one prompt after its begin symbol: log-probabilities, and the boundaries that `run`
        reports later than them: element i belongs to the symbol before. ValueError for models with positional
        embeddings."""
        states: List[dict] = [{} for _ in self.decoders]
        log_probs, boundaries = [], []
        targets = output_symbols(torch.tensor(prompt[1:], dtype=torch.long), self.decoders[0].dictionary).tolist()
        for column, symbol in zip(self._columns([prompt[:-1]]).split(1, dim=1), targets):
            logits, found = self._feed(column, states)
            log_probs.append(float(logits.log_softmax(1)[0, symbol]))
            boundaries.append(None if found is None else found[0].tolist())
        return log_probs, boundaries

    @torch.no_grad()
    def _compiled_steps(self, batch_size: int) -> Optional[CompiledSteps]:
        """The steps of a single model, where the compiled kernel takes them, else None."""
        begin = getattr(self.decoders[0], "begin_generation", None)
        if len(self.decoders) > 1 or begin is None:
            return None
        steps = begin(batch_size)
        return steps if isinstance(steps, CompiledSteps) else None

    def _run_compiled(self, steps: CompiledSteps, prompts: Tensor, scores: bool) -> Iterator[SampledStep]:
        """As `run`, many steps in one call. prompts (B, T)."""
        options, symbols = self.options, len(self.decoders[0].dictionary)
        never = torch.zeros(symbols, dtype=torch.bool)
        never[self.never] = True
        *read, tokens = prompts.t().split(max(1, COMPILED_SYMBOLS // prompts.size(0)))
        for piece in read:
            steps.read(piece)
        batch_size, count = prompts.size(0), 1
        while True:
            start = time.perf_counter()
            noise = None if options.greedy else self._next_noise(torch.Size([batch_size, symbols]), count)
            choice = SymbolChoice(options.temperature, options.top_k, options.top_p, never, noise)
            found = steps.sample(tokens, count if noise is None else noise.size(0), choice)
            new, chosen = slice(tokens.size(0) - 1, None), found.chosen
            assert chosen is not None  # there was a choice
            log_probs = [None] * chosen.size(0)
            if scores:
                of_chosen = found.logits[new].float().log_softmax(2).gather(2, chosen.unsqueeze(2))
                log_probs = of_chosen.squeeze(2).tolist()
            if time.perf_counter() - start < CALL_SECONDS:
                count = min(2 * count, max(1, COMPILED_SYMBOLS // batch_size))
            tokens = chosen[-1:]
            taken = 0
            try:
                for step in map(SampledStep, chosen.tolist(), log_probs, closes(found.boundaries[new]).tolist()):
                    taken += 1
                    yield step
            except GeneratorExit:  # a call makes as many steps as time allows: the next run must not depend on it
                if noise is not None and noise.shape[1:] == self.noise.shape[1:]:
                    self.noise = torch.cat([noise[taken:], self.noise])
                raise

    def _columns(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(B, T), shorter prompts padded at their start. ValueError for decoders that would read it otherwise."""
        for decoder in self.decoders:
            if getattr(decoder, "embed_positions", None) is not None:  # at a step it looks for them in the whole prefix
                raise ValueError(
                    f"{type(decoder).__name__} has positional embeddings, and sampling reads one symbol at a time: "
                    "use beam search (sample --beam N without --json, from Python sample(..., beam=N))"
                )
        longest = max(map(len, prompts))
        padded = [[self.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        if any(len(prompt) < longest for prompt in prompts) and not all(hasattr(d, "hm_lstm") for d in self.decoders):
            raise ValueError("prompts of different lengths require an HM-LSTM: sample one after the other")
        device = next(self.decoders[0].parameters()).device
        return torch.tensor(padded, device=device)

    @torch.no_grad()
    def _feed(self, tokens: Tensor, states: List[dict]) -> Tuple[Tensor, Optional[Tensor]]:
        """tokens (B, 1). Returns logits, or of an ensemble log-probabilities, (B, V), and the first model's
        boundaries (B, L), 0 or 1."""
        found = [decoder(tokens, incremental_state=state) for decoder, state in zip(self.decoders, states)]
        trace = trace_of(found[0])
        logits = [_predictions(decoder, output) for decoder, output in zip(self.decoders, found)]
        if len(logits) == 1:
            mean = logits[0]
        else:
            mean = mean_log_probs(x.log_softmax(1) for x in logits)
        return mean, None if trace is None else closes(trace.boundaries[:, -1])

    def _choose(self, logits: Tensor) -> Tensor:
        """(B,) symbols: the largest of log-probability plus Gumbel noise is a sample of the distribution."""
        check_numbers(logits)
        options = self.options
        if self.never:
            logits = logits.clone()
            logits[:, self.never] = -math.inf
        if options.greedy:
            return logits.argmax(1)
        scaled = logits if options.temperature == 1 else logits / options.temperature
        if options.top_k or options.top_p < 1:
            scaled = limited(scaled, options.top_k, options.top_p)
        return (scaled + self._next_noise(scaled.shape, 1)[0].to(scaled.device)).argmax(1)

    def _next_noise(self, shape: torch.Size, steps: int) -> Tensor:
        """(T, B, V) of the Gumbel distribution, 1 to `steps` steps of it. shape: (B, V)."""
        if not len(self.noise) or self.noise.shape[1:] != shape:
            count = max(1, NOISE_NUMBERS // (shape[0] * shape[1]))
            exponential = torch.empty(count, *shape, dtype=torch.float32).exponential_(generator=self.random)
            self.noise = exponential.clamp_(min=1e-30).log_().neg_()
        noise, self.noise = self.noise[:steps], self.noise[steps:]
        return noise


def _is_whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _predictions(decoder, output) -> Tensor:
    """A decoder's logits, or log-probabilities, for the last step, (B, V). output: what it returned."""
    if getattr(decoder, "adaptive_softmax", None) is None:
        return output[0][:, -1].float()
    return decoder.get_normalized_probs(output, log_probs=True)[:, -1].float()


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
