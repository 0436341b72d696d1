"""Published corpora as the sources of their splits, from files that are checked against the published sizes."""

from __future__ import annotations

import io
import os
from typing import Dict, Iterable, Optional

import numpy as np

from ..text import InputError
from .binarize import CHUNK_BYTES, TextSource
from .folders import SPLITS

PTB_SYMBOLS = {"train": 5_017_482, "valid": 393_042, "test": 442_423}
PTB_TYPES = 50
HUNDRED_MILLION = {"train": 90_000_000, "valid": 5_000_000, "test": 5_000_000}  # in this order
TEXT8_TYPES, ENWIK8_TYPES = 27, 205


def penn_treebank(folder: str) -> Dict[str, TextSource]:
    """The splits in a folder with Mikolov's ptb.SPLIT.txt, or ptb.char.SPLIT.txt; lines without spaces around them.

    InputError for a file that is missing, or is not as published.
    """
    texts = {split: _treebank_split(folder, split) for split in SPLITS}
    for split, text in texts.items():
        _check_size(f"the {split} split", len(text), PTB_SYMBOLS[split])
    _check_types(f"the corpus in {folder}", texts.values(), PTB_TYPES)
    return {split: TextSource(f"the {split} split", _opener(text), len(text)) for split, text in texts.items()}


def text8(path: str) -> Dict[str, TextSource]:
    """The splits of the unpacked file. InputError for another file."""
    return _hundred_million(path, TEXT8_TYPES, bytes_are_characters=False)


def enwik8(path: str) -> Dict[str, TextSource]:
    """The splits of the unpacked file; byte b is the character U+00b. InputError for another file."""
    return _hundred_million(path, ENWIK8_TYPES, bytes_are_characters=True)


def _treebank_split(folder: str, split: str) -> bytes:
    words, characters = (os.path.join(folder, f"ptb.{kind}{split}.txt") for kind in ("", "char."))
    if os.path.isfile(words):
        return b"\n".join(line.strip(b" ") for line in _read(words).split(b"\n"))
    if os.path.isfile(characters):
        lines = _read(characters).replace(b" ", b"").split(b"\n")
        return b"\n".join(line.strip(b"_").replace(b"_", b" ") for line in lines)
    raise InputError(f"there is no ptb.{split}.txt (nor ptb.char.{split}.txt) in {folder}")


def _hundred_million(path: str, types: int, bytes_are_characters: bool) -> Dict[str, TextSource]:
    _check_size(path, os.path.getsize(path), sum(HUNDRED_MILLION.values()))
    with open(path, "rb") as file:
        _check_types(path, iter(lambda: file.read(CHUNK_BYTES), b""), types)
    sources, start = {}, 0
    for split, size in HUNDRED_MILLION.items():
        sources[split] = TextSource(f"{split} of {path}", _part_opener(path, start, size, bytes_are_characters), size)
        start += size
    return sources


def _check_size(name: str, found: int, published: int) -> None:
    if found != published:
        raise InputError(f"{name} has {found:,} symbols, the published one {published:,}: give the unchanged file")


def _check_types(name: str, parts: Iterable[bytes], published: int) -> None:
    """Check the number of distinct bytes in all parts together."""
    seen = np.zeros(256, dtype=bool)
    for part in parts:
        seen[np.frombuffer(part, dtype=np.uint8)] = True
    if seen.sum() != published:
        found = f"{name} has {seen.sum()} different symbols, the published one {published}"
        raise InputError(f"{found}: give the unchanged file")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _opener(text: bytes):
    return lambda: io.BytesIO(text)


def _part_opener(path: str, start: int, size: int, bytes_are_characters: bool):
    return lambda: _Part(path, start, size, bytes_are_characters)


class _Part(io.RawIOBase):
    """Bytes [start, start + size) of a file as a stream; as UTF-8 if each is to be a character."""

    def __init__(self, path: str, start: int, size: int, bytes_are_characters: bool):
        super().__init__()
        self.file, self.left, self.bytes_are_characters = open(path, "rb"), size, bytes_are_characters
        self.file.seek(start)

    def read(self, size: Optional[int] = -1) -> bytes:
        needed = self.left if size is None or size < 0 else min(size, self.left)
        data = self.file.read(needed)
        self.left -= len(data)
        return data.decode("latin-1").encode() if self.bytes_are_characters else data

    def close(self) -> None:
        self.file.close()
        super().close()
