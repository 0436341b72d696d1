"""A language with a known structure of two levels: words of a random lexicon without separators, phrases of words.

A phrase has a kind; a kind has two to four slots, and each slot a few words of its own to choose from. So the next
letter is seldom in doubt within a word, more so after a word, and most after a phrase.
"""

from __future__ import annotations

import random
from typing import List, NamedTuple

LETTERS = "abdegiklmnopu"
KINDS = 6
WORDS_PER_SLOT = 4

Phrase = List[str]  # words


class SyntheticText(NamedTuple):
    """text: as a model reads it. words, phrases: the same with "|" after each word, each phrase."""

    text: str
    words: str
    phrases: str


class SyntheticLanguage:
    """Draws texts. seed: of the lexicon and the phrases' slots; two languages of one seed are the same."""

    def __init__(self, seed: int = 0):
        choose = random.Random(seed)
        lexicon: List[str] = []
        while len(lexicon) < KINDS * 4 * WORDS_PER_SLOT:
            word = "".join(choose.choices(LETTERS, k=choose.randint(3, 6)))
            if word not in lexicon:
                lexicon.append(word)
        slots = [lexicon[start : start + WORDS_PER_SLOT] for start in range(0, len(lexicon), WORDS_PER_SLOT)]
        self.kinds = [slots[4 * kind : 4 * kind + choose.randint(2, 4)] for kind in range(KINDS)]

    def draw(self, num_lines: int, seed: int) -> SyntheticText:
        """Lines of four to eight phrases each."""
        choose = random.Random(seed)
        lines: List[List[Phrase]] = []
        for _ in range(num_lines):
            kinds = choose.choices(self.kinds, k=choose.randint(4, 8))
            lines.append([[choose.choice(slot) for slot in kind] for kind in kinds])
        return SyntheticText(
            "".join("".join("".join(phrase) for phrase in line) + "\n" for line in lines),
            "".join("".join(word + "|" for phrase in line for word in phrase) + "\n" for line in lines),
            "".join("".join("".join(phrase) + "|" for phrase in line) + "\n" for line in lines),
        )
