"""A text as an array of numbers, and back; from bytes, piece by piece."""

from __future__ import annotations

import codecs
from typing import Callable, Iterator, Tuple

import numpy as np

_UTF_32 = ("utf-32-le", "surrogatepass")  # four bytes a character; what is half of a pair is a character too
_POINT = np.dtype("<u4")


class InputError(ValueError):
    """An input that cannot be used; the message is one line that says what to do."""


def code_points(text: str) -> np.ndarray:
    """(T,) uint32, those of its characters."""
    return np.frombuffer(text.encode(*_UTF_32), dtype=_POINT)


def text_of(points: np.ndarray) -> str:
    """The text of whole numbers (T,), each taken for a code point."""
    return points.astype(_POINT).tobytes().decode(*_UTF_32)


def split_segments(segmented: str, separator: str) -> Tuple[str, np.ndarray]:
    """The text (T,) of segments with a separator after each but the last, and at which of its characters a segment
    ends: bool (T,)."""
    segments = segmented.split(separator)
    text, ends = "".join(segments), np.cumsum([len(segment) for segment in segments[:-1]], dtype=np.int64) - 1
    is_end = np.zeros(len(text), dtype=bool)
    is_end[ends[ends >= 0]] = True
    return text, is_end


def decoded(read: Callable[[int], bytes], size: int, name: str) -> Iterator[Tuple[str, int]]:
    """The UTF-8 text of a stream, piece by piece, each with the number of bytes that were read for it; a piece may be
    empty. InputError where it is not UTF-8. read: of the stream, `size` bytes at a time. name: of the text, in the
    message."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        data = read(size)
        begun = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise InputError(not_utf8(name, position - begun + error.start)) from error
        if not data:
            return
        position += len(data)
        yield text, len(data)


def not_utf8(name: str, place: int) -> str:
    """The message for a text whose byte number `place` is wrong."""
    return f"{name} is not UTF-8 (byte {place}): convert it first, for instance with `iconv -f LATIN1 -t UTF-8`"
