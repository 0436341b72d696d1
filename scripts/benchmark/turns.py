"""Figures of candidates that take turns."""

import statistics
from typing import NamedTuple


class Ratio(NamedTuple):
    """Over the turns."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} - {self.highest:.2f})"


def ratio(figures, base) -> Ratio:
    """Of a candidate's figures to those of another one, by turn; of the turns that both have."""
    return over([own / other for own, other in zip(figures, base)])


def over(ratios) -> Ratio:
    """Of ratios that were taken within turns."""
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
