"""Figures of candidates that take turns."""

import statistics
from typing import NamedTuple


class Ratio(NamedTuple):
    """Over the turns."""

    median: float
    lowest: float
    highest: float


def ratio(figures, base) -> Ratio:
    """Of a candidate's figures to those of another one, by turn; of the turns that both have."""
    ratios = [own / other for own, other in zip(figures, base)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
