"""Memory that runs out inside the compiled kernel, in its threads too, is MemoryError; the next call works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_hmrnn.ops import cpu

HERE = Path(__file__).resolve().parent
pytestmark = [
    pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its address space"),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["forward", "backward", "generation"])
def test_memory_that_runs_out(kind, threads):
    """Some 30 limits each, close together where the threads ask for their own memory: one has it and another has not.
    A thread left at a barrier would show as a timeout."""
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "limited_memory.py"), kind, str(threads)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    succeeded, failed = map(int, done.stdout.split()[-2:])
    assert succeeded >= 1 and failed >= 10
