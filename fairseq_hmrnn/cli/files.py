"""Text that commands read and files that they write: bounded, UTF-8, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, Callable, Iterable, Iterator, Optional, Set

from ..text import decoded, not_utf8
from .errors import UserError

LARGEST_TEXT = 1 << 28  # bytes that are read as a whole
PIECE = 1 << 17  # bytes that are read at once of a text of any length


@contextlib.contextmanager
def open_bytes(source: str) -> Iterator[BinaryIO]:
    """A file, or standard input for "-", to read."""
    if source != "-":
        with open(source, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise UserError("standard input is closed: give the text there, or name a file")
    else:
        yield sys.stdin.buffer


def read_text(source: str, largest: int = LARGEST_TEXT) -> str:
    """The whole text of a file, or of standard input for "-"; UserError if it is longer than `largest` bytes, or not
    UTF-8."""
    with open_bytes(source) as file:
        data = file.read(largest + 1)
    name = _name(source)
    if len(data) > largest:
        raise UserError(f"{name} has more than {largest:,} bytes: give a shorter text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(name, error.start)) from error


def size_of(source: str) -> Optional[int]:
    """Bytes of a file, or of one that standard input comes from, for "-"; None where they are not known."""
    with open_bytes(source) as file:
        try:
            found = os.fstat(file.fileno())
        except OSError:  # not of the operating system
            return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def text_pieces(source: str, progress: Optional[Callable[[int], object]] = None) -> Iterator[str]:
    """The text of a file, or of standard input for "-", piece by piece, as soon as there is any; InputError where it is
    not UTF-8. progress: called with the bytes of each piece when the next one is requested."""
    with open_bytes(source) as file:
        for text, num_bytes in decoded(getattr(file, "read1", file.read), PIECE, _name(source)):
            if text:
                yield text
            if progress is not None:
                progress(num_bytes)


def _name(source: str) -> str:
    return "standard input" if source == "-" else source


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """The name of a file beside `path`, in a folder of its own, which takes its place, with the permissions of the file
    there, when it has been written without an error; else nothing is left of it."""
    target = Path(path).resolve()  # a link stays one
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=str(target.parent)) as folder:
        unfinished = Path(folder) / Path(path).name
        try:
            yield str(unfinished)
            if target.exists():
                shutil.copymode(target, unfinished)
            os.replace(unfinished, target)
        except OSError as error:
            error.filename, error.filename2 = path, None  # not one that the user never named
            raise


def refuse_repeats(paths: Iterable[str]) -> None:
    """UserError where one file is named twice among those to write, also by a link."""
    targets: Set[str] = set()
    for path in paths:
        target = os.path.realpath(path)
        if target in targets:
            raise UserError(f"{path} is named for two files: give each a name of its own")
        targets.add(target)


def write_whole(path: str, data) -> None:
    """Write bytes, or text as UTF-8, to a file: all of it, or OSError and the file as it was."""
    with whole_file(path) as unfinished:
        Path(unfinished).write_bytes(data.encode() if isinstance(data, str) else data)
