"""A text as an array of numbers, and back."""

from __future__ import annotations

import numpy as np

_UTF_32 = ("utf-32-le", "surrogatepass")  # four bytes a character; what is half of a pair is a character too
_POINT = np.dtype("<u4")


def code_points(text: str) -> np.ndarray:
    """(T,) uint32, those of its characters."""
    return np.frombuffer(text.encode(*_UTF_32), dtype=_POINT)


def text_of(points: np.ndarray) -> str:
    """The text of whole numbers (T,), each taken for a code point."""
    return points.astype(_POINT).tobytes().decode(*_UTF_32)
