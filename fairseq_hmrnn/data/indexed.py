"""Whether the files of a prepared split hold what their index says, in symbols of the dictionary.

fairseq trusts them: a file that was cut off trains to its end, or stops in the middle of training.
"""

from __future__ import annotations

import itertools
import os
import struct
from typing import NamedTuple, Optional

import numpy as np
from fairseq.data.indexed_dataset import _code_to_dtype

_AGAIN = "prepare the text again"
_PART = 1 << 16  # symbols that stay in a processor's cache: they are read once for the lowest and the highest


class _Index(NamedTuple):
    """The contents of an .idx. sizes: (N,), symbols of each line. offsets: (N,), where it begins, in bytes.
    dtype: of the symbols. base: what stands for the dictionary's first symbol."""

    sizes: np.ndarray
    offsets: np.ndarray
    dtype: np.dtype
    base: int


def check_split(path: str, dictionary, combine: bool = False) -> None:
    """Read a split's index and symbols once, in constant memory. path: without its ending; combine: those of path1,
    path2 and so on too. Other formats than fairseq's indexed ones are let through.

    ValueError names the file that was cut off, is damaged, or has symbols that `dictionary` has not;
    FileNotFoundError one that is missing beside its index.
    """
    for number in itertools.count():
        part = f"{path}{number or ''}"
        if not os.path.exists(f"{part}.idx") or (number and not combine):
            return
        index = _read_index(f"{part}.idx")
        if index is not None:
            _check_symbols(f"{part}.bin", index, dictionary)


def line_lengths(path: str) -> np.ndarray:
    """(N,) int64, the symbols of each line of a split; path: without its ending. ValueError for a damaged index, or one
    that fairseq-preprocess does not write unless asked; OSError for a missing one."""
    index = _read_index(f"{path}.idx")
    if index is None:
        raise ValueError(f"{path}.idx is of no known format: {_AGAIN}")
    return index.sizes


def count_symbols(path: str) -> int:
    """How many symbols a split has; otherwise as `line_lengths`."""
    return int(line_lengths(path).sum())


def _read_index(path: str) -> Optional[_Index]:
    """None for a format that is not known here."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        magic = file.read(8)
        try:
            if magic == b"MMIDIDX\0":
                _, version, code, count = struct.unpack("<BQBQ", file.read(18))
                whole, base = size == 26 + 12 * count, 0
                sizes, offsets = (np.fromfile(file, kind, count if whole else 0) for kind in (np.int32, np.int64))
            elif magic == b"TNTIDX\0\0":
                version, code, element, count, dims = struct.unpack("<QQQQQ", file.read(40))
                whole, base = size == 48 + 16 * (count + 1) + 8 * dims and dims == count, 1
                counts = (count + 1, count + 1, dims) if whole else (0, 0, 0)
                # Where each line's dimensions begin, of which text has one, and its symbols; then the dimensions.
                _, offsets, sizes = (np.fromfile(file, np.int64, number) for number in counts)
                offsets = offsets[:-1] * element
            else:
                return None
            dtype = np.dtype(_code_to_dtype[code])
        except (struct.error, KeyError) as error:
            raise ValueError(f"{path} is cut off or damaged: {_AGAIN}") from error
        if not whole or version != 1 or (len(sizes) and sizes.min() < 0) or dtype.kind not in "iu":
            raise ValueError(f"{path} is cut off or damaged: {_AGAIN}")
    return _Index(sizes.astype(np.int64), offsets, dtype, base)


def _check_symbols(path: str, index: _Index, dictionary) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no {path} beside its .idx: {_AGAIN}")
    size, total = os.path.getsize(path), int(index.sizes.sum())
    if size != total * index.dtype.itemsize:
        raise ValueError(
            f"{path} has {size / index.dtype.itemsize:g} symbols, but its .idx says {total}: one of the two was cut "
            f"off, or is of another text; {_AGAIN}"
        )
    if not np.array_equal(index.offsets, (index.sizes.cumsum() - index.sizes) * index.dtype.itemsize):
        raise ValueError(f"{path[:-4]}.idx is damaged (lines do not follow each other): {_AGAIN}")
    if total == 0:
        raise ValueError(f"{path} is empty: {_AGAIN}")
    symbols = np.memmap(path, index.dtype, mode="r")
    parts = (symbols[start : start + _PART] for start in range(0, total, _PART))
    ranges = np.array([(part.min(), part.max()) for part in parts], dtype=np.int64)
    lowest, highest = int(ranges[:, 0].min()) - index.base, int(ranges[:, 1].max()) - index.base
    if lowest < 0 or highest >= len(dictionary):
        unknown = highest if lowest >= 0 else lowest
        raise ValueError(
            f"{path} has the symbol {unknown}, but the dictionary has only {len(dictionary)}: use the dict.txt that it "
            f"was prepared with, or {_AGAIN}"
        )
