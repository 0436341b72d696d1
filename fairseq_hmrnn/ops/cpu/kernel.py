"""The compiled kernel (csrc/), where it was built."""

from __future__ import annotations

from typing import Dict

try:
    from . import _kernel as compiled
except ImportError as error:
    compiled, MISSING = None, str(error)
else:
    MISSING = ""

DEFAULT_PATH = "python" if compiled is None else "compiled"


def kernel_seconds() -> Dict[str, float]:
    """Seconds of the compiled kernel's first thread in each of its parts, over all calls with a batch of 4 or more so
    far: products and the rest of the cells, forward and backward, and large products (the weights' gradients, and the
    little of that kind in the forward pass). Empty without the kernel."""
    return {} if compiled is None else compiled.seconds()
