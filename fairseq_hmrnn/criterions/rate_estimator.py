"""A target rate that is found while a model learns: what the detector listens to is remembered, and searched."""

from __future__ import annotations

import logging
import math
from typing import Any, Callable, Dict, Tuple

import numpy as np
import torch
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from ..segmentation.rate_search import FEWEST, find_rate, runs

logger = logging.getLogger(__name__)

START = 0.25  # the rate before it is found
MEMORY = 40_000  # places that are remembered, the latest
EARLY, EVERY_EARLY, EVERY = 1000, 100, 500  # searched every so many updates, more often in the first EARLY


class RateEstimator:
    """The share of places at which a signal is to be taken for a boundary, by the signal of the last MEMORY places.

    rate: what it is now, the mean of the last two that were found. Of several processes the first one's memory counts:
    it is the one in checkpoints.
    """

    quantity = "rate"  # in messages

    def __init__(self):
        self.rate, self.last, self.searched, self.filled = START, math.nan, 0, 0
        self.newest = MEMORY  # places that a search looks at
        self.of_all_steps = False  # as it was in checkpoints that do not have this
        self.symbols = torch.full((MEMORY,), -1, dtype=torch.int32)
        self.signal = torch.zeros(MEMORY, dtype=torch.float32)

    def remember(self, tokens: Tensor, signal: Tensor, known: Tensor) -> None:
        """Remember a batch, each (B, T): symbols, the signal of the place before each, inf where a segment begins for
        certain, and where it is known."""
        device = tokens.device
        if self.symbols.device != device:
            self.symbols, self.signal = self.symbols.to(device), self.signal.to(device)
        gap = known.new_zeros(len(known), 1)  # between rows
        known = torch.cat([known, gap], 1).flatten()[-MEMORY:]
        tokens, signal = (torch.cat([x, x.new_zeros(gap.shape)], 1).flatten()[-MEMORY:] for x in (tokens, signal))
        place = torch.arange(self.filled, self.filled + len(tokens), device=device) % MEMORY
        self.symbols[place] = tokens.int().masked_fill(~known, -1)
        self.signal[place] = signal.float()
        self.filled += len(tokens)

    def search(self, num_updates: int, device: torch.device) -> None:
        """After some updates, find the rate anew. All processes must call it in the same updates. device: of the model,
        through which they speak."""
        if num_updates == self.searched or num_updates % (EVERY_EARLY if num_updates <= EARLY else EVERY):
            return
        self.searched = num_updates
        found = _of_first_process(self._find, device)
        if found is None:
            logger.warning(
                f"boundary-rates: no {self.quantity} was found after {num_updates} updates, layer 1 stays at "
                f"{self.rate:.3f}: it requires {FEWEST} symbols and rows (--tokens-per-sample) that are longer than "
                "a few segments"
            )
            return
        self._take(found)

    def _find(self) -> Any:
        """What this process finds; None where there is nothing."""
        return find_rate(*self._text())

    def _take(self, found: Any) -> None:
        """What `_find` found: here a rate."""
        self.rate = found if math.isnan(self.last) else (found + self.last) / 2
        self.last = found

    def _text(self) -> Tuple[np.ndarray, np.ndarray]:
        """Symbols and signal, as for find_rate: the oldest first."""
        symbols, signal = (x.cpu().roll(-self.filled % MEMORY).numpy() for x in (self.symbols, self.signal))
        symbols, signal = (x[-self.newest :] for x in (symbols, signal))
        return without_repeated_rows(symbols), signal

    def state_dict(self) -> Dict[str, Any]:
        """For training to go on as if it had not stopped."""
        return {name: value.cpu() if torch.is_tensor(value) else value for name, value in vars(self).items()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Ignores entries of another kind of search; forgets a rate of all steps, with a warning."""
        if state.get("of_all_steps", True):
            logger.warning(
                f"boundary-rates: the checkpoint's {self.quantity} is of all steps: the search within lines starts "
                "again"
            )
            return
        known = {name: value for name, value in state.items() if name in vars(self)}
        vars(self).update({name: value.clone() if torch.is_tensor(value) else value for name, value in known.items()})


def without_repeated_rows(symbols: np.ndarray) -> np.ndarray:
    """(S,), as for find_rate, with -1 in place of rows that come again later: in a text that is smaller than the
    memory, every segment would otherwise have been seen before."""
    symbols, known = symbols.copy(), symbols >= 0
    seen = set()
    for start, stop in runs(known)[::-1].tolist():
        row = symbols[start:stop].tobytes()
        if row in seen:
            symbols[start:stop] = -1
        seen.add(row)
    return symbols


def _of_first_process(compute: Callable[[], Any], device: torch.device) -> Any:
    """The result of the first process, of tensors and plain values, in every process."""
    if distributed_utils.get_data_parallel_world_size() == 1:
        return compute()
    found = compute() if distributed_utils.get_data_parallel_rank() == 0 else None
    return distributed_utils.broadcast_object(found, 0, distributed_utils.get_data_parallel_group(), device)
