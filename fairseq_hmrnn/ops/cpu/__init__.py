"""The recurrence on CPU: compiled (`csrc/`, loaded by `kernel.py`) or in Python (`python/`), and compiled generation.

`recurrence.py` puts either path under autograd, `generation.py` makes many steps in one call.
"""

from . import kernel
from .kernel import DTYPES, kernel_seconds
from .loading import remedy
from .recurrence import PackedLayers, hm_lstm_cpu

__all__ = ["DTYPES", "PackedLayers", "hm_lstm_cpu", "kernel", "kernel_seconds", "remedy"]
