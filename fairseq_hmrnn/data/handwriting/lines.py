"""A written line as the readers make it, and what is refused of one."""

from __future__ import annotations

import bisect
import itertools
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

LARGEST_COORDINATE = 1e6  # in points of a tablet: no tablet has so many
LARGEST_JUMP = 5000  # in multiples of the line's median step: UNIPEN's longest way back to a line's start is some 500
LARGEST_FILE = 1 << 26  # bytes of a file of one line


class BrokenLine(ValueError):
    """A file, or a line in it, that cannot be used; the message names it and says why."""


class Line(NamedTuple):
    """One line of writing, or a text over several. N points in the order in which they were written.

    name: of the file, from the corpus' folder on. points: (N, 2), x to the right and y upwards, in inches where the
    corpus says how many points an inch has, else in points. ends: (N,) bool, True at a stroke's last point. characters,
    words: (N,) bool, True at the last point of each; None where they are not marked. spacing: of the tablet's points in
    x and y, in the same unit.
    """

    name: str
    writer: str
    text: str
    points: np.ndarray
    ends: np.ndarray
    characters: Optional[np.ndarray] = None
    words: Optional[np.ndarray] = None
    spacing: Tuple[float, float] = (1.0, 1.0)

    @property
    def single_points(self) -> int:
        """Strokes of one point: dots."""
        starts = np.append(True, self.ends[:-1])
        return int((starts & self.ends).sum())


def join_strokes(name: str, strokes: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2) of the strokes' points; BrokenLine where there are fewer than two, or where they are no positions of a
    pen."""
    count = sum(len(stroke) for stroke in strokes)
    if count < 2:
        raise BrokenLine(f"{name}: has {count or 'no'} pen {'points' if count != 1 else 'point'}: nothing to predict")
    points = np.concatenate([stroke for stroke in strokes if len(stroke)])
    wrong = ~(np.abs(points) <= LARGEST_COORDINATE)  # NaN too
    if wrong.any():
        value, most = points[wrong][0], f"at most {LARGEST_COORDINATE:,.0f}"
        raise BrokenLine(f"{name}: has the coordinate {value:g}, which no tablet has ({most})")
    jumps = np.abs(np.diff(points, axis=0)).max(1)
    if jumps.any() and jumps.max() > LARGEST_JUMP * np.median(jumps[jumps > 0]):
        place = int(jumps.argmax())
        places = f"{_place(points[place])} to {_place(points[place + 1])}"
        raise BrokenLine(f"{name}: jumps from {places}, which no pen does")
    return points


def _place(point: np.ndarray) -> str:
    return f"({point[0]:g}, {point[1]:g})"


def stroke_ends(strokes: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) bool, True at the last point of each stroke."""
    lengths = np.array([len(stroke) for stroke in strokes if len(stroke)])
    ends = np.zeros(lengths.sum(), dtype=bool)
    ends[lengths.cumsum() - 1] = True
    return ends


def word_ends(text: str, labels: List[str], last_points: List[int]) -> Optional[List[int]]:
    """Last points of a text's words, from its characters' labels and last points in the order of writing; None where
    the characters are not the text."""
    if "".join(labels) != "".join(text.split()):
        return None
    found, written = [], list(itertools.accumulate(map(len, labels)))  # how much of the text by each label's end
    for length in itertools.accumulate(map(len, text.split())):
        label = bisect.bisect_right(written, length) - 1  # the last one: some are empty
        if label < 0 or written[label] != length:  # a label goes on into the next word
            return None
        found.append(last_points[label])
    return found


def marks(count: int, last_points: List[int]) -> np.ndarray:
    """(count,) bool, True at the given points."""
    marked = np.zeros(count, dtype=bool)
    marked[last_points] = True
    return marked
