"""The two paths of the CPU kernel, for tests of both, and options of the recurrence that these share."""

import pytest

from fairseq_hmrnn.ops import RecurrenceOptions, cpu

PATHS = ["python"] + ([] if cpu.kernel.compiled is None else ["compiled"])
compiled_only = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
both_paths = pytest.mark.parametrize("path", PATHS)


def options(**changes):
    return RecurrenceOptions(**{"slope": 0.8, "detector_grad_scale": 1.0, **changes})
