"""How many batches fairseq makes of a split, before it makes them."""

from __future__ import annotations

import math
from typing import Optional, Sequence

import numpy as np
from fairseq.data import TokenBlockDataset
from fairseq.data.data_utils import batch_by_size


def count_batches(lengths: Sequence[np.ndarray], max_tokens: float, max_sentences: float, multiple: int = 1) -> int:
    """The batches of sentences, each of at most so many and of at most so many symbols on the longer side, padding
    included; infinite: of no limit.

    lengths: of the sentences, (N,) each, of source and target, or of a text alone. multiple: of which a batch has as
    many sentences, where it has more.
    """
    order = np.lexsort(lengths[::-1])  # by the source's, then the target's
    longer = np.minimum(np.max(lengths, axis=0), max_tokens).astype(np.int64)
    limits = [None if math.isinf(limit) else int(limit) for limit in (max_tokens, max_sentences)]
    return len(batch_by_size(order, longer.__getitem__, longer[order], *limits, multiple))


def block_lengths(lines: np.ndarray, length: int, break_mode: Optional[str]) -> np.ndarray:
    """(W,), the symbols of the windows into which fairseq cuts a text without carried state.

    lines: (N,), symbols of each line. length: of a window. break_mode: of --sample-break-mode, none of these: "none".
    """
    return TokenBlockDataset(range(len(lines)), lines, length, pad=None, eos=None, break_mode=break_mode).sizes
