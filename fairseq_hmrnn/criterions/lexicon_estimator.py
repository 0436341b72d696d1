"""A lexicon that is inferred while a model learns, from what its detector listens to."""

from __future__ import annotations

from typing import Any, Dict, Optional

import numpy as np
import torch
from torch import Tensor

from ..segmentation.lexicon import Lexicon, Rows, Spelling
from ..segmentation.lexicon_search import Inferred, infer, scored
from .rate_estimator import START, RateEstimator


class LexiconEstimator(RateEstimator):
    """A lexicon inferred from the last places of a text, and the rates that go with it.

    given: the rate if an option gives it. rate: of boundaries, otherwise the mean of the last two that were found.
    threshold: see Inferred, a mean too. lexicon: None until there is one.
    """

    quantity = "lexicon"
    lexicon: Optional[Lexicon]

    def __init__(self, given: Optional[float] = None):
        super().__init__()
        self.given, self.rate = given, START if given is None else given
        self.threshold, self.lexicon = self.rate, None

    def begins(self, tokens: Tensor, signal: Tensor, known: Tensor) -> Tensor:
        """bool (B, T), the places before symbols where a segment begins. tokens, signal, known: as of `remember`."""
        symbols, values, inside = (x.cpu().numpy() for x in (tokens, signal.double(), known))
        if not inside.any():
            return torch.zeros_like(known)
        scores = scored(values, inside, self.threshold)
        if self.lexicon is None:
            return torch.from_numpy((scores >= 0) & inside).to(known.device)
        order = np.argsort(~inside, axis=1, kind="stable")  # what is known to the left
        rows = Rows(np.take_along_axis(np.where(inside, symbols, -1), order, 1))
        found = self.lexicon.segment(rows, np.take_along_axis(scores, order, 1))
        begins = np.zeros_like(inside)
        np.put_along_axis(begins, order, found, 1)
        return torch.from_numpy(begins & inside).to(known.device)

    def _find(self) -> Optional[Dict[str, Any]]:
        found = infer(*self._text(), self.given)
        return None if found is None else _plain(found)

    def _take(self, found: Any) -> None:
        """As `_plain` has it."""
        is_first, (threshold, rate, self.lexicon) = self.lexicon is None, _inferred(found)
        self.threshold = threshold if is_first else (self.threshold + threshold) / 2
        if self.given is None:
            super()._take(rate)

    def state_dict(self) -> Dict[str, Any]:
        state = super().state_dict()
        del state["given"]  # an option
        if self.lexicon is not None:
            state["lexicon"] = _plain(Inferred(self.threshold, self.rate, self.lexicon))
        return state

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        lexicon = state.get("lexicon")
        super().load_state_dict(state if lexicon is None else {**state, "lexicon": _inferred(lexicon).lexicon})
        if self.given is not None:
            self.rate = self.given


def _plain(found: Inferred) -> Dict[str, Any]:
    """As processes send it and checkpoints have it."""
    arrays = (found.lexicon.keys, found.lexicon.counts, *found.lexicon.spelling)
    return {"rates": (found.threshold, found.rate), "arrays": [torch.from_numpy(array) for array in arrays]}


def _inferred(plain: Dict[str, Any]) -> Inferred:
    threshold, rate = plain["rates"]
    keys, counts, *spelling = (tensor.cpu().numpy() for tensor in plain["arrays"])
    return Inferred(threshold, rate, Lexicon(keys, counts, Spelling(*spelling)))
