#!/usr/bin/env python3
"""The fastest products of this processor: the best of torch's ways over several large shapes.

    python scripts/benchmark/peak.py --precision float32 bf16 --threads 2

Float32 counts only where the sums are those of float32: what rounds its operands to fewer bits is left out. bf16, whose
numbers float32 holds too, is the better one of both: some processors multiply bfloat16 more slowly.
"""

import itertools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command

SHAPES = ((6400, 512, 512), (2048, 1024, 1024), (1536, 1536, 1536))  # rows, inner, columns
PRECISIONS = {"float32": ["float32"], "bf16": ["bfloat16", "float32"]}  # dtypes that can hold their operands
REPEATS = 3


def processor():
    """The processor's name and what it has for 16-bit products, as /proc/cpuinfo gives them."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    flags = found.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if flag in flags]
    name = found.get("model name", platform.machine())
    return f"{name}, family {found.get('cpu family', '?')} model {found.get('model', '?')} ({', '.join(known)})"


def ways(torch):
    """torch's ways to a product of a (M, K) and b (K, N), by name."""
    found = {"mm": torch.mm}
    pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if pointwise is not None:
        found["oneDNN"] = lambda a, b: pointwise(a, b.t(), None, "none", [], "")
    return found


def is_exact(product, a, b):
    """Whether the sums are those of a and b as they are: a bfloat16 operand errs a thousand times as much."""
    rows = a[:8].double()
    error = (product[:8].double() - rows @ b.double()).abs() / (rows.abs() @ b.double().abs())
    return float(error.max()) < 1e-5


def speed(multiply, a, b):
    """GFLOP/s of the best of REPEATS products; 0 where torch has no such product, or one of float32 is not exact."""
    try:
        product = multiply(a, b)
    except RuntimeError:
        return 0.0
    if str(a.dtype) == "torch.float32" and not is_exact(product, a, b):
        return 0.0
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        multiply(a, b)
        seconds.append(time.perf_counter() - began)
    return 2e-9 * a.size(0) * a.size(1) * b.size(1) / min(seconds)


def peak(precision, threads):
    """{"gflops", "shape", "by"} of the best product."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    best = {"gflops": 0.0}
    for (rows, inner, columns), dtype in itertools.product(SHAPES, PRECISIONS[precision]):
        a, b = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((rows, inner), (columns, inner)))
        for name, multiply in ways(torch).items():
            gflops = speed(multiply, a, b.t())
            if gflops > best["gflops"]:
                best = {"gflops": gflops, "shape": [rows, inner, columns], "by": f"{name} of {dtype}"}
    return best


def measure(precision, threads, environment=None):
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--precision", precision, "--threads", str(threads), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)


def main():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=kinds.THREADS, default=2)
    parser.add_argument("--json", action="store_true", help="the one precision given, for programs")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(peak(args.precision[0], args.threads)))
        return
    print(processor())
    for precision in args.precision:
        found = measure(precision, args.threads)
        print("{}: {:.0f} GFLOP/s, by {} at {}".format(precision, found["gflops"], found["by"], found["shape"]))


if __name__ == "__main__":
    run_command(main)
