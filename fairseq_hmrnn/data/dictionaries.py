"""A fairseq dictionary from its file."""

from __future__ import annotations

from typing import Type, TypeVar

from fairseq.data import Dictionary

AnyDictionary = TypeVar("AnyDictionary", bound=Dictionary)


def read_dictionary(kind: Type[AnyDictionary], path: str) -> AnyDictionary:
    """Of a dict.txt, by fairseq, which is told in one line where it cannot be read: ValueError, or OSError."""
    try:
        with open(path, encoding="utf-8") as stream:
            return kind.load(stream)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a fairseq dictionary ({error}): give the dict.txt of prepared data") from error
