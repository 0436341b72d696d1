"""Places of pieces in a text, against looking at every one."""

import random

import pytest

from fairseq_hmrnn.criterions import text_index
from fairseq_hmrnn.criterions.text_index import MOST_PLACES, SHORTEST, STRIDE, TextIndex


def direct(text, piece):
    return [place for place in range(len(text) - len(piece) + 1) if text.startswith(piece, place)]


@pytest.mark.parametrize("chunk", [STRIDE, 1 << 20])
def test_every_place_is_found(chunk, monkeypatch):
    monkeypatch.setattr(text_index, "_CHUNK", chunk)
    draw = random.Random(3)
    words = ["ka ", "l\u00fcmo ", "\U0001f600 ", "sen\n", "aaaaaaaaaa"]
    text = "".join(draw.choices(words, k=200))
    index, repeated = TextIndex(text), 0
    for length in [*range(1, 40), 200, len(text)]:
        for start in [0, len(text) - length, *(draw.randrange(len(text) - length + 1) for _ in range(4))]:
            piece = text[start : start + length]
            expected = direct(text, piece)
            assert sorted(index.places(piece)) == expected
            repeated += len(expected) > 1 and length >= SHORTEST
            changed = f"{piece[:-1]}x"
            assert index.places(changed) == []
    assert repeated > 20  # what is looked up stands at several places, too


def test_long_pieces_are_looked_up_and_places_bounded(monkeypatch):
    index = TextIndex("ab" * 5000)
    short, long = "ab", "ab" * SHORTEST
    assert len(index.places(short)) == len(index.places(long)) == MOST_PLACES
    assert sorted(index.places("ab" * 4990)) == list(range(0, 21, 2))
    monkeypatch.setattr(index, "_searched", None)
    assert index.places(long) and not index.places(f"{long}c")


@pytest.mark.parametrize("text", ["", "a", "abcdefg", "abcdefgh", "abcdefghijklmno"])
def test_texts_that_are_shorter_than_a_gram(text):
    index = TextIndex(text)
    assert index.places("abcdefghijklmno") == direct(text, "abcdefghijklmno")
    assert index.places("a") == direct(text, "a")
