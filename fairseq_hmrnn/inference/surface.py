"""Where the symbols that a model reads stand in a text, and which of them are unknown to it."""

from __future__ import annotations

from typing import Iterable, List, Optional, Sequence

from ..data.characters import SPACE_SYMBOL  # sentencepiece's mark of a space, too

CONTINUED = "@@"  # of subword-nmt, after the parts of a word


def symbol_ends(text: str, symbols: Sequence[str]) -> Optional[List[int]]:
    """Where in the text each of its symbols, words or pieces of words, ends; white space belongs to the symbol after
    it. None where a symbol is not in the text as it reads, because a tokenizer has changed it."""
    ends, position = [], 0
    for symbol in symbols:
        while position < len(text) and text[position].isspace():
            position += 1
        part = symbol[: -len(CONTINUED)] if symbol.endswith(CONTINUED) else symbol
        surface = next((s for s in (symbol, symbol.strip(SPACE_SYMBOL), part) if text.startswith(s, position)), None)
        if surface is None:
            return None
        position += len(surface)
        ends.append(position)
    return ends


def unknown_message(unknown: Iterable[str]) -> str:
    """A warning that names characters or other symbols that a model has never seen."""
    names = list(dict.fromkeys(unknown))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"not in the dictionary, read as <unk>: {' '.join(map(ascii, names[:5]))}{more}"
