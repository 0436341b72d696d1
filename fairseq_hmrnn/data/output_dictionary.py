"""A model that predicts the first symbols of its dictionary alone (--output-dictionary-size), but reads all of them."""

from __future__ import annotations

from typing import Any, Tuple

from fairseq.data import BaseWrapperDataset, TruncatedDictionary


class OutputDictionary(TruncatedDictionary):
    """The symbols that are predicted; it still names all of the dictionary. A prompt may have others, and fairseq's own
    class has a number in place of their names."""

    def __getitem__(self, index: int) -> str:
        return self.wrapped_dict[index]


class SeparateTargets(BaseWrapperDataset):
    """Blocks of a text, source and targets, which share no memory: fairseq writes <unk> over the symbols of a target
    that are not predicted, and so over the source, which is cut from the same buffer."""

    def __getitem__(self, index: int) -> Tuple[Any, ...]:
        return tuple(part.clone() for part in super().__getitem__(index))
