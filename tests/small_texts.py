"""Dictionaries of a few symbols, and a text with its translation."""

import random

from fairseq.data import Dictionary

WORDS = {"haus": "house", "baum": "tree", "der": "the", "grün": "green", "ist": "is", "und": "and", "groß": "big"}


def dictionary_of(symbols, kind=Dictionary):
    """With fairseq's 4 symbols before these."""
    dictionary = kind()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    return dictionary


def sentences(count, seed):
    """Lines of 1 to 7 words drawn at random, and their translations word by word."""
    choose = random.Random(seed)
    source = [choose.choices(list(WORDS), k=choose.randint(1, 7)) for _ in range(count)]
    return [" ".join(line) for line in source], [" ".join(WORDS[word] for word in line) for line in source]


def write_pairs(folder, train):
    """`train` lines of train.de and train.en, 21 of valid.* and 13 of test.*"""
    for split, count, seed in (("train", train, 0), ("valid", 21, 1), ("test", 13, 2)):
        for language, lines in zip(("de", "en"), sentences(count, seed)):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
