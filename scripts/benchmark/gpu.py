"""Time of the HM-LSTM recurrence on a GPU beside torch.nn.LSTM (cuDNN), the reference and torch.compile of it.

    python scripts/benchmark/gpu.py                 # the table, on a CUDA device
    TRITON_INTERPRET=1 python scripts/benchmark/gpu.py --tiny   # every part once at a tiny size, without a GPU

Candidates take turns, and ratios are taken within a turn; the slow ones, the reference and torch.compile, are timed in
the first turn alone. Parity with the reference is checked first. `roofline` is the share of a candidate's time that
its products would take at the machine's own ceiling, or reading the weights once and moving the states, whichever is
longer; both ceilings are measured before every setting.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time

import torch
from calibration import set_rate
from results import write_rows
from turns import ratio

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions, hm_lstm
from fairseq_hmrnn.ops.reference import cell, hm_lstm_reference
from fairseq_hmrnn.options import SIZE, number, whole

try:
    from fairseq_hmrnn.ops.triton import hm_lstm_triton
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    hm_lstm_triton = None  # main reports it, after --help

COLUMNS = ["dtype", "hidden", "batch", "rates", "task", "candidate", "median_ms", "ratio", "boundary_rates", "roofline"]
TASKS = ["train", "sequence", "step"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


def milliseconds(function) -> float:
    """Of one call, with CUDA events where there is a GPU."""
    if not GPU:
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def ceilings(dtype, size):
    """FLOP/s of a large product and bytes/s of a large copy, each the median of 10."""
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    memory = torch.empty(size * size * 4, device=DEVICE)
    target = torch.empty_like(memory)
    found = []
    for work, function in ((2 * size**3, lambda: a @ b), (8 * memory.numel(), lambda: target.copy_(memory))):
        times = [milliseconds(function) for _ in range(13)][3:]
        found.append(work / statistics.median(times) * 1e3)
    return found


def roofline_ms(args, hidden, batch, dtype, task, flops, bandwidth) -> float:
    """Products of all steps over the FLOP/s, or the weights read once and the states over the bytes/s: the larger.
    Nothing is taken off for COPY."""
    steps = 1 if task == "step" else args.steps
    products = 3 * args.layers - 1
    work = 2 * steps * batch * products * (4 * hidden + 1) * hidden * (3 if task == "train" else 1)
    element = torch.empty(0, dtype=dtype).element_size()
    moved = element * (products * (4 * hidden + 1) * hidden + 2 * steps * batch * hidden * (args.layers + 1))
    return 1e3 * max(work / flops, moved * (3 if task == "train" else 1) / bandwidth)


def model_of(args, hidden, rates):
    """In float32; biases of the detectors set so that layer l's boundary rate is near rates[l] on random input."""
    torch.manual_seed(0)
    model = HMLSTM(hidden, [hidden] * args.layers, layer_norm=args.layer_norm).to(DEVICE)
    x = torch.randn(args.steps, min(16, max(args.batch)), hidden, device=DEVICE)
    with torch.no_grad():
        for index, rate in enumerate(rates[: args.layers - 1]):

            def measured(index=index):
                found = hm_lstm_triton(x, model.layers(), model.zero_state(x.size(1)), RecurrenceOptions())
                return float(found.boundaries[..., index].mean())

            set_rate(model.bias[index], rate, measured, args.calibration)
    return model


def check_parity(args, model) -> None:
    """With soft boundaries, so that no rounding decides one."""
    x = torch.randn(min(12, args.steps), 4, model.input_size, device=DEVICE)
    results = []
    for run in (hm_lstm_reference, hm_lstm_triton):
        output = run(x, model.layers(), model.zero_state(4), RecurrenceOptions(boundary="soft"))
        grads = torch.autograd.grad(output.hidden[-1].pow(2).sum(), list(model.parameters()), allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads)]
        results.append([*output.hidden, *grads])
    worst = max(float((a - b).detach().abs().max() / (1 + b.detach().abs().max())) for a, b in zip(*results))
    if not worst < 1e-3:
        sys.exit(f"Triton and the reference differ by {worst}: no times")
    print(f"parity with the reference: {worst:.1e}")


def candidates(args, model, hidden, dtype):
    """name -> (module, function of x and state that gives the top layer's h and the new state)."""
    lstm = torch.nn.LSTM(hidden, hidden, args.layers).to(DEVICE, dtype)
    model = model.to(dtype)
    options = RecurrenceOptions(detector_grad_scale=0.0)

    def of(function, **keywords):
        def run(x, state=None):
            state = model.zero_state(x.size(1)) if state is None else state
            output = function(x, model.layers(), state, options, **keywords)
            return output.hidden[-1], output.state

        return run

    found = {"nn.LSTM": (lstm, lambda x, state=None: lstm(x, state)), "triton": (model, of(hm_lstm_triton))}
    found["triton, no skip"] = (model, of(hm_lstm_triton, skip=False))
    found["reference"] = (model, of(hm_lstm, backend="reference"))
    if args.compile:
        compiled_cell = torch.compile(cell, dynamic=False)

        def compiled(*arguments):
            from fairseq_hmrnn.ops import reference

            kept, reference.cell = reference.cell, compiled_cell
            try:
                return hm_lstm(*arguments, backend="reference")
            finally:
                reference.cell = kept

        found["torch.compile"] = (model, of(compiled))
    return found


def job(module, run, x, task):
    """The call that is timed: a training step, the sequence without gradients, or one step from a state."""
    if task == "train":
        x = x.clone().requires_grad_()
        grad = torch.randn_like(run(x)[0])

        def train():
            module.zero_grad()
            torch.autograd.backward(run(x)[0], grad)

        return train
    if task == "step":
        with torch.no_grad():
            state = run(x)[1]
        x = x[:1]
    else:
        state = None

    def infer():
        with torch.no_grad():
            run(x, state)

    return infer


def measure(jobs, repeats, slow):
    """Per job the milliseconds of every turn; of the slow ones, of the first turn."""
    times = {name: [] for name in jobs}
    for turn in range(repeats + 3):  # the first ones compile and capture
        for name, function in jobs.items():
            if name in slow and turn not in (2, 3):
                continue
            found = milliseconds(function)
            if turn > 2:
                times[name].append(found)
    return times


def main():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--layers", type=whole(1, 100), default=3)
    parser.add_argument("--hidden", type=SIZE, nargs="+", default=[512, 1024])
    parser.add_argument("--batch", type=kinds.BATCH_SIZE, nargs="+", default=[64, 1, 128])
    parser.add_argument("--steps", type=kinds.STEPS, default=100)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--layer-norm", action="store_true", help="as the published recipes have it")
    parser.add_argument("--repeats", type=kinds.COUNT, default=10)
    parser.add_argument("--calibration", type=whole(1, 100), default=12, help="halvings of a detector's bias")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the reference's cell too (minutes)")
    parser.add_argument("--limit", type=number(0, 1e9), default=510, help="seconds after which no new row is begun")
    parser.add_argument("--ceiling-size", type=whole(1, 10**5), default=8192)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--csv", metavar="FILE", type=kinds.new_file)
    args = parser.parse_args()
    if hm_lstm_triton is None:
        raise UserError("there is no Triton: pip install triton")
    if args.tiny:
        args.layers, args.hidden, args.batch, args.steps = 2, [8], [2], 2
        args.repeats, args.calibration, args.ceiling_size = 1, 1, 64
    begun, rows, torch.backends.cuda.matmul.allow_tf32 = time.monotonic(), [], False
    torch.backends.cudnn.allow_tf32 = False
    left_out = 0
    if args.csv:
        write_rows(args.csv, [COLUMNS])
    for dtype_name, hidden, batch, rates in itertools.product(
        args.dtypes, args.hidden, args.batch, [(1, 1), (0.2, 0.05)]
    ):
        if time.monotonic() - begun > args.limit:
            left_out += 1
            continue
        found = measured_rows(args, dtype_name, hidden, batch, rates)
        if args.csv:  # setting by setting, so that those which are done outlive a kill
            write_rows(args.csv, found, "a")
        rows += found
    print(f"{len(rows)} rows, {left_out} settings left out for lack of time")


def measured_rows(args, dtype_name, hidden, batch, rates):
    """All tasks and candidates of one setting, printed as they come."""
    dtype = DTYPES[dtype_name]
    flops, bandwidth = ceilings(dtype, args.ceiling_size)
    model = model_of(args, hidden, rates)
    check_parity(args, model)
    norm = ", layer normalisation" if args.layer_norm else ""
    print(f"{dtype_name}{norm}: ceilings {flops / 1e12:.1f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s")
    found = candidates(args, model, hidden, dtype)
    x, rows = torch.randn(args.steps, batch, hidden, device=DEVICE).to(dtype), []
    with torch.no_grad():
        output = hm_lstm_triton(x, model.layers(), model.zero_state(batch), RecurrenceOptions())
    seen = "/".join(f"{rate:.2f}" for rate in output.boundaries.float().mean((0, 1))[:-1].tolist())
    for task in args.tasks:
        jobs = {name: job(module, run, x, task) for name, (module, run) in found.items()}
        times = measure(jobs, args.repeats, slow=("reference", "torch.compile"))
        for name, values in times.items():
            median, relative = statistics.median(values), ratio(values, times["nn.LSTM"]).median
            share = roofline_ms(args, hidden, batch, dtype, task, flops, bandwidth) / median
            rows.append([dtype_name, hidden, batch, "/".join(map(str, rates)), task, name, round(median, 3),
                         round(relative, 3), seen, "" if name == "nn.LSTM" else round(share, 4)])  # fmt: skip
            print("{} H {} B {:3} rates {:8} {:8} {:15} {:10} ms  ratio {:8}  seen {}  roofline {}".format(*rows[-1]),
                  flush=True)  # fmt: skip
    return rows


if __name__ == "__main__":
    run_command(main)
