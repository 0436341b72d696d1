#!/usr/bin/env python3
"""Training by 1, 2, ... processes of one machine that share a global batch (gloo on CPU): is the loss curve the same,
and how many words a second?

    python scripts/benchmark/ranks.py data/ptb --processes 1 2 4

Every number of processes is run --turns times, in turns, each process with one thread; ratios are taken within a turn,
to the first number. Without the penalty on boundary rates, which every process takes over its own part of the batch.
"""

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from commands import USER_DIR, environment, fairseq_command, log_records, parse_with_rest, reason
from turns import ratio

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.options import whole

TRAINING = "--task hmlstm_language_modeling --stateful --arch hmlstm_lm --criterion boundary_regularized_cross_entropy "
TRAINING += "--optimizer adam --lr 0.002 --clip-norm 1 --tokens-per-sample 100 --seed 1 --cpu --num-workers 0 "
TRAINING += "--dropout-input 0 --dropout-recurrent 0 --dropout-output 0 --disable-validation --no-save "
TRAINING += "--log-format json --log-interval 1"


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.prepared_folder, help="prepared folder")
    parser.add_argument("--processes", type=whole(1, 64), nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=kinds.BATCH_SIZE, default=32, help="of all processes together")
    parser.add_argument("--updates", type=kinds.COUNT, default=30)
    parser.add_argument("--turns", type=kinds.COUNT, default=2)
    args, rest = parse_with_rest(parser)
    for count in args.processes:
        if args.batch_size % count:
            parser.error(f"--batch-size {args.batch_size} is not a multiple of {count} processes")
    return args, rest


def distributed_options(count, folder):
    """Of each of `count` processes on this machine, which meet at a new file in the folder."""
    if count == 1:
        return [[]]
    options = ["--distributed-world-size", count, "--distributed-no-spawn", "--distributed-backend", "gloo"]
    options += ["--distributed-init-method", f"file://{folder}/meeting", "--ddp-backend", "legacy_ddp"]
    return [[*options, "--distributed-rank", rank] for rank in range(count)]


def failed(running):
    """The numbers of the processes that have ended with an error."""
    return [rank for rank, process in enumerate(running) if process.poll()]


def train(args, rest, count):
    """The losses, and the words per second of all processes together."""
    command = [
        *fairseq_command("fairseq-train"),
        args.data,
        "--user-dir",
        USER_DIR,
        *TRAINING.split(),
        "--max-update",
        args.updates,
    ]
    command += ["--batch-size", args.batch_size // count]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(count)]
        running = []
        # No GPU: fairseq would make a tensor there in each of several processes, whatever --cpu says.
        surroundings = environment(threads=1, CUDA_VISIBLE_DEVICES="")
        for options, log in zip(distributed_options(count, folder), logs):
            arguments = [str(part) for part in (*command, *options, *rest)]
            with log.open("wb") as file:
                running.append(subprocess.Popen(arguments, env=surroundings, stdout=file, stderr=subprocess.STDOUT))
        while not failed(running) and any(process.poll() is None for process in running):
            time.sleep(0.2)
        first = failed(running)[:1]
        for process in running if first else ():  # they would wait for it
            process.kill()
            process.wait()
        logs = [log.read_text(encoding="utf-8") for log in logs]
    for rank in first:
        raise UserError(f"fairseq-train failed: {reason(logs[rank])}")
    records = log_records(logs[0], "train_inner")
    losses = [float(record["loss"]) for record in records]
    return losses, statistics.median(float(record["wps"]) for record in records[len(records) // 3 :])


def main():
    args, rest = parse_args()
    found = {count: [] for count in args.processes}
    for _ in range(args.turns):
        for count in args.processes:
            found[count].append(train(args, rest, count))
    first = found[args.processes[0]]
    expected, base = first[0][0], [speed for _, speed in first]
    print("| processes | words per second | ratio | largest difference of the loss, bits |\n|---|---|---|---|")
    for count, runs in found.items():
        speeds = [speed for _, speed in runs]
        difference = max(abs(a - b) for losses, _ in runs for a, b in zip(losses, expected))
        print(f"| {count} | {statistics.median(speeds):.0f} | {ratio(speeds, base).median:.2f} | {difference:.3f} |")


if __name__ == "__main__":
    run_command(main)
