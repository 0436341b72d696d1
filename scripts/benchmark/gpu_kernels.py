"""Where a forward and backward pass of the recurrence spends its time on a GPU: each kernel, each pass, the whole.

    python scripts/benchmark/gpu_kernels.py [--hidden 512] [--batch 64] [--dtypes bf16 fp32]
    TRITON_INTERPRET=1 python scripts/benchmark/gpu_kernels.py --tiny      # once at a tiny size, without a GPU

With layer normalisation, as the published recipes. A kernel's time is the mean over successive phases, launched one
after the other in a CUDA graph, so that it includes what a launch costs there. `nn.LSTM` is called as users call it,
which in bfloat16 compacts its weights every time, and then in a CUDA graph.
"""

from __future__ import annotations

import statistics

import torch
from gpu import DEVICE, DTYPES, GPU, hm_lstm_triton, job, milliseconds

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions
from fairseq_hmrnn.options import SIZE, whole

OPTIONS = RecurrenceOptions(detector_grad_scale=0.0)


def median_ms(function, repeats) -> float:
    times = [milliseconds(function) for _ in range(repeats + 2)]
    return statistics.median(times[2:])


def graph(function):
    """What replays the function as a CUDA graph; the function itself without a GPU."""
    function()
    if not GPU:
        return function
    from fairseq_hmrnn.ops.triton.graphs import capture

    torch.cuda.synchronize()
    return capture(function)[0]


def loaded(model, x, layers):
    """A launcher over buffers that hold a call."""
    from fairseq_hmrnn.ops.triton.buffers import Buffers, Shape
    from fairseq_hmrnn.ops.triton.launch import Launcher

    batch, hidden = x.size(1), model.hidden_sizes[0]
    shape = Shape(
        *x.shape,
        sizes=(hidden,) * layers,
        dtype=x.dtype,
        device=x.device,
        layer_norm=True,
        masked=False,
        training=True,
        boundary=OPTIONS.boundary,
        nested_boundaries=False,
        top_boundary=False,
        detector_sends_gradients=False,
        skip=True,
    )
    buffers = Buffers(shape)
    with torch.no_grad():
        buffers.load_weights(model.layers())
        buffers.load_inputs(x, model.zero_state(batch), OPTIONS, None, None, None)
        buffers.grad_hidden.normal_()
    return Launcher(buffers)


def show(args, name, what, function, times=1, unit="ms") -> None:
    found = median_ms(function, args.repeats) * (1e3 if unit == "us" else 1) / times
    print(f"{name} H {args.hidden} B {args.batch} {what:36} {found:8.3f} {unit}", flush=True)


def report_kernels(args, name, model, x) -> None:
    launcher = loaded(model, x, args.layers)
    launcher.forward(), launcher.backward()
    middle = launcher.last_phase // 2
    phases = range(middle // 2, middle // 2 + middle + 1)
    for kernel, grid, arguments in launcher.launches_forward() + launcher.launches_backward():

        def launch(kernel=kernel, grid=grid, arguments=arguments):
            for phase in phases:
                kernel[grid](phase=phase, **arguments)

        show(args, name, f"{kernel.__name__}, a launch", graph(launch), len(phases), "us")
    show(args, name, "forward pass", graph(launcher.forward))
    show(args, name, "backward pass", graph(launcher.backward))
    gradients = graph(lambda: [launcher.layer_gradients(index) for index in range(args.layers)])
    show(args, name, "gradients of the weights", gradients)


def report_steps(args, name, model, x) -> None:
    lstm = torch.nn.LSTM(args.input_size, args.hidden, args.layers).to(DEVICE, x.dtype)

    def hm_lstm(x, state=None):
        output = hm_lstm_triton(x, model.layers(), model.zero_state(args.batch), OPTIONS)
        return output.hidden[-1], output.state

    train, infer = (job(model, hm_lstm, x, task) for task in ("train", "sequence"))
    train_lstm, infer_lstm = (job(lstm, lstm, x, task) for task in ("train", "sequence"))
    for function in (train, infer):  # launched; then captured; then replayed
        function()
    show(args, name, "forward and backward", train)
    show(args, name, "nn.LSTM, forward and backward", train_lstm)
    show(args, name, "nn.LSTM in a graph, both passes", graph(train_lstm))
    show(args, name, "without gradients", infer)
    show(args, name, "nn.LSTM, without gradients", infer_lstm)
    show(args, name, "nn.LSTM in a graph, no gradients", graph(infer_lstm))


def main():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--layers", type=whole(1, 100), default=3)
    parser.add_argument("--hidden", type=SIZE, default=512)
    parser.add_argument("--input-size", type=SIZE, default=128)
    parser.add_argument("--batch", type=kinds.BATCH_SIZE, default=64)
    parser.add_argument("--steps", type=kinds.STEPS, default=100)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(DTYPES))
    parser.add_argument("--repeats", type=kinds.COUNT, default=20)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.layers, args.hidden, args.input_size = 2, 8, 4
        args.batch = args.steps = args.repeats = 1
    if hm_lstm_triton is None:
        raise UserError("there is no Triton: pip install triton")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in args.dtypes:
        torch.manual_seed(0)
        model = HMLSTM(args.input_size, [args.hidden] * args.layers, layer_norm=True).to(DEVICE, DTYPES[name])
        x = torch.randn(args.steps, args.batch, args.input_size, device=DEVICE).to(DTYPES[name])
        report_kernels(args, name, model, x)
        report_steps(args, name, model, x)


if __name__ == "__main__":
    run_command(main)
