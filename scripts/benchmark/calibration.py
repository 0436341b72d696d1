"""Models as the benchmarks compare them: with boundary rates that are given, and of as many parameters as another."""

from __future__ import annotations

from typing import Callable

from torch import Tensor

ALWAYS = 50.0  # bias of a detector that finds a boundary at every step; its negative: at none
WIDEST = 8.0


def set_rate(bias: Tensor, rate: float, measured: Callable[[], float], halvings: int = 14) -> None:
    """Bring the rate of a layer's detector near `rate` by bisection of its bias, the last of the layer's `bias`.

    measured: the rate with the bias as it is.
    """
    bias = bias.detach()
    if not 0 < rate < 1:
        bias[-1] = ALWAYS if rate >= 1 else -ALWAYS
        return
    low, high = -WIDEST, WIDEST
    for _ in range(halvings):
        bias[-1] = middle = (low + high) / 2
        low, high = (low, middle) if measured() > rate else (middle, high)


def closest_size(parameters: int, parameters_of: Callable[[int], int], start: int = 1, step: int = 1) -> int:
    """The size, of start, start + step, ..., of which a model comes closest to so many parameters. parameters_of: of a
    size, and more for a larger one."""

    def distance(size: int) -> int:
        return abs(parameters_of(size) - parameters)

    size = start
    while distance(size + step) < distance(size):
        size += step
    return size
