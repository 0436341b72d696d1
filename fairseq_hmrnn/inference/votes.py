"""Several models that read the same text and decide together where its segments end."""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from .reader import CharacterReader, Predictions, Reading


class JointReader(CharacterReader):
    """Reads a text with several models, whose layers close a segment where the mean of their z~ is above one half.

    readers: one of each model, all of the same kind, over the same dictionary. ValueError where layers of one have
    detectors that others do not have. Norms are those of the first; of predictions, entropy and surprisal are the
    means over models.
    """

    def __init__(self, readers: Sequence[CharacterReader]):
        self.readers: List[CharacterReader] = list(readers)
        counts = [reader.num_detectors for reader in self.readers]
        if len(set(counts)) > 1:
            raise ValueError(f"models decide together if as many of their layers have detectors, not {counts}")
        for reader in self.readers[1:]:
            reader.told_of_unknown = True  # the first tells of them

    @property
    def num_detectors(self) -> int:
        return self.readers[0].num_detectors

    def read(self, text: str) -> Reading:
        return _joined([reader.read(text) for reader in self.readers])

    def read_with_predictions(self, text: str) -> Tuple[Reading, Predictions]:
        readings, foretold = zip(*(reader.read_with_predictions(text) for reader in self.readers))
        return _joined(readings), Predictions(*(np.mean(values, axis=0) for values in zip(*foretold)))

    def boundaries(self, text: str) -> np.ndarray:
        return self.read(text).boundaries

    def closed_earlier(self, text: str, boundaries: np.ndarray, lookahead: int) -> np.ndarray:
        return self.readers[0].closed_earlier(text, boundaries, lookahead)


def _joined(readings: Sequence[Reading]) -> Reading:
    probs = np.mean([reading.boundary_probs for reading in readings], axis=0)
    return Reading((probs > 0.5).astype(probs.dtype), probs, readings[0].norms)
