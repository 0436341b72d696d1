"""The compiled kernel (csrc/), where it was built and can run."""

from __future__ import annotations

import functools
import logging
from typing import Dict

from .loading import load, remedy

logger = logging.getLogger(__name__)

compiled, MISSING = load()  # MISSING: "was not built" and the like, "" where it is there
DEFAULT_PATH = "python" if compiled is None else "compiled"
COST = "takes 3 to 10 times as long"  # in training and generation, layers of 512 to 128


@functools.lru_cache(maxsize=None)
def warn_of_python_path() -> None:
    """Once, where the compiled kernel would have run: why it does not, what that costs, and what mends it."""
    logger.warning(
        "the compiled CPU kernel %s; its Python path runs, which %s. To build the kernel, with a C++ compiler: %s",
        MISSING,
        COST,
        remedy(),
    )


def kernel_seconds() -> Dict[str, float]:
    """Seconds of the compiled kernel's first thread in each of its parts, over all calls with a batch of 4 or more so
    far: products and the rest of the cells, forward and backward, and large products (the weights' gradients, and the
    little of that kind in the forward pass). Empty without the kernel."""
    return {} if compiled is None else compiled.seconds()
