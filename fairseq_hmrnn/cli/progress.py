"""Progress bars of commands: on standard error where it is a terminal."""

from __future__ import annotations

import sys
from typing import Optional

from tqdm import tqdm


def progress_bar(total: Optional[int], unit: str, hidden: bool = False) -> tqdm:
    """A bar that counts to `total`, gone when it is done. Hidden where that is not known, too, or told so."""
    shown = total is not None and not hidden and sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=total, unit=unit, unit_scale=True, disable=not shown, leave=False)
