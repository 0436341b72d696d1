"""Fails where tests would be left out for lack of something: the compiled kernel, or Triton where there is one."""

import importlib.util
import platform
import sys

from fairseq_hmrnn.ops.cpu import kernel, remedy


def missing() -> list:
    """One line for each thing that is not there."""
    found = []
    if kernel.compiled is None:
        found.append(f"the compiled CPU kernel {kernel.MISSING}: {remedy()}")
    has_triton = (platform.system(), platform.machine()) == ("Linux", "x86_64") and sys.version_info >= (3, 11)
    if has_triton and importlib.util.find_spec("triton") is None:
        found.append("Triton is not installed: pip install triton")
    return found


if __name__ == "__main__":
    problems = missing()
    sys.exit("".join(f"error: {problem}\n" for problem in problems).rstrip() or 0)
