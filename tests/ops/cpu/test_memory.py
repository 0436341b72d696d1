"""Memory that runs out inside the compiled kernel, in its threads too, is MemoryError; the next call works."""

import os
import re
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
def test_memory_that_runs_out(threads):
    """Some 30 limits each, close together where the threads ask for their own memory: one has it and another has not.
    A thread left at a barrier would show as a timeout."""
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "limited_memory.py"), str(threads)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    found = re.findall(r"^(forward|backward|generation) (\d+) (\d+)$", done.stdout, re.MULTILINE)
    assert len(found) == 3 and all(int(succeeded) >= 1 and int(failed) >= 10 for _, succeeded, failed in found), found
