"""A made-up text without separators whose words are known, and a signal that tells of them with noise."""

import random

import numpy as np
import torch

ROW = 100


def language(places, seed=0):
    """Symbols of words of a random lexicon, the frequent ones more often, and where each begins: rows of ROW."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefgh", k=choose.randint(2, 6))) for _ in range(80)]
    text = random.Random(seed).choices(words, weights=[1 / rank for rank in range(1, 81)], k=places)
    begins = np.concatenate([[True] + [False] * (len(word) - 1) for word in text])[:places]
    symbols = np.array([ord(letter) - ord("a") + 4 for letter in "".join(text)][:places])
    return torch.from_numpy(symbols).view(-1, ROW), torch.from_numpy(begins).view(-1, ROW)


def heard(begins, seed=1):
    """A signal that tells where words begin, with so much noise that its highest places are wrong one time in five."""
    noise = torch.randn(begins.shape, generator=torch.Generator().manual_seed(seed))
    return begins + 0.45 * noise


def f1(found, gold):
    return 2 * float((found & gold).sum()) / float(found.sum() + gold.sum())
