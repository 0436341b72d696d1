"""Text whose lines have nothing to do with each other: each is read from the start state, many at a time."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

import numpy as np
import torch

from ..models.decoding import recurrence
from ..ops import HMLSTMState
from ..text import code_points
from .reader import WINDOW, CharacterReader, Lookahead, Window, closed_earlier, lookahead_by_layer

BATCH = 64  # lines that are read at once,
SYMBOLS = 1 << 14  # of so many characters together, padding included: 50 MB of states of 3 x 256


class LineReader(CharacterReader):
    """Reads every line of a text, its newline included, as if it were a text of its own.

    Otherwise as CharacterReader: pieces may end anywhere, a line that has not ended goes on with the next one. Lines of
    a piece are sorted by length and read in batches, so that larger pieces take less time. It packs the weights once:
    the decoder must not change while it is used.
    """

    def __init__(self, decoder, dictionary, begin: int, window: int = WINDOW):
        super().__init__(decoder, dictionary, begin, window)
        self.reader.recur = recurrence(decoder)
        self.unfinished: Optional[HMLSTMState] = None  # after a piece that ended within a line

    def closed_earlier(self, text: str, boundaries: np.ndarray, lookahead: Lookahead) -> np.ndarray:
        """Within each line: its last characters have none."""
        moved, newlines = closed_earlier(boundaries, lookahead), _line_ends(text) - 1
        for layer, steps in enumerate(lookahead_by_layer(lookahead, boundaries.shape[1])):
            for back in range(steps):
                moved[newlines[newlines >= back] - back, layer] = 0
        return moved

    def _windows(self, text: str) -> Iterator[Tuple[Window, np.ndarray]]:
        tokens, stops = self._tokens(text), _line_ends(text)
        goes_on = not text.endswith("\n")
        if goes_on:
            stops = np.append(stops, len(text))
        starts = np.append(0, stops[:-1])
        state, continued = self._start()
        for lines in _batches(stops - starts):
            columns = np.arange((stops - starts)[lines[0]])
            places = starts[lines][:, None] + columns
            valid = places < stops[lines][:, None]
            batch = np.where(valid, tokens[np.minimum(places, len(text) - 1)], self.dictionary.pad())
            rows = torch.from_numpy(np.where(lines == 0, continued, 0)).to(state.z.device)
            done = 0
            for window in self.reader.read_batch(torch.from_numpy(batch), state.reorder(rows)):
                within = slice(done, done + window.tokens.size(1))
                yield window, places[:, within][valid[:, within]]
                done = within.stop
            if goes_on and lines.max() == len(stops) - 1:
                self.unfinished = window.output.state.reorder(rows.new_tensor([lines.argmax()]))

    def _start(self) -> Tuple[HMLSTMState, int]:
        """The states that lines begin with, as a batch, and which of them is that of the first line."""
        begin, unfinished, self.unfinished = self.reader.state, self.unfinished, None
        if unfinished is None:
            return begin, 0
        h, c = (tuple(map(torch.cat, zip(*pair))) for pair in ((begin.h, unfinished.h), (begin.c, unfinished.c)))
        return HMLSTMState(h, c, torch.cat([begin.z, unfinished.z])), 1


def _line_ends(text: str) -> np.ndarray:
    """Where lines end: after newlines."""
    return np.flatnonzero(code_points(text) == ord("\n")) + 1


def _batches(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of lines of these lengths, the longest first, in batches."""
    order, start = np.argsort(-sizes, kind="stable"), 0
    while start < len(order):
        count = min(BATCH, max(1, SYMBOLS // max(1, int(sizes[order[start]]))))
        yield order[start : start + count]
        start += count
