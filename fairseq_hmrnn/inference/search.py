"""Search that continues prompts: lengths count new symbols, and text may run over line ends."""

from __future__ import annotations

import contextlib
import math
from typing import Dict, List, Optional, Tuple

import torch
from fairseq.search import DiverseBeamSearch, PrefixConstrainedBeamSearch, Search
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from .reader import output_symbols
from .repetition import NoRepeatedNGrams

ENDS = ("auto", "length", "newline")


def stop_symbol(end: str, has_characters: bool, dictionary) -> Optional[int]:
    """The symbol that ends a sample, and is no part of it; None where its length alone does.

    end: "length"; "newline": `</s>`; "auto": length for a model of characters, which writes lines, and newline for any
    other. ValueError for anything else.
    """
    if end not in ENDS:
        raise ValueError(f"unknown end {end!r}: choose from {', '.join(ENDS)}")
    by_length = end == "length" or (end == "auto" and has_characters)
    return None if by_length else dictionary.eos()


class PromptedGenerator(SequenceGenerator):
    """fairseq's SequenceGenerator for language models.

    `max_len_a * prompt length + max_len_b` is the number of *new* symbols, and `min_len` counts new symbols too. If
    `stop` is None, a sample ends by length alone; otherwise also after that symbol, which a prompt may well hold.
    Prompts of different lengths in one batch are searched in groups of equal length, so that each gets what it would
    get alone. `score_new_only`: a hypothesis' score is that of its new symbols, without the prompt's.
    """

    def __init__(self, models, tgt_dict, stop: Optional[int] = None, score_new_only: bool = False, **kwargs):
        self.unused = tgt_dict.bos()  # never in text
        # Search requires some symbol that ends a hypothesis; where none does, it is this one, and is removed again.
        super().__init__(_Ensemble(models), tgt_dict, eos=self.unused if stop is None else stop, **kwargs)
        self.model.never = None if stop is None else self.unused
        self.symbols_to_strip_from_output = {self.unused}
        self.dictionary, self.stop, self.score_new_only = tgt_dict, stop, score_new_only
        self.lengths = (self.max_len_a, self.max_len_b, self.min_len)
        self.search: Search = self._after_prompt(self.search)
        size = kwargs.get("no_repeat_ngram_size", 0)
        self.repeat_ngram_blocker = NoRepeatedNGrams(size) if size > 0 else None  # for models of others too

    def _after_prompt(self, search: Search) -> Search:
        """A search whose penalties and constraints are of new symbols."""
        if isinstance(search, DiverseBeamSearch):
            return DiverseAfterPrompt(search, self.dictionary)
        if isinstance(search, PrefixConstrainedBeamSearch):
            return ConstrainedAfterPrompt(search, self.dictionary, self.unused, self.stop)
        return search

    def _generate(self, sample, prefix_tokens=None, constraints=None, bos_token=None):
        if prefix_tokens is None:
            tokens = sample["net_input"]["src_tokens"]
            prefix_tokens = tokens.new_empty(tokens.size(0), 0)
        prompt_lengths = prefix_tokens.ne(self.pad).sum(1)
        hypotheses: List[List[Dict[str, Tensor]]] = [[] for _ in range(prompt_lengths.numel())]
        with contextlib.ExitStack() as stack:
            for model in self.model.models:
                if hasattr(model.decoder, "frozen_weights"):
                    stack.enter_context(model.decoder.frozen_weights.shared())  # packed once for all groups
            for length in prompt_lengths.unique().tolist():
                rows = prompt_lengths.eq(length).nonzero().squeeze(1)
                found = self._generate_group(sample, rows, prefix_tokens[rows, :length], bos_token)
                for row, hypos in zip(rows.tolist(), found):
                    hypotheses[row] = hypos
        return hypotheses

    def _generate_group(self, sample, rows, prompts, bos_token):
        """Search for prompts (rows, length) of equal length."""
        net_input = {
            "src_tokens": sample["net_input"]["src_tokens"][rows],
            "src_lengths": sample["net_input"]["src_lengths"][rows],
        }
        length = prompts.size(1)
        max_len_a, max_len_b, min_len = self.lengths
        total = length + int(max_len_a * length + max_len_b)
        if total >= self.max_len:
            raise ValueError(
                f"the model reads at most {self.max_len} symbols, prompt and sample may have {self.max_len - 1} "
                f"together, not {total}: give a smaller length"
            )
        has_stop = self.stop is not None and bool(prompts.eq(self.stop).any())
        if has_stop and self.lm_model is not None:
            raise ValueError("--lm-path does not go with prompts of several lines: use --end-of-sample length")
        self.max_len_a, self.max_len_b = 0, total
        self.min_len = total if self.stop is None else min(length + min_len, total)
        if has_stop:
            self.eos = self.unused
            self.model.exchange(self.stop, self.unused, after=length)
        self.model.prompts = prompts
        self.search.prompt_length = length
        try:
            prefix = output_symbols(prompts, self.dictionary) if length else None
            group = {"net_input": net_input}
            if isinstance(self.search, ConstrainedAfterPrompt):  # others count the rows of a group from 0
                group["id"] = sample["id"][rows] if isinstance(sample.get("id"), Tensor) else rows
                self.search.begin(group["id"], prompts)
            found = super()._generate(group, prefix_tokens=prefix, bos_token=bos_token)
        finally:
            self.max_len_a, self.max_len_b, self.min_len = self.lengths
            self.eos = self.unused if self.stop is None else self.stop
            self.model.exchanged = self.model.prompts = None
        return [self._finish(hypos, prompt) for hypos, prompt in zip(found, prompts)]

    def _finish(self, hypos: List[Dict[str, Tensor]], prompt: Tensor) -> List[Dict[str, Tensor]]:
        """Put the stop symbol and the prompt in their places, or remove what stood for the former, and score what is
        left, best first."""
        if not hypos:
            raise ValueError(
                "the search found no text: prefix_allowed_tokens_fn must allow some symbol after each that it allows, "
                "and where samples end with </s> that one too, or give end='length'"
            )
        prompt_length = len(prompt)
        for hypo in hypos:
            hypo["tokens"][:prompt_length] = prompt
            if self.stop is None:
                hypo["tokens"], hypo["positional_scores"] = hypo["tokens"][:-1], hypo["positional_scores"][:-1]
            else:
                hypo["tokens"][-1] = self.stop
            scored = hypo["positional_scores"][prompt_length if self.score_new_only else 0 :]
            hypo["score"] = scored.sum()
            if self.normalize_scores:
                hypo["score"] = hypo["score"] / max(1, scored.numel()) ** self.len_penalty
        order = torch.stack([hypo["score"] for hypo in hypos]).argsort(descending=True).tolist()
        return [hypos[index] for index in order]


class DiverseAfterPrompt(DiverseBeamSearch):
    """fairseq's diverse beam search, whose penalty begins after the prompt. All groups have the prompt's symbols;
    fairseq would count each as shared, and penalise later shared symbols by as much more."""

    prompt_length = 0  # symbols
    diversity_strength: float  # negative, where its argument is positive

    def __init__(self, search: DiverseBeamSearch, dictionary):
        names = ("diversity_discount", "candidate_multiple")  # which fairseq 0.12.2 has not
        more = [getattr(search, name) for name in names if hasattr(search, name)]
        super().__init__(dictionary, search.num_groups, -search.diversity_strength, *more)

    def step(self, step: int, *args, **kwargs):
        strength, is_prompt = self.diversity_strength, step < self.prompt_length
        self.diversity_strength = 0.0 if is_prompt else strength
        try:
            candidates = super().step(step, *args, **kwargs)
        finally:
            self.diversity_strength = strength
        if is_prompt and hasattr(self, "group_overlap"):  # nor does it count over several steps
            self.group_overlap.zero_()
        return candidates


class ConstrainedAfterPrompt(PrefixConstrainedBeamSearch):
    """fairseq's search among the symbols that `prefix_allowed_tokens_fn` allows, which is asked after the prompt only,
    and sees the prompt as it is read.

    unused, stop: symbols, as of PromptedGenerator.
    """

    prompt_length = 0  # symbols

    def __init__(self, search: PrefixConstrainedBeamSearch, dictionary, unused: int, stop: Optional[int]):
        super().__init__(dictionary, self._allowed)
        self.given, self.unused, self.stop = search.prefix_allowed_tokens_fn, unused, stop
        self.prompts: Dict[int, Tensor] = {}

    def begin(self, rows: Tensor, prompts: Tensor) -> None:
        """Search for prompts (rows, length), whose numbers are `rows`."""
        self.prompts = dict(zip(rows.tolist(), prompts))

    def _allowed(self, row: int, symbols: Tensor):
        prompt = self.prompts[row]
        return self.given(row, torch.cat([symbols[:1], prompt, symbols[1 + len(prompt) :]]))

    def apply_mask(self, x: Tensor, prev_output_tokens: Tensor, original_batch_idxs: Tensor) -> Tensor:
        """0 for allowed symbols, -inf for others, of the shape of x."""
        if prev_output_tokens.size(1) <= self.prompt_length:  # with the begin symbol
            return torch.zeros_like(x)
        mask = super().apply_mask(x, prev_output_tokens, original_batch_idxs)
        # With the unused symbol samples end by their length, or where it has the probability of the stop symbol.
        mask[..., self.unused] = 0 if self.stop is None else mask[..., self.stop]
        return mask


class _Ensemble(EnsembleModel):
    """An ensemble that never gives one symbol, and can exchange the stop symbol for an unused one after the prompt.
    With an adaptive softmax the temperature acts on log-probabilities, not on what they are computed from.

    Search ends where it sees its end symbol, in a prompt as well. For a prompt with such a symbol inside the end
    symbol is an unused one instead, whose probability is exchanged with the stop symbol's after the prompt.
    """

    never: Optional[int] = None
    exchanged: Optional[Tuple[int, int, int]] = None
    prompts: Optional[Tensor] = None  # (rows, symbols), as they are read: their output symbols may be fewer

    def exchange(self, stop: int, unused: int, after: int) -> None:
        """after: symbols of the prompt."""
        self.exchanged = (stop, unused, after)

    def forward_decoder(self, tokens, encoder_outs, incremental_states, temperature: float = 1.0):
        read = tokens.size(1) - 1  # after the begin symbol
        if self.prompts is not None and 0 < read <= self.prompts.size(1):
            beam = tokens.size(0) // self.prompts.size(0)  # no hypothesis ends within a prompt
            tokens = torch.cat([tokens[:, :1], self.prompts[:, :read].repeat_interleave(beam, 0)], 1)
        later = any(getattr(model.decoder, "adaptive_softmax", None) is not None for model in self.models)
        now = 1.0 if later else temperature
        log_probs, attention = super().forward_decoder(tokens, encoder_outs, incremental_states, now)
        if temperature != now:
            log_probs = (log_probs / temperature).log_softmax(1)
        if self.never is not None:
            log_probs.select(1, self.never).fill_(-math.inf)
        if self.exchanged is not None:
            stop, unused, prompt_length = self.exchanged
            if tokens.size(1) > prompt_length:
                log_probs[:, unused] = log_probs[:, stop]
                log_probs[:, stop] = -math.inf
        return log_probs, attention
