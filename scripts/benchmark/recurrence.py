"""Time of the HM-LSTM recurrence on CPU as ratios to torch.nn.LSTM of equal layers and sizes.

    python scripts/benchmark/recurrence.py                       # the table of README.md, all batch sizes
    python scripts/benchmark/recurrence.py --sweep rate --plot rate.png
    python scripts/benchmark/recurrence.py --sweep length --plot length.png
    python scripts/benchmark/recurrence.py --peer package.module:Class

The candidates take turns within one run, so that a busy machine slows all of them; each ratio is taken within a turn.
Parity with the reference is checked first, on the very model that is timed. A peer is a class whose instances, made
with (input_size, hidden_sizes), map x (T, B, input_size) to a tensor.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import sys
import time

import torch
from calibration import set_rate
from drawing import subplots
from results import write_rows
from turns import ratio

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions, cpu
from fairseq_hmrnn.ops.reference import hm_lstm_reference
from fairseq_hmrnn.options import SIZE, whole

COLUMNS = ["rates", "layer_norm", "steps", "batch", "task", "candidate", "median_ms", "ratio", "ratio_min", "ratio_max"]
TASKS = ["train", "sequence", "steps"]
SWEPT_RATES = (1.0, 0.5, 0.35, 0.2, 0.1, 0.05)  # of layer 1; layer 2's is a quarter of it
SWEPT_LENGTHS = (25, 50, 100, 200, 400)


def calibrated(args, rates, layer_norm=False) -> HMLSTM:
    """A model whose detector biases make layer l's boundary rate rates[l] on random input."""
    torch.manual_seed(args.seed)
    model = HMLSTM(args.hidden, [args.hidden] * args.layers, layer_norm=layer_norm)
    x = torch.randn(args.steps, 32, args.hidden)
    with torch.no_grad():
        for index, rate in enumerate(rates[: args.layers - 1]):
            set_rate(model.bias[index], rate, lambda index=index: float(model(x).boundaries[..., index].mean()))
        found = model(x).boundaries.mean((0, 1))[: args.layers - 1].tolist()
    print(f"layer_norm={layer_norm}: boundary rates", ", ".join(f"{rate:.3f}" for rate in found))
    return model


def options_of(args) -> RecurrenceOptions:
    return RecurrenceOptions(detector_grad_scale=args.detector_grad_scale)


def check_parity(model: HMLSTM, args) -> None:
    """Outputs and every gradient against the reference, in float64; exits where they differ."""
    torch.manual_seed(args.seed)
    double = HMLSTM(args.hidden, model.hidden_sizes, layer_norm=model.gain_recurrent is not None).double()
    double.load_state_dict(model.state_dict())
    x = torch.randn(12, 4, args.hidden, dtype=torch.float64)
    results = []
    for run in (hm_lstm_reference, cpu.hm_lstm_cpu):
        output = run(x, double.layers(), double.zero_state(4), options_of(args))
        loss = output.hidden[-1].pow(2).sum() + output.boundary_probs.sum()
        results.append([*output.hidden, output.boundaries, *torch.autograd.grad(loss, list(double.parameters()))])
    worst = max(float((a - b).detach().abs().max() / (1 + b.detach().abs().max())) for a, b in zip(*results))
    if not worst < 1e-10:
        sys.exit(f"the kernel and the reference differ by {worst}: no times")
    print(f"parity with the reference: {worst:.1e}")


class Job:
    """One candidate: train, sequence and steps are functions of nothing, or None where it has none."""

    def __init__(self, name, module, x, run, step=None):
        self.name, self.module, self.x, self.run, self.step = name, module, x, run, step
        self.grad = torch.randn_like(run(x))

    def train(self):
        self.module.zero_grad()
        torch.autograd.backward(self.run(self.x.detach().requires_grad_()), self.grad)

    @torch.no_grad()
    def sequence(self):
        self.run(self.x)

    @torch.no_grad()
    def steps(self):
        self.step()


def lstm_job(args, x):
    lstm = torch.nn.LSTM(args.hidden, args.hidden, args.layers)

    def step():
        state = None
        for x_t in x.split(1):
            _, state = lstm(x_t, state)

    return Job("nn.LSTM", lstm, x, lambda x: lstm(x)[0], step)


def kernel_job(args, name, model, x, bfloat16=False, **keywords):
    options = options_of(args)._replace(bfloat16_products=bfloat16)
    state, layers = model.zero_state(x.size(1)), model.layers()

    def run(x):
        return cpu.hm_lstm_cpu(x, layers, state, options, **keywords).hidden[-1]

    if not keywords.get("skip", True):
        return Job(name, model, x, run)  # packed layers always skip
    packed = cpu.PackedLayers(layers, keywords.get("path"), bfloat16)
    table = packed.project(x)  # as from a table of embeddings times W_bu

    def step():
        now = state
        for projected in table.split(1):
            now = packed(projected, now, options, projected=True).state

    return Job(name, model, x, run, step)


def reference_job(args, model, x):
    state, options, layers = model.zero_state(x.size(1)), options_of(args), model.layers()

    def run(x):
        return hm_lstm_reference(x, layers, state, options).hidden[-1]

    def step():
        now = state
        for x_t in x.split(1):
            now = hm_lstm_reference(x_t, layers, now, options).state

    return Job("reference", model, x, run, step)


def measure(jobs, what, repeats):
    """Per job the milliseconds of every turn."""
    times = {job.name: [] for job in jobs}
    for turn in range(repeats + 1):
        for job in jobs:
            if what == "steps" and job.step is None:
                continue
            start = time.perf_counter()
            getattr(job, what)()
            if turn:  # the first one warms up
                times[job.name].append(1e3 * (time.perf_counter() - start))
    return times


def jobs_of(args, model, x):
    """The candidates that take turns, nn.LSTM first."""
    jobs = [lstm_job(args, x), kernel_job(args, "kernel", model, x)]
    if "bfloat16" in args.extra:
        jobs.append(kernel_job(args, "kernel, bfloat16", model, x, bfloat16=True))
    if "dense" in args.extra:
        jobs.append(kernel_job(args, "kernel, no skip", model, x, skip=False))
    if "python" in args.extra:
        jobs.append(kernel_job(args, "python path", model, x, path="python"))
    if "reference" in args.extra:
        jobs.append(reference_job(args, model, x))
    if args.peer:
        peer = args.peer(args.hidden, [args.hidden] * args.layers)
        jobs.append(Job(args.peer.__name__, peer, x, peer))
    return jobs


def table(args, rates, batches, lengths):
    """Prints and returns rows as in COLUMNS; ratios are to nn.LSTM."""
    model = calibrated(args, rates, args.layer_norm)
    check_parity(model, args)
    rows = []
    for steps, batch, what in itertools.product(lengths, batches, args.tasks):
        times = measure(jobs_of(args, model, torch.randn(steps, batch, args.hidden)), what, args.repeats)
        for name, found in times.items():
            if not found:
                continue
            row = ["/".join(map(str, rates)), args.layer_norm, steps, batch, what, name]
            row += [round(statistics.median(found), 2)]
            row += [round(r, 3) for r in ratio(found, times["nn.LSTM"])]
            rows.append(row)
            print("{:>9} ln={!s:5} T {:3} B {:2} {:8} {:16} {:9} ms  ratio {} ({} - {})".format(*row), flush=True)
    return rows


def sweep(args):
    """At the last batch size: over the boundary rate, or over the number of steps."""
    if args.sweep == "length":
        return table(args, tuple(args.rates), args.batch[-1:], SWEPT_LENGTHS)
    rates = [(rate, rate if rate == 1 else rate / 4) for rate in SWEPT_RATES]
    return [row for pair in rates for row in table(args, pair, args.batch[-1:], [args.steps])]


def plot(rows, what, path):
    """Time against rate or length, one panel per task."""
    table = [dict(zip(COLUMNS, row)) for row in rows]
    tasks = sorted({row["task"] for row in table})
    figure, axes = subplots(1, len(tasks), figsize=(4.5 * len(tasks), 3.5), squeeze=False)
    for axis, task in zip(axes[0], tasks):
        for name in dict.fromkeys(row["candidate"] for row in table):
            chosen = [row for row in table if row["task"] == task and row["candidate"] == name]
            x = [row["steps"] if what == "length" else float(row["rates"].split("/")[0]) for row in chosen]
            axis.plot(x, [row["median_ms"] for row in chosen], marker="o", label=name)
        axis.set(title=f"{task}, B {table[0]['batch']}", ylabel="milliseconds", ylim=(0, None), xlim=(0, None))
        axis.set_xlabel("steps" if what == "length" else "boundary rate of layer 1")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def peer_class(argument):
    """The class that MODULE:CLASS names."""
    module, _, name = argument.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--peer {argument} is no class that can be imported: {error}") from error


def main():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--layers", type=whole(1, 100), default=3)
    parser.add_argument("--hidden", type=SIZE, default=512)
    parser.add_argument("--steps", type=kinds.STEPS, default=100)
    parser.add_argument("--batch", type=kinds.BATCH_SIZE, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--rates", type=kinds.RATE, nargs="+", default=[0.2, 0.05], help="boundary rates, bottom to top"
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--repeats", type=kinds.COUNT, default=7)
    parser.add_argument("--threads", type=kinds.THREADS, default=2)
    parser.add_argument("--seed", type=kinds.GENERATOR_SEED, default=0)
    parser.add_argument("--layer-norm", action="store_true")
    others = ["bfloat16", "dense", "python", "reference"]
    parser.add_argument("--with", dest="extra", nargs="*", default=[], choices=others)
    parser.add_argument("--peer", metavar="MODULE:CLASS", type=peer_class)
    parser.add_argument(
        "--detector-grad-scale", type=kinds.RATE, default=0.0, help="1: the exact straight-through gradient"
    )
    parser.add_argument("--sweep", choices=["rate", "length"], help="time against it, at the last batch size")
    parser.add_argument("--csv", metavar="FILE", type=kinds.new_file)
    parser.add_argument("--plot", metavar="FILE", type=kinds.picture, help="with --sweep")
    args = parser.parse_args()
    if args.plot and not args.sweep:
        parser.error("--plot requires --sweep")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, compiled: {cpu.kernel.compiled is not None}")
    if args.sweep:
        rows = sweep(args)
    else:
        rows = table(args, tuple(args.rates), args.batch, [args.steps])
    if args.csv:
        write_rows(args.csv, [COLUMNS, *rows])
    if args.plot and args.sweep:
        plot(rows, args.sweep, args.plot)


if __name__ == "__main__":
    run_command(main)
