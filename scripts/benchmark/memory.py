#!/usr/bin/env python3
"""Peak memory and time of one training step of the recurrence over a long window, by the number of chunks that the
backward pass computes again (`--recompute-chunks`). On CPU; every row is measured in a process of its own, one row
after the other, and compared with the first by its median: keep the machine quiet.

    python scripts/benchmark/memory.py --steps 1000 --batch 16 --chunks 1 2 4 8 16
"""

import json
import resource
import statistics
import subprocess
import sys
import time

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command
from fairseq_hmrnn.ops import BACKENDS
from fairseq_hmrnn.options import SIZE, whole


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--steps", type=kinds.STEPS, default=1000)
    parser.add_argument("--batch", type=kinds.BATCH_SIZE, default=16)
    parser.add_argument("--hidden", type=SIZE, default=512)
    parser.add_argument("--layers", type=whole(1, 100), default=3)
    parser.add_argument("--chunks", type=kinds.COUNT, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--turns", type=kinds.COUNT, default=3)
    parser.add_argument("--threads", type=kinds.THREADS, default=2)
    parser.add_argument("--backend", default="auto", choices=list(BACKENDS))
    parser.add_argument("--in-process", action="store_true", help="measure the one number of chunks given, print JSON")
    return parser.parse_args()


def measure(args):
    """MiB by which one forward and backward pass raised the process's peak, and its seconds."""
    import torch

    from fairseq_hmrnn.modules import HMLSTM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = [args.hidden] * args.layers
    module = HMLSTM(args.hidden, sizes, layer_norm=True, backend=args.backend, recompute_chunks=args.chunks[0])
    x = torch.randn(args.steps, args.batch, args.hidden)
    module(x[:2]).hidden[-1].sum().backward()  # gradients and the kernel's own buffers are there
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(args.turns):
        began = time.perf_counter()
        module(x).hidden[-1].sum().backward()
        seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (after - before) / 1024, "seconds": statistics.median(seconds)}


def main():
    args = parse_args()
    if args.in_process:
        print(json.dumps(measure(args)))
        return
    arguments, base = sys.argv[1:], None
    print("| chunks | peak, MiB | time | of the first |\n|---|---|---|---|")
    for chunks in args.chunks:
        command = [sys.executable, __file__, *arguments, "--chunks", str(chunks), "--in-process"]
        measured = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
        if measured.returncode:  # it has said why
            sys.exit(measured.returncode)
        found = json.loads(measured.stdout)
        base = base or found["seconds"]
        print(
            f"| {chunks} | {found['mib']:.0f} | {found['seconds']:.2f} s | {found['seconds'] / base:.2f} |", flush=True
        )


if __name__ == "__main__":
    run_command(main)
