"""A lossless character codec: text <-> symbols that a fairseq dictionary can hold, one symbol per character.

| character                                                              | symbol                     |
|------------------------------------------------------------------------|----------------------------|
| newline                                                                | `</s>` (the dictionary's eos) |
| space                                                                  | U+2581                     |
| other whitespace, control characters, lone surrogates, U+2581 itself   | `<U+XXXX>`, its code point |
| everything else                                                        | itself                     |

Text never collides with these names: a literal `</s>` or `<U+0009>` in a text is several characters and so becomes
several symbols.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Iterable, List, Optional

from fairseq.data import Dictionary

NEWLINE_SYMBOL = "</s>"
SPACE_SYMBOL = "\u2581"
UNKNOWN_CHARACTER = "\ufffd"

_ESCAPE = re.compile(r"<U\+([0-9A-F]{4,6})>\Z")
# Symbols of fairseq itself beside characters: no text, or text that is lost (escape_unk doubles the brackets).
_SPECIAL = {"<s>": "", "<pad>": "", "<unk>": UNKNOWN_CHARACTER, "<<unk>>": UNKNOWN_CHARACTER}


def _escaped(character: str) -> bool:
    """fairseq splits symbols at whitespace and reads dict.txt line by line as UTF-8: what that could break."""
    return character == SPACE_SYMBOL or character.isspace() or unicodedata.category(character) in ("Cc", "Cs")


class _SymbolTable(dict):
    """character -> symbol, filled as characters come up."""

    def __missing__(self, character: str) -> str:
        symbol = f"<U+{ord(character):04X}>" if _escaped(character) else character
        self[character] = symbol
        return symbol


_SYMBOLS = _SymbolTable({"\n": NEWLINE_SYMBOL, " ": SPACE_SYMBOL})


def _character(symbol: str) -> Optional[str]:
    """The text of one symbol; None if it is no symbol of this codec."""
    if len(symbol) == 1:
        return " " if symbol == SPACE_SYMBOL else symbol
    if symbol == NEWLINE_SYMBOL:
        return "\n"
    escape = _ESCAPE.match(symbol)
    if escape and int(escape.group(1), 16) <= 0x10FFFF:
        return chr(int(escape.group(1), 16))
    return _SPECIAL.get(symbol)


def encode(text: str) -> List[str]:
    """One symbol for every character of `text`."""
    return [_SYMBOLS[character] for character in text]


def decode(symbols: Iterable[str]) -> str:
    """The text of `symbols`: the inverse of `encode`. `<unk>` becomes U+FFFD; `<s>` and `<pad>` have no text.

    Raises:
        ValueError: a symbol that no character has, for instance a word of a word dictionary.
    """
    characters = []
    for symbol in symbols:
        character = _character(symbol)
        if character is None:
            raise ValueError(f"{symbol!r} is not a symbol of the character codec: was the data made of words?")
        characters.append(character)
    return "".join(characters)


class CharacterCodec:
    """The codec with the interface of fairseq's `--bpe` classes: symbols in one string, separated by spaces."""

    def encode(self, x: str) -> str:
        """'to be' -> 't o ▁ b e'"""
        return " ".join(encode(x))

    def decode(self, x: str) -> str:
        """'t o ▁ b e' -> 'to be'"""
        return decode(x.split())


def is_character_dictionary(dictionary: Dictionary) -> bool:
    """Whether every symbol of `dictionary`, the special ones aside, is what `encode` makes of some character."""
    for symbol in dictionary.symbols[dictionary.nspecial :]:
        character = _character(symbol)
        if not character or _SYMBOLS[character] != symbol:
            return False
    return True


class CharacterDictionary(Dictionary):
    """fairseq's dictionary for symbols of this codec; only `string` differs, because here `</s>` is text: a newline."""

    def string(
        self,
        tensor,
        bpe_symbol=None,
        escape_unk=False,
        extra_symbols_to_ignore=None,
        unk_string=None,
        include_eos=True,
        separator=" ",
    ):
        """Symbols of `tensor` ((T,) or (B, T) indices), joined by `separator`.

        Unlike the parent it always keeps `</s>`, whatever `include_eos` says, and drops padding; `<s>` vanishes as
        before. A caller whose `</s>` is a stop symbol and no newline names it in `extra_symbols_to_ignore`.
        `bpe_symbol` (--remove-bpe) has no meaning for characters.
        """
        ignored = {self.pad(), *(extra_symbols_to_ignore or ())}
        if getattr(tensor, "ndim", 1) == 2:
            rows = (self.string(row, bpe_symbol, escape_unk, ignored, unk_string, True, separator) for row in tensor)
            return "\n".join(rows)
        return super().string(tensor, None, escape_unk, ignored, unk_string, True, separator)
