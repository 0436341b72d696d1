"""A fairseq dictionary from its file."""

from __future__ import annotations

from typing import Type, TypeVar

from fairseq.data import Dictionary

AnyDictionary = TypeVar("AnyDictionary", bound=Dictionary)


def read_dictionary(kind: Type[AnyDictionary], path: str) -> AnyDictionary:
    """Read a dict.txt with fairseq. ValueError, in one line, if it is none; OSError if it cannot be opened."""
    try:
        with open(path, encoding="utf-8") as stream:
            return kind.load(stream)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a fairseq dictionary ({error}): give the dict.txt of prepared data") from error
