"""Search that continues prompts: lengths count new symbols, and text may run over line ends."""

from __future__ import annotations

from typing import Dict, List, Optional

import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor


class PromptedGenerator(SequenceGenerator):
    """fairseq's SequenceGenerator for language models.

    `max_len_a * prompt length + max_len_b` is the number of *new* symbols, and `min_len` counts new symbols too. If
    `stop` is None, a sample ends by length alone; otherwise also after that symbol. Prompts of different lengths
    in one batch are searched in groups of equal length, so that each gets what it would get alone. ValueError for a
    prompt that holds the stop symbol: search would end there.
    """

    def __init__(self, models, tgt_dict, stop: Optional[int] = None, **kwargs):
        # Search wants some symbol that ends a hypothesis; <s> is never in text and is removed again.
        super().__init__(models, tgt_dict, eos=tgt_dict.bos() if stop is None else stop, **kwargs)
        self.ends_by_length = stop is None
        self.lengths = (self.max_len_a, self.max_len_b, self.min_len)

    def _generate(self, sample, prefix_tokens=None, constraints=None, bos_token=None):
        if prefix_tokens is None:
            tokens = sample["net_input"]["src_tokens"]
            prefix_tokens = tokens.new_empty(tokens.size(0), 0)
        if prefix_tokens.eq(self.eos).any():
            raise ValueError("a prompt of several lines cannot end at a line's end: use --end-of-sample length")
        prompt_lengths = prefix_tokens.ne(self.pad).sum(1)
        hypotheses: List[List[Dict[str, Tensor]]] = [[] for _ in range(prompt_lengths.numel())]
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
        self.max_len_a, self.max_len_b = 0, total
        self.min_len = total if self.ends_by_length else min(length + min_len, total)
        try:
            prefix = prompts if length else None
            found = super()._generate({"net_input": net_input}, prefix_tokens=prefix, bos_token=bos_token)
        finally:
            self.max_len_a, self.max_len_b, self.min_len = self.lengths
        return [self._without_stop(hypos) for hypos in found] if self.ends_by_length else found

    def _without_stop(self, hypos: List[Dict[str, Tensor]]) -> List[Dict[str, Tensor]]:
        """Remove the artificial last symbol and what it did to the score."""
        for hypo in hypos:
            hypo["tokens"] = hypo["tokens"][:-1]
            hypo["positional_scores"] = hypo["positional_scores"][:-1]
            hypo["score"] = hypo["positional_scores"].sum()
            if self.normalize_scores:
                hypo["score"] = hypo["score"] / max(1, hypo["tokens"].numel()) ** self.len_penalty
        order = torch.stack([hypo["score"] for hypo in hypos]).argsort(descending=True).tolist()
        return [hypos[index] for index in order]
