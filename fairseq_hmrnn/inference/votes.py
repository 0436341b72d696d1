"""Several models that read the same text and decide together where its segments end."""

from __future__ import annotations

from typing import List, Sequence, Tuple, Union

import numpy as np

from .reader import CharacterReader, Predictions, Reader, Reading


def check_voters(readers: Sequence[Union[Reader, CharacterReader]], delays: Sequence[int]) -> None:
    """ValueError where layers of one model have detectors that others do not have, or were taught another delay."""
    counts = [reader.num_detectors for reader in readers]
    if len(set(counts)) > 1:
        raise ValueError(f"models decide together if as many of their layers have detectors, not {counts}")
    if len(set(delays)) > 1:
        raise ValueError(f"models decide together if they were taught the same --boundary-delay, not {list(delays)}")


def decided(probs: Sequence[np.ndarray]) -> Tuple[np.ndarray, np.ndarray]:
    """Boundaries and their probabilities, (T, detectors), from the probabilities z~ that each model has found."""
    mean = np.mean(probs, axis=0)
    return (mean > 0.5).astype(mean.dtype), mean


class JointReader(CharacterReader):
    """Reads a text with several models, whose layers close a segment where the mean of their z~ is above one half.

    readers: one of each model, all of one kind and over one dictionary, that `check_voters` lets decide together. Norms
    are those of the first; of predictions, entropy and surprisal are the means over models.
    """

    def __init__(self, readers: Sequence[CharacterReader]):
        self.readers: List[CharacterReader] = list(readers)
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
    return Reading(*decided([reading.boundary_probs for reading in readings]), readings[0].norms)
