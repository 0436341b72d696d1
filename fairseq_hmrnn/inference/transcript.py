"""Sampled symbols as text, as they come."""

from __future__ import annotations

from typing import List, Optional, Sequence

from fairseq.data.encoders import BPE_REGISTRY

from ..data.characters import SPACE_SYMBOL

WITH_SPACES = ("sentencepiece", "characters")  # fairseq's codecs that mark spaces with SPACE_SYMBOL
MARKS = ("|", "\u2016", "\u2980")  # ends of segments in layers 1, 2, 3
COLOURS = ("\033[36m", "\033[33m", "\033[35m")
PLAIN = "\033[0m"


def symbol_texts(task, bpe) -> List[str]:
    """The text of every symbol of the task's dictionary where it stands in a text.

    Of characters exactly; of sentencepiece with its space mark as a space; of words with a space after. ValueError for
    other codecs, whose symbols have no text of their own.
    """
    dictionary = task.target_dictionary
    if getattr(task, "has_characters", False):
        return [bpe.decode(symbol) for symbol in dictionary.symbols]
    if bpe is None:
        texts = [symbol + " " for symbol in dictionary.symbols]
    elif isinstance(bpe, tuple(BPE_REGISTRY[name] for name in WITH_SPACES)):
        texts = [symbol.replace(SPACE_SYMBOL, " ") for symbol in dictionary.symbols]
    else:
        raise ValueError(
            f"a symbol of {type(bpe).__name__} has no text of its own, only a whole sample has: sample it with --json"
        )
    texts[dictionary.eos()] = "\n"
    return texts


class Plain:
    """The text alone."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts

    def add(self, symbol: int, closed: Optional[Sequence[float]]) -> str:
        """Text to write now. closed: by layer, whether a segment ended with the symbol before this one."""
        return self.add_text(self.texts[symbol], closed)

    def add_text(self, text: str, closed: Optional[Sequence[float]]) -> str:
        """As `add`, of a symbol that has this text."""
        return text

    def end(self, closed: Optional[Sequence[float]]) -> str:
        """Text to write after the last symbol. closed: of that symbol."""
        return ""


class WithBoundaries(Plain):
    """The text with a mark after every symbol that closes a segment of some layer. What the symbol before the first
    one closed is not shown: no text stands before its mark."""

    def __init__(self, texts: Sequence[str], colour: bool):
        super().__init__(texts)
        self.colour, self.empty = colour, True

    def add_text(self, text, closed):
        marks = "" if self.empty else self._marks(closed)
        self.empty = False
        return marks + text

    def end(self, closed):
        return "" if self.empty else self._marks(closed)

    def _marks(self, closed) -> str:
        marks = []
        for layer, is_closed in enumerate(closed or ()):
            if is_closed:
                mark = MARKS[layer] if layer < len(MARKS) else f"|{layer + 1}"
                marks.append(f"{COLOURS[layer % len(COLOURS)]}{mark}{PLAIN}" if self.colour else mark)
        return "".join(marks)
