"""Several models that read the same text and decide together where its segments end."""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .reader import CharacterReader, Lookahead, Predictions, Reader, Reading, TextReader


def check_ensemble(readers: Sequence[Reader], delays: Sequence[Tuple[int, ...]]) -> None:
    """ValueError where layers of one model have detectors that others do not have, were taught another delay, or nest
    where others do not."""
    recurrences = [reader.decoder.hm_lstm for reader in readers]
    counts = [recurrence.num_detectors for recurrence in recurrences]
    by_layer = [given * count if len(given) == 1 else given for given, count in zip(delays, counts)]
    for same, values in (
        ("the same number of detectors", counts),
        ("the same --boundary-delay", by_layer),
        ("the same --nested-boundaries", [recurrence.nested_boundaries for recurrence in recurrences]),
    ):
        if len(set(values)) > 1:
            raise ValueError(f"models of an ensemble must have {same}, not {values}")


def combined(probs: Sequence[np.ndarray], nested: bool) -> Tuple[np.ndarray, np.ndarray]:
    """Boundaries and their probabilities, (T, detectors), from z~ as each model has found it. nested: a layer closes a
    segment only where the layer below does."""
    mean = np.mean(probs, axis=0)
    boundaries = (mean > 0.5).astype(mean.dtype)
    return np.minimum.accumulate(boundaries, axis=1) if nested else boundaries, mean


def ensemble_boundaries(readers: Sequence[Reader], tokens: Tensor) -> np.ndarray:
    """(T, detectors), 0 or 1, of the symbols (T,): by one reader, or what several decide together."""
    found = []
    for reader in readers:
        measure = reader.boundaries if len(readers) == 1 else reader.boundary_probs
        parts = [measure(window).squeeze(1).cpu() for window in reader.read(tokens)]
        found.append(torch.cat([torch.zeros(0, reader.num_detectors), *parts]).numpy())
    return found[0] if len(found) == 1 else combined(found, readers[0].decoder.hm_lstm.nested_boundaries)[0]


class EnsembleReader(TextReader):
    """Reads a text with several models, whose layers close a segment where the mean of their z~ is above one half.

    readers: one of each model, all of one kind and over one dictionary, that `check_ensemble` lets decide together.
    Norms are those of the first; of predictions, entropy and surprisal are the means over models.
    """

    def __init__(self, readers: Sequence[CharacterReader]):
        self.readers: List[CharacterReader] = list(readers)
        self.num_detectors = self.readers[0].num_detectors
        self.nested = self.readers[0].reader.decoder.hm_lstm.nested_boundaries
        for reader in self.readers[1:]:
            reader.warned_of_unknown = True  # the first reports them

    def read(self, text: str) -> Reading:
        return self._combined([reader.read(text) for reader in self.readers])

    def read_with_predictions(self, text: str) -> Tuple[Reading, Predictions]:
        readings, predictions = zip(*(reader.read_with_predictions(text) for reader in self.readers))
        return self._combined(readings), Predictions(*(np.mean(values, axis=0) for values in zip(*predictions)))

    def boundaries(self, text: str) -> np.ndarray:
        return combined([reader.boundary_probs(text) for reader in self.readers], self.nested)[0]

    def closed_earlier(self, text: str, boundaries: np.ndarray, lookahead: Lookahead) -> np.ndarray:
        return self.readers[0].closed_earlier(text, boundaries, lookahead)

    def _combined(self, readings: Sequence[Reading]) -> Reading:
        probs = [reading.boundary_probs for reading in readings]
        return Reading(*combined(probs, self.nested), readings[0].norms)
