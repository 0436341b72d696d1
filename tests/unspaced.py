"""A made-up text without separators whose words are known, and a signal that tells of them with noise."""

import random

import numpy as np
import torch

ROW = 100


def letters_of_words(places, shortest=2, longest=6, seed=0):
    """Letters, numbered from 0, of words of a random lexicon, the frequent ones more often, and where each begins."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefgh", k=choose.randint(shortest, longest))) for _ in range(80)]
    text = random.Random(seed).choices(words, weights=[1 / rank for rank in range(1, 81)], k=places)
    begins = np.concatenate([[True] + [False] * (len(word) - 1) for word in text])[:places]
    return np.array([ord(letter) - ord("a") for letter in "".join(text)][:places]), begins


def language(places, seed=0):
    """Such a text as symbols of a dictionary: rows of ROW."""
    letters, begins = letters_of_words(places, seed=seed)
    return torch.from_numpy(letters + 4).view(-1, ROW), torch.from_numpy(begins).view(-1, ROW)


def heard(begins, seed=1):
    """A signal that tells where words begin, with so much noise that its highest places are wrong one time in five."""
    noise = torch.randn(begins.shape, generator=torch.Generator().manual_seed(seed))
    return begins + 0.45 * noise


def f1(found, gold):
    return 2 * float((found & gold).sum()) / float(found.sum() + gold.sum())
