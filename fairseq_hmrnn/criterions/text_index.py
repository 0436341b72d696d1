"""All places of a piece of text in a long text, without a search through the whole of it."""

from __future__ import annotations

import functools
from typing import Callable, List, Optional

import numpy as np

from ..text import code_points

GRAM, STRIDE = 8, 4  # characters of a gram, and between the places of two grams that are in the index
SHORTEST = GRAM + STRIDE - 1  # of pieces of which some gram is in the index, wherever the piece stands
LOOKED_AT = SHORTEST + 16 * STRIDE  # characters of a piece, among whose grams is a rare one
MOST_PLACES = 1000  # of one piece that are looked at
REMEMBERED = 4096  # shorter pieces, which a whole text is searched for
Fits = Callable[[int], bool]
_CHUNK = 1 << 20  # characters that are hashed at once
_HALF = np.uint64(32)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class TextIndex:
    """Every STRIDE-th gram of a text, sorted by a hash: two bytes for each character beside those of the text.

    Of any STRIDE consecutive grams of a piece exactly one begins at an indexed place. For each remainder modulo STRIDE
    the rarest gram is looked up; together the matches are all occurrences of the piece.
    """

    def __init__(self, text: str):
        self.text = text
        chunks = range(0, max(len(text) - GRAM + 1, 0), _CHUNK)
        hashes = [_hashes(text[start : start + _CHUNK + GRAM - 1], STRIDE) for start in chunks]
        packed = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        packed |= np.arange(len(packed), dtype=np.uint64)  # the place in the lower half: faster to sort than two arrays
        packed.sort()
        self._sorted, self._order = (packed >> _HALF).astype(np.uint32), packed.astype(np.uint32)
        self._searched = functools.lru_cache(REMEMBERED)(self._search)

    def places(self, piece: str, fits: Optional[Fits] = None) -> List[int]:
        """Where the piece begins, MOST_PLACES of them if there are more; those of overlapping ones too. fits: whether a
        place counts; None: all do."""
        if len(piece) >= SHORTEST:
            return self._look_up(piece, fits)
        return self._searched(piece) if fits is None else self._search(piece, fits)

    def _look_up(self, piece: str, fits: Optional[Fits]) -> List[int]:
        hashes = (_hashes(piece[:LOOKED_AT], 1) >> _HALF).astype(np.uint32)
        first, last = (self._sorted.searchsorted(hashes, side) for side in ("left", "right"))
        found: List[int] = []
        for remainder in range(STRIDE):
            gram = remainder + STRIDE * int((last - first)[remainder::STRIDE].argmin())
            for place in self._order[first[gram] : last[gram]].tolist():
                start = place * STRIDE - gram
                if start >= 0 and self.text.startswith(piece, start) and (fits is None or fits(start)):
                    found.append(start)
                    if len(found) == MOST_PLACES:
                        return found
        return found

    def _search(self, piece: str, fits: Optional[Fits] = None) -> List[int]:
        found: List[int] = []
        start = self.text.find(piece)
        while start >= 0 and len(found) < MOST_PLACES:
            if fits is None or fits(start):
                found.append(start)
            start = self.text.find(piece, start + 1)
        return found


def _hashes(text: str, stride: int) -> np.ndarray:
    """uint64 with zeros in the lower half, of the grams of a text that begin at every `stride`-th character."""
    codes = code_points(text).astype(np.uint64)
    count = len(range(0, len(codes) - GRAM + 1, stride))
    found = np.zeros(count, np.uint64)
    for place in range(GRAM):
        found = found * _MULTIPLIER + codes[place::stride][:count]
    return found * _MULTIPLIER >> _HALF << _HALF
