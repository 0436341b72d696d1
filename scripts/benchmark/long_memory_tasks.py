"""The tasks of long_memory.py: sequences of any length whose answers are due at their last steps.

Every task spreads what has to be kept over, or before, `gap` steps. Tensors are time-major.
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_hmrnn.cli.errors import UserError

KINDS = 8  # of keys, values, letters, and of items to copy
TOLERANCE = 0.1  # a sum is right within it: of 2 numbers in [0, 1], that a guess of 1 is in 19 of 100


class Batch(NamedTuple):
    """inputs: (T, B) symbols, or (T, B, F) numbers. answers: (N, B), classes or numbers, of the last N steps."""

    inputs: Tensor
    answers: Tensor


class Task(NamedTuple):
    """draw: (batch size, gap, generator, whether it is for testing) to a Batch.

    symbols: how many there are; 0 where inputs are numbers, `features` at a step. outputs: classes; 1: a number.
    chance: the share of right answers without memory.
    """

    draw: Callable[[int, int, torch.Generator, bool], Batch]
    symbols: int
    features: int
    outputs: int
    chance: float

    def loss(self, predictions: Tensor, answers: Tensor) -> Tensor:
        """Of predictions (N, B, outputs): the mean cross-entropy in nats, or squared error."""
        if self.outputs == 1:
            return F.mse_loss(predictions.squeeze(-1), answers)
        return F.cross_entropy(predictions.flatten(0, 1), answers.flatten())

    def right(self, predictions: Tensor, answers: Tensor) -> float:
        """The share of answers that are right."""
        if self.outputs == 1:
            return (predictions.squeeze(-1) - answers).abs().lt(TOLERANCE).float().mean().item()
        return predictions.argmax(-1).eq(answers).float().mean().item()


def recall(pairs: int) -> Task:
    """Key-value pairs, then words of random letters between separators for `gap` steps, then a query, one of the keys:
    which value was it?"""
    separator, query, first_key = 0, 1, 2
    first_value, first_letter = first_key + KINDS, first_key + 2 * KINDS

    def draw(size, gap, random, test):
        keys = torch.stack([torch.randperm(KINDS, generator=random)[:pairs] for _ in range(size)], dim=1)
        values = torch.randint(KINDS, (pairs, size), generator=random)
        facts = torch.stack([keys + first_key, values + first_value], dim=1).flatten(0, 1)
        letters = torch.randint(KINDS, (gap, size), generator=random) + first_letter
        letters[torch.rand(gap, size, generator=random) < 0.2] = separator
        asked = torch.randint(pairs, (1, size), generator=random)
        queries, separators = torch.full((1, size), query), torch.full((1, size), separator)
        inputs = torch.cat([facts, separators, letters, queries, keys.gather(0, asked) + first_key])
        return Batch(inputs, values.gather(0, asked))

    return Task(draw, first_letter + KINDS, 0, KINDS, 1 / KINDS)


def copying(items: int) -> Task:
    """Selective copying (Gu and Dao 2023, arXiv 2312.00752): items stand at random places among `gap` blanks, and are
    to be given in their order at the marks that follow."""
    blank, mark = 0, 1

    def draw(size, gap, random, test):
        length = gap + items
        places = torch.rand(size, length, generator=random).topk(items)[1].sort(dim=1)[0].t()
        values = torch.randint(KINDS, (items, size), generator=random)
        spread = torch.full((length, size), blank).scatter(0, places, values + 2)
        return Batch(torch.cat([spread, torch.full((items, size), mark)]), values)

    return Task(draw, KINDS + 2, 0, KINDS, 1 / KINDS)


def adding() -> Task:
    """The adding problem (Hochreiter and Schmidhuber 1997): a random number in [0, 1] at each of `gap` steps, two of
    them marked, one in either half; what is their sum?"""

    def draw(size, gap, random, test):
        numbers, marks = torch.rand(gap, size, generator=random), torch.zeros(gap, size)
        half = gap // 2
        for start, length in ((0, half), (half, gap - half)):
            marks.scatter_(0, torch.randint(length, (1, size), generator=random) + start, 1.0)
        return Batch(torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0, keepdim=True))

    return Task(draw, 0, 2, 1, 0.19)


def digits() -> Task:
    """The digits of scikit-learn (8 x 8 pixels) row by row, pixel by pixel, then `gap` blank steps and a mark: which
    digit was it? A fifth of the 1,797 is for testing alone."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the task digits requires scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    pixels, classes = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    for_test = torch.arange(len(classes)) % 5 == 0
    splits = {test: for_test.eq(test).nonzero().squeeze(1) for test in (False, True)}

    def draw(size, gap, random, test):
        chosen = splits[test][torch.randint(len(splits[test]), (size,), generator=random)]
        steps = torch.zeros(pixels.size(1) + gap + 1, size, 2)
        steps[: pixels.size(1), :, 0] = pixels[chosen].t()
        steps[-1, :, 1] = 1
        return Batch(steps, classes[chosen].unsqueeze(0))

    return Task(draw, 0, 2, 10, 0.1)


TASKS = ("recall", "copying", "adding", "digits")
ITEMS = {"recall": 1, "copying": 3}  # unless said otherwise; the others have none


def items_of(name: str, items: Optional[int] = None) -> int:
    """Pairs of recall, items of copying: `items`, or the usual number if None; 0 for a task without."""
    return (items or ITEMS[name]) if name in ITEMS else 0


def build_task(name: str, items: Optional[int] = None) -> Task:
    """One of TASKS. items: as of `items_of`."""
    builders: Dict[str, Callable[..., Task]] = {
        "recall": recall,
        "copying": copying,
        "adding": adding,
        "digits": digits,
    }
    return builders[name](*([items_of(name, items)] if name in ITEMS else []))
