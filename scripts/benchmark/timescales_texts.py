"""The texts of timescales.py: kinds of text whose words differ in length, mixtures of them, and what a word is.

A word is a run of letters, digits, underscores and apostrophes, so that names in source code are words; its length
counts what stands between it and the next one.
"""

from __future__ import annotations

import random
import re
import sysconfig
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

FILLER = "~"
WORD = re.compile(rf"[\w'][\w'{FILLER}]*")
BLOCK = 1000  # characters of one kind in a row, at least, in a mixture
CODE, STRETCHED, UNSEEN = "source code", "stretched", "stretched more"
HELD_OUT = 0.1  # of every kind, at its end


def stretched(text: str, times: int, filler: Optional[str] = FILLER) -> str:
    """The text with so many fillers after every character that is not whitespace; itself so often again with None."""
    return re.sub(r"\S", lambda letter: letter.group() + (filler or letter.group()) * times, text)


def source_code(size: int) -> str:
    """So many characters of the Python modules that come with this interpreter, file by file in order of their names;
    without the tables that were generated when it was built, and files with other characters than ASCII."""
    parts, found = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if text.isascii() and not path.name.startswith("_sysconfigdata"):
            parts.append(text.replace(FILLER, ""))
            found += len(parts[-1])
        if found >= size:
            break
    return "".join(parts)[:size]


def read_kinds(files: Dict[str, str], size: int) -> Dict[str, str]:
    """By kind at most `size` characters each: of the files by name, of source code, and of the first file stretched,
    from a part of it that its own kind does not have."""
    texts = {name: Path(path).read_text(encoding="utf-8").replace(FILLER, "") for name, path in files.items()}
    given = next(iter(texts.values()))
    kinds = {name: whole_lines(text[:size]) for name, text in texts.items()}
    kinds[CODE] = source_code(size)
    kinds[STRETCHED] = stretched(whole_lines(given[size : size + size // 2]), 1)
    return kinds


def whole_lines(text: str) -> str:
    """The text up to its last newline."""
    return text[: text.rfind("\n") + 1]


def split(text: str) -> List[str]:
    """What is trained on, and what is held out."""
    border = text.rfind("\n", 0, round(len(text) * (1 - HELD_OUT))) + 1
    return [text[:border], text[border:]]


def blocks(text: str) -> List[str]:
    """Whole lines, at least BLOCK characters a block; what is left at the end is left out."""
    found, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= BLOCK:
            found.append("".join(lines))
            lines, size = [], 0
    return found


def mixture(texts: Sequence[str], seed: int) -> str:
    """The blocks of all texts in random order."""
    found = [block for text in texts for block in blocks(text)]
    random.Random(seed).shuffle(found)
    return "".join(found)


def pieces(text: str, size: int) -> List[str]:
    """As many of exactly that size as there are, one after the other."""
    return [text[start : start + size] for start in range(0, len(text) - size + 1, size)]


def word_ends(text: str) -> np.ndarray:
    """(T,) bool: the first character after a word."""
    marks = np.zeros(len(text) + 1, dtype=bool)
    marks[[word.end() for word in WORD.finditer(text)]] = True
    return marks[:-1]


def word_rate(text: str) -> float:
    """Words by character."""
    return word_ends(text).mean().item()


def fold(text: str, alphabet: set) -> str:
    """A text in another alphabet: capitals that it has not become small, umlauts two letters, digits N, and what it
    has not even then is left out."""
    found = []
    for character in text:
        spelt = "N" if character.isdigit() else UMLAUTS.get(character.lower(), character.lower())
        found += [character] if character in alphabet else [c for c in spelt if c in alphabet]
    return "".join(found)


UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"}
