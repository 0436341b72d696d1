"""fairseq's commands as subprocesses, for the benchmarks that train with them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
USER_DIR = ROOT / "fairseq_hmrnn"


def command(name, *arguments, log):
    """Run a command of this environment and return what it printed, which is also appended to the file `log`. If it
    fails, so does the benchmark, with the end of what was printed."""
    result = subprocess.run(
        [str(BIN / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    with open(log, "a", encoding="utf-8") as file:
        file.write(result.stdout)
    if result.returncode:
        sys.exit(f"{name} failed, see {log}:\n{result.stdout[-1500:]}")
    return result.stdout
