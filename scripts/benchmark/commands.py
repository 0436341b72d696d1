"""fairseq's commands as subprocesses, for the benchmarks that train with them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
USER_DIR = ROOT / "fairseq_hmrnn"


def command(name, *arguments, log):
    """Run a command of this environment and return what it printed, which is appended to the file `log` as it comes, so
    that it is there after an interruption. If it fails, so does the benchmark, with the end of what was printed."""
    with open(log, "a+b") as file:
        begin = file.seek(0, os.SEEK_END)
        code = subprocess.call(
            [str(BIN / name), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        file.seek(begin)
        printed = file.read().decode()
    if code:
        sys.exit(f"{name} failed, see {log}:\n{printed[-1500:]}")
    return printed
