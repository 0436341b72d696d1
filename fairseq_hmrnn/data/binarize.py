"""From text files to the binarised data that fairseq's language modelling tasks read, without losing a character.

One item per line, one token per character, `</s>` for the newline: fairseq's base-2 loss over these tokens is bits per
character of the very file. The work is done on arrays of code points, chunk by chunk; no text is held as a whole.
The command is `fairseq-hmrnn prepare text`.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset, best_fitting_int_dtype
from tqdm import tqdm

from ..text import InputError, code_points, decoded
from .characters import SPACE_SYMBOL, CharacterDictionary, decode, encode, is_character_dictionary
from .dictionaries import read_dictionary
from .folders import DICTIONARY, SPLITS, replaced_whole

CHUNK_BYTES = 1 << 22
_NUM_CODE_POINTS = 0x110000
_NEWLINE = ord("\n")


class TextSource:
    """A UTF-8 text that is read in chunks, as often as needed.

    Args:
        name: its name in messages.
        open_bytes: returns a new binary stream at the text's start.
        num_bytes: its length.
    """

    def __init__(self, name: str, open_bytes: Callable[[], BinaryIO], num_bytes: int):
        self.name = name
        self.open_bytes = open_bytes
        self.num_bytes = num_bytes

    @classmethod
    def from_file(cls, path: str) -> TextSource:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe can be read only once, and opening it may wait
            raise InputError(f"{path} is not a regular file: save the text in a file first")
        try:
            with open(path, "rb") as stream:
                num_bytes = os.fstat(stream.fileno()).st_size
        except OSError as error:
            raise InputError(f"cannot read {path} ({error.strerror}): give the path of a text file") from error
        return cls(path, lambda: open(path, "rb"), num_bytes)

    @classmethod
    def from_text(cls, name: str, text: str) -> TextSource:
        data = text.encode("utf-8")
        return cls(name, lambda: io.BytesIO(data), len(data))

    def code_points(self, progress: Optional[tqdm] = None) -> Iterator[np.ndarray]:
        """Yields uint32 arrays: the text's characters in order. Newlines are not translated. InputError where it is not
        UTF-8."""
        with self.open_bytes() as stream:
            for text, num_bytes in decoded(stream.read, CHUNK_BYTES, self.name):
                if text:
                    yield code_points(text)
                if progress is not None:
                    progress.update(num_bytes)

    def survey(self, progress: Optional[tqdm] = None) -> Survey:
        """Read it once: checks the encoding and finds the lines."""
        start, ends = 0, [np.zeros(0, dtype=np.int64)]
        for points in self.code_points(progress):
            ends.append(np.flatnonzero(points == _NEWLINE) + (start + 1))
            start += len(points)
        if start == 0:
            raise InputError(f"{self.name} is empty: give a file with text")
        return Survey(start, np.concatenate(ends))


class Survey(NamedTuple):
    """num_characters of a text, and for each of its newlines the number of characters up to and with it."""

    num_characters: int
    line_ends: np.ndarray


class Split(NamedTuple):
    """Characters [start, stop) of a source; sizes: how many each of its lines has, newline included."""

    source: TextSource
    start: int
    stop: int
    sizes: np.ndarray

    @classmethod
    def cut(cls, source: TextSource, survey: Survey, start: int, stop: int) -> Split:
        ends = survey.line_ends
        inner = ends[(ends > start) & (ends < stop)]
        return cls(source, start, stop, np.diff(np.concatenate([[start], inner, [stop]])))

    def code_points(self, progress: Optional[tqdm] = None) -> Iterator[np.ndarray]:
        position = 0
        for points in self.source.code_points(progress):
            part = points[max(self.start - position, 0) : max(self.stop - position, 0)]
            position += len(points)
            if len(part):
                yield part


def plan_splits(
    sources: Dict[str, TextSource], fractions: Dict[str, float], progress: Optional[tqdm] = None
) -> Dict[str, Split]:
    """Survey `sources` ("train", perhaps "valid" and "test") and cut the missing splits from the end of the training
    text, at the line borders nearest to `fractions` of its characters; a split of fraction 0 is left out."""
    surveys = {name: source.survey(progress) for name, source in sources.items()}
    whole = surveys["train"]
    splits, stop = {}, whole.num_characters
    for name in reversed(SPLITS[1:]):
        if name in sources:
            splits[name] = Split.cut(sources[name], surveys[name], 0, surveys[name].num_characters)
            continue
        if not fractions[name]:
            continue
        start = _nearest_border(whole, stop - fractions[name] * whole.num_characters, stop)
        splits[name] = Split.cut(sources["train"], whole, start, stop)
        stop = start
    splits["train"] = Split.cut(sources["train"], whole, 0, stop)
    return {name: splits[name] for name in SPLITS if name in splits}


def _nearest_border(survey: Survey, needed: float, stop: int) -> int:
    """The line border inside (0, stop) that is nearest to the character `needed`."""
    borders = survey.line_ends[survey.line_ends < stop]
    if not len(borders):
        raise InputError(
            "the training text has too few lines to cut the missing splits from it: give VALID and TEST files"
        )
    return int(borders[np.argmin(np.abs(borders - needed))])


def count_characters(split: Split, progress: Optional[tqdm] = None) -> np.ndarray:
    """(0x110000,) int64: how often each code point occurs."""
    counts = np.zeros(_NUM_CODE_POINTS, dtype=np.int64)
    for points in split.code_points(progress):
        counts += np.bincount(points, minlength=_NUM_CODE_POINTS)
    return counts


def build_dictionary(counts: np.ndarray) -> CharacterDictionary:
    """The dictionary of the characters that occur, the most frequent first, without padding entries."""
    dictionary = CharacterDictionary()
    for point in np.flatnonzero(counts):
        if point != _NEWLINE:  # eos, which every dictionary has
            dictionary.add_symbol(encode(chr(point))[0], n=int(counts[point]))
    dictionary.finalize(padding_factor=1)
    return dictionary


def load_dictionary(path: str) -> CharacterDictionary:
    """Read a dict.txt of this codec."""
    try:
        dictionary = read_dictionary(CharacterDictionary, path)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): give the dict.txt of prepared data") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    if not is_character_dictionary(dictionary):
        raise InputError(
            f"{path} has entries that are not single characters: give a dict.txt that `prepare text` wrote "
            f"(a space is {SPACE_SYMBOL} there)"
        )
    return dictionary


def index_table(dictionary: CharacterDictionary) -> np.ndarray:
    """(0x110000,) code point -> index in `dictionary`, in the smallest type that fairseq stores them in."""
    table = np.full(_NUM_CODE_POINTS, dictionary.unk(), dtype=best_fitting_int_dtype(len(dictionary)))
    for index in range(dictionary.nspecial, len(dictionary)):
        table[ord(decode([dictionary[index]]))] = index
    table[_NEWLINE] = dictionary.eos()
    return table


def write_split(split: Split, prefix: str, table: np.ndarray, unk: int, progress: Optional[tqdm] = None) -> np.ndarray:
    """Write `prefix`.bin and `prefix`.idx as fairseq's memory-mapped dataset.

    The .bin file is the bare indices one after the other, so it is written chunk by chunk (fairseq's builder takes a
    tensor per line); the index comes from fairseq's own writer. Returns (0x110000,) counts of what became `<unk>`.
    """
    unknown = np.zeros(_NUM_CODE_POINTS, dtype=np.int64)
    with open(prefix + ".bin", "wb") as stream:
        for points in split.code_points(progress):
            indices = table[points]
            stream.write(indices.tobytes())
            lost = points[indices == unk]
            if len(lost):
                unknown += np.bincount(lost, minlength=_NUM_CODE_POINTS)
    with MMapIndexedDataset.Index.writer(prefix + ".idx", table.dtype.type) as index:
        index.write(split.sizes.tolist())
    return unknown


def _describe_unknown(unknown: Dict[str, np.ndarray]) -> str:
    """One line about the characters that the dictionary does not have; empty if there are none."""
    counts = {name: int(values.sum()) for name, values in unknown.items() if values.any()}
    if not counts:
        return ""
    points = np.flatnonzero(sum(unknown.values()))
    examples = " ".join(ascii(chr(point)) for point in points[:5])
    where = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    return (
        f"warning: characters that are not in the dictionary become <unk>: {where} "
        f"({len(points)} distinct: {examples}{' ...' if len(points) > 5 else ''})"
    )


def prepare(
    sources: Dict[str, TextSource], dest: str, fractions: Dict[str, float], dict_path: Optional[str] = None
) -> List[str]:
    """Binarise `sources` into the folder `dest` (see the module's text).

    Args:
        sources: "train" and, if they exist, "valid" and "test".
        fractions: for each missing split its share of the training text's characters.
        dict_path: a dictionary to use instead of one made from the training split.
    Returns:
        Lines that say what was written.
    Raises:
        InputError: the input cannot be used; nothing in `dest` has changed.
    """
    dictionary = load_dictionary(dict_path) if dict_path else None
    total = sum(source.num_bytes for source in sources.values())
    with _bar(total, "reading") as progress:
        splits = plan_splits(sources, fractions, progress)
    if dictionary is None:
        with _bar(sources["train"].num_bytes, "counting") as progress:
            dictionary = build_dictionary(count_characters(splits["train"], progress))

    with replaced_whole(dest) as folder:
        unknown = _write_all(splits, str(folder), dictionary)

    lines = [
        f"{name:5} {split.stop - split.start:>13,} characters {len(split.sizes):>11,} lines"
        for name, split in splits.items()
    ]
    lines.append(f"dictionary: {len(dictionary)} symbols ({dictionary.nspecial} of them special)")
    warning = _describe_unknown(unknown)
    return lines + [warning] if warning else lines


def _bar(total: int, label: str) -> tqdm:
    """A progress bar of bytes, on a terminal."""
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None)


def _write_all(splits: Dict[str, Split], folder: str, dictionary: CharacterDictionary) -> Dict[str, np.ndarray]:
    table = index_table(dictionary)
    total = sum(split.source.num_bytes for split in splits.values())
    with _bar(total, "writing") as progress:
        unknown = {
            name: write_split(split, os.path.join(folder, name), table, dictionary.unk(), progress)
            for name, split in splits.items()
        }
    dictionary.save(os.path.join(folder, DICTIONARY))
    return unknown
