"""The compiled kernel (csrc/), where it was built and can run, and products of matrices by its panels.

Imports nothing of the recurrence, so that whatever the recurrence is made of can multiply (ops/detector.py).
"""

from __future__ import annotations

import functools
import logging
from typing import Dict

import torch
from torch import Tensor

from .loading import load, remedy

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float64)
compiled, MISSING = load()  # MISSING: "was not built" and the like, "" where it is there
DEFAULT_PATH = "python" if compiled is None else "compiled"
COST = "takes 3 to 10 times as long"  # in training and generation, layers of 512 to 128


@functools.lru_cache(maxsize=None)
def chooses_panels(device_type: str, dtype: torch.dtype) -> bool:
    """Whether large products of this dtype are the compiled kernel's. Says so once, for the answer is cached."""
    panels = device_type == "cpu" and dtype in DTYPES and compiled is not None
    logger.info("large products of %s on %s: %s", dtype, device_type, "compiled panels" if panels else "torch's")
    return panels


def multiply(a: Tensor, b: Tensor, a_over_rows: bool = False, b_over_rows: bool = False) -> Tensor:
    """The matrix (M, N) of sums over K of a b, without a graph: a (M, K), or with a_over_rows (K, M); b (N, K), or with
    b_over_rows (K, N). As a b^T, and with the second switch a b. By torch where not by panels."""
    if chooses_panels(a.device.type, a.dtype):
        return compiled.multiply(a.contiguous(), a_over_rows, b.contiguous(), b_over_rows, False)
    return (a.t() if a_over_rows else a) @ (b if b_over_rows else b.t())


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
