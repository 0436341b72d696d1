"""Boundaries for a detector to learn, for users who have them: as targets for every step of a batch of tokens.

A segment's boundary is the step that reads its last symbol; of a word in text with separators, its separator.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

from ..data.characters import UNKNOWN_CHARACTER, decode, is_character_dictionary
from ..text import not_utf8, split_segments
from .text_index import TextIndex

# tokens (B, T) -> boundaries, and where they are known: both bool (B, T)
Supervision = Callable[[Tensor], Tuple[Tensor, Tensor]]
# a row's text -> indices of boundaries in it, and indices of where they are known
Find = Callable[[str], Tuple[Sequence[int], Sequence[int]]]


def whitespace_indices(dictionary: Optional[Dictionary]) -> List[int]:
    """Indices of the symbols that are whitespace, the newline `</s>` among them; none if the dictionary is not one of
    characters or its text has lines but no words."""
    if dictionary is None or not is_character_dictionary(dictionary):
        return []
    indices = [index for index, symbol in enumerate(dictionary.symbols) if decode([symbol]).isspace()]
    return indices if len(indices) > 1 else []


def build_supervision(source: str, dictionary: Optional[Dictionary], separator: str = "|") -> Supervision:
    """Known boundaries of a training text: whitespace, sentencepiece:MODEL or a file with `separator` after segments.

    Raises ValueError, with what to do, for a dictionary that is not one of characters, a missing file and so on.
    """
    if dictionary is None or not is_character_dictionary(dictionary):
        raise ValueError(
            "boundary-supervision requires text prepared as characters: fairseq-hmrnn prepare text, or prepare "
            "translation --source-type char"
        )
    if source == "whitespace":
        return WhitespaceSupervision(dictionary)
    kind, _, path = source.partition(":")
    path = path if kind == "sentencepiece" else source
    if not os.path.isfile(path):
        raise ValueError(f"boundary-supervision is whitespace, sentencepiece:MODEL or a file; there is no file {path}")
    if kind == "sentencepiece":
        return TextSupervision(dictionary, SentencepieceEnds(path))
    try:
        with open(path, encoding="utf-8", newline="") as file:
            segmented = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"boundary-supervision: {not_utf8(path, error.start)}") from error
    return TextSupervision(dictionary, FileEnds(segmented, separator, path))


class SymbolSet(nn.Module):
    """Finds which tokens are of a set of symbols, in a table that stays where the tokens are: a list of indices would
    be copied to a GPU for every batch. The table is in no checkpoint.

    indices: of the set, in a dictionary of num_symbols.
    """

    table: Tensor

    def __init__(self, indices: Sequence[int], num_symbols: int):
        super().__init__()
        table = torch.zeros(num_symbols, dtype=torch.bool)
        table[list(indices)] = True
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """bool, of the shape of tokens."""
        if self.table.device != tokens.device:  # fairseq leaves some criterions on the CPU
            self.table = self.table.to(tokens.device)
        return self.table[tokens]


class WhitespaceSupervision(nn.Module):
    """The steps that read whitespace."""

    def __init__(self, dictionary: Dictionary):
        super().__init__()
        indices = whitespace_indices(dictionary)
        if not indices:
            raise ValueError(
                "boundary-supervision whitespace: the dictionary has no whitespace but the newline: give "
                "sentencepiece:MODEL or a file with separators instead"
            )
        self.is_whitespace = SymbolSet(indices, len(dictionary))

    def forward(self, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        return self.is_whitespace(tokens), torch.ones_like(tokens, dtype=torch.bool)


class TextSupervision:
    """Boundaries that `find` finds in the text of each row. Copies the tokens to the host, which synchronises with a
    GPU."""

    def __init__(self, dictionary: Dictionary, find: Find):
        self.characters = [decode([symbol]) for symbol in dictionary.symbols]
        self.find = find

    def __call__(self, tokens: Tensor) -> Tuple[Tensor, Tensor]:
        target = torch.zeros(tokens.shape, dtype=torch.bool)
        known = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, symbols in enumerate(tokens.tolist()):
            pieces = [self.characters[symbol] for symbol in symbols]
            columns = [column for column, piece in enumerate(pieces) if piece]  # padding and <s> have no text
            for marks, places in zip((target, known), self.find("".join(pieces))):
                marks[row, [columns[place] for place in places]] = True
        return target.to(tokens.device), known.to(tokens.device)


class SentencepieceEnds:
    """The last character of each piece of a sentencepiece model, and each newline.

    A row may begin and end inside a piece: up to its first newline or space, and after its last, nothing is known.
    """

    def __init__(self, path: str):
        import sentencepiece

        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"boundary-supervision: {path} is not a sentencepiece model ({error})") from error
        pieces = (self.model.id_to_piece(i) for i in range(self.model.get_piece_size()) if not self._is_special(i))
        if all(len(piece.replace("\u2581", "")) <= 1 for piece in pieces):
            raise ValueError(
                f"boundary-supervision: in {path} every character is a piece of its own: give a model of longer "
                "pieces, such as --model_type=unigram makes"
            )

    def __call__(self, text: str) -> Tuple[Sequence[int], Sequence[int]]:
        breaks = [index for index, character in enumerate(text) if character in " \n"]
        if not breaks:
            return [], []
        start, stop = breaks[0] + 1, breaks[-1] + 1
        boundaries, column = [], start
        for line in text[start:stop].split("\n"):
            boundaries += [column + end for end in self._ends(line)]
            column += len(line) + 1
            if column <= stop:
                boundaries.append(column - 1)  # the newline
        return boundaries, range(start, stop)

    def _is_special(self, index: int) -> bool:
        return self.model.is_control(index) or self.model.is_unknown(index)

    def _ends(self, line: str) -> List[int]:
        """Index of each piece's last character. Pieces are matched by their number of characters, white space aside."""
        visible = [index for index, character in enumerate(line) if not character.isspace()]
        pieces = (piece.replace("\u2581", " ") for piece in self.model.encode(line, out_type=str))
        lengths = [sum(not character.isspace() for character in piece) for piece in pieces]
        if sum(lengths) != len(visible):
            raise ValueError(
                f"boundary-supervision: the sentencepiece model changes the length of {line[:40]!r}...; train it with "
                "--normalization_rule_name=identity"
            )
        ends = itertools.accumulate(length for length in lengths if length)
        return [visible[end - 1] for end in ends]


class FileEnds:
    """Boundaries of a segmented copy of the training text: the same text with a separator after each segment.

    A row is looked up by its text, so that neither shuffling nor the number of processes matters; where it has a
    character that the dictionary lacks, the file may have any. Where a row occurs several times with different
    boundaries, those that differ are not known. ValueError for a row that is not in the file.
    """

    def __init__(self, segmented: str, separator: str, name: str):
        if not separator or separator not in segmented:
            raise ValueError(
                f"boundary-supervision: there is no separator {separator!r} in {name}: write one after each segment, "
                "or name the one that it has with --boundary-supervision-separator"
            )
        text, self.is_end = split_segments(segmented, separator)
        self.index, self.separator, self.name = TextIndex(text), separator, name

    def __call__(self, text: str) -> Tuple[Sequence[int], Sequence[int]]:
        if self.separator in text:
            raise ValueError(
                f"boundary-supervision: the text itself holds the separator {self.separator!r}: write {self.name} with "
                "another and name it with --boundary-supervision-separator"
            )
        if not text.strip(UNKNOWN_CHARACTER):
            return [], []
        places, skipped = self._find(text)
        if not places:
            raise ValueError(
                f"boundary-supervision: {text[:40]!r}... is not in {self.name}: it must be the training text with "
                "separators added and nothing else changed (of translation as sentencepiece normalizes it: pieces/)"
            )
        ends = self.is_end[np.add.outer(places, np.arange(len(text) - skipped))]  # (places, characters)
        everywhere, nowhere = ends.all(0), ~ends.any(0)
        known = np.flatnonzero(everywhere | nowhere) + skipped
        return (np.flatnonzero(everywhere) + skipped).tolist(), known.tolist()

    def _find(self, text: str) -> Tuple[List[int], int]:
        """The places of a row in the file, none if it is not there, and how many of its characters the file lacks."""
        first, then = self._find_anywhere, self._find_begun
        if text[:1] == " " and text.find("\n") == len(text) - 1:  # a source of translation; another may end like it
            first, then = then, first
        found = first(text)
        return found if found[0] else then(text)

    def _find_anywhere(self, text: str) -> Tuple[List[int], int]:
        """As `_find`, of a row that the file has as it is."""
        if UNKNOWN_CHARACTER not in text:
            return self.index.places(text), 0
        start, piece = max(_known_pieces(text), key=lambda found: len(found[1]))
        places = self.index.places(piece, lambda place: place >= start and self._is_at(place - start, text))
        return [place - start for place in places], 0

    def _find_begun(self, text: str) -> Tuple[List[int], int]:
        """As `_find`, of a row that begins with the newline that fairseq puts before the first line, or with the space
        that sentencepiece puts before each."""
        begins = [0] if text[:1] in ("\n", " ") and self._is_at(0, text[1:]) else []
        if text[:1] == " ":
            begins += [place + 1 for place in self._find_anywhere(f"\n{text[1:]}")[0]]
        return begins, 1

    def _is_at(self, place: int, text: str) -> bool:
        fits = place + len(text) <= len(self.index.text)
        return fits and all(self.index.text.startswith(piece, place + start) for start, piece in _known_pieces(text))


def _known_pieces(text: str) -> List[Tuple[int, str]]:
    """Where each piece without unknown characters begins, and the piece."""
    return [(found.start(), found.group()) for found in re.finditer(f"[^{UNKNOWN_CHARACTER}]+", text)]
