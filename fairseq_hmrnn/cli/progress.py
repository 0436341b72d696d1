"""Progress bars of commands: on standard error where it is a terminal."""

from __future__ import annotations

import sys
from typing import Iterable, Iterator, Optional, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress_bar(total: Optional[int], unit: str, hidden: bool = False, label: Optional[str] = None) -> tqdm:
    """A bar that counts to `total`, gone when it is done. Hidden if `total` is None, if `hidden`, or without a
    terminal."""
    shown = total is not None and not hidden and sys.stderr is not None and sys.stderr.isatty()
    return tqdm(desc=label, total=total, unit=unit, unit_scale=True, disable=not shown, leave=False)


def counted(items: Iterable[Item], progress: tqdm) -> Iterator[Item]:
    """The items, each counted once it has been used."""
    for item in items:
        yield item
        progress.update()
