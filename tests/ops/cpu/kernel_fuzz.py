"""Random calls of the compiled kernel, compared with the reference; scripts/sanitize.sh runs them under a sanitizer.

usage: kernel_fuzz.py [--seed N] [--cases N] [--extension FILE]
Every case prints its number first, and `--seed CASE --cases 1` repeats it alone.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import random
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[1])]
NAME = "fairseq_hmrnn.ops.cpu._kernel"
SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 65, 130]


def load_extension(path: str) -> None:
    """Let the package find its extension in this file. Call before it is imported."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])


def with_threads(count: int, function):
    """The result with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


def check_equal(found, expected, what: str) -> None:
    """To the bit, but where the expected numbers overflow."""
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected)):
        assert torch.equal(a, b) or not bool(b.isfinite().all()), f"{what}: tensor {index} differs"


def check_written(found, expected) -> None:
    """No NaN, with which unwritten memory begins, where the reference has none."""
    for index, (a, b) in enumerate(zip(found, expected)):
        assert bool(a.isfinite().all()) or not float(b.detach().abs().max()) < 1e30, f"tensor {index} is not finite"


def random_options(choose: random.Random, low: bool):
    from fairseq_hmrnn.ops import RecurrenceOptions

    return RecurrenceOptions(
        slope=choose.choice([0.3, 0.8, 5.0]),
        boundary=choose.choice(["step", "step", "bernoulli", "soft"]),
        nested_boundaries=choose.random() < 0.3,
        top_boundary=choose.random() < 0.3,
        detector_grad_scale=choose.choice([0.0, 1.0]),
        bfloat16_products=low,
    )


def random_problem(choose: random.Random, dtype, low: bool):
    from problems import make_problem

    sizes = choose.choices(SIZES, k=choose.randint(1, 4))
    large = choose.random() < 0.5  # enough for a team of threads
    if large:
        sizes[0] = 130
    return make_problem(
        seed=choose.randrange(10**6),
        steps=choose.choice([1, 2, 3, 7]),
        batch=choose.choice([3, 9, 21]) if large else choose.randint(1, 9),
        sizes=sizes,
        options=random_options(choose, low),
        input_size=choose.choice([1, 7, 33, 70]),
        layer_norm=choose.random() < 0.5,
        padded=choose.random() < 0.5,
        masked=choose.random() < 0.4,
        bias=choose.choice([-6.0, -1.0, 0.0, 6.0]),
        dtype=dtype,
        detector_hidden=choose.choice([0, 0, 1, 6, 70]),
    )


def random_precision(choose: random.Random):
    """A dtype, and whether products are of bfloat16 operands."""
    return choose.choice([(torch.float64, False)] * 2 + [(torch.float32, False), (torch.float32, True)])


def recurrence(choose: random.Random, threads: int) -> None:
    """Forward and backward: skipped as not skipped, of one thread as of many, and float64 as the reference."""
    from problems import assert_close, condition, near_threshold, run, tensors

    from fairseq_hmrnn.ops import cpu
    from fairseq_hmrnn.ops.reference import hm_lstm_reference

    dtype, low = random_precision(choose)
    problem = random_problem(choose, dtype, low)
    print(" ", problem, flush=True)
    outputs, grads = with_threads(threads, lambda: run(cpu.hm_lstm_cpu, problem))
    for other, skip in ((1, True), (threads, False)):
        dense = with_threads(other, lambda skip=skip: run(cpu.hm_lstm_cpu, problem, skip=skip))
        check_equal(outputs + grads, dense[0] + dense[1], f"{other} threads, skip={skip}")
    with torch.no_grad():
        inference = with_threads(threads, lambda: tensors(cpu.hm_lstm_cpu(*problem)))
    expected, expected_grads = run(hm_lstm_reference, problem)
    check_written(outputs + inference, expected * 2)
    check_written(grads, expected_grads)
    if dtype != torch.float64 or near_threshold(problem, expected, 1e-9):
        return
    try:
        assert_close(inference, expected, 1e-9, problem.outputs)
        assert_close(outputs, expected, 1e-9, problem.outputs)
        assert_close(grads, expected_grads, 1e-8, problem.gradients)
    except AssertionError:
        if condition(hm_lstm_reference, problem) < 1e5:
            raise


def symbols(choose: random.Random, threads: int) -> None:
    """Layer 1's input as rows of a table, as the same rows looked up by torch."""
    from problems import assert_close

    from fairseq_hmrnn.ops import cpu

    dtype, low = random_precision(choose)
    problem = random_problem(choose, dtype, low)
    steps, batch, width = problem.x.shape
    table = torch.randn(choose.choice([1, 5, 60]), width, dtype=dtype, requires_grad=True)
    tokens = torch.randint(table.size(0), (steps, batch))
    rest = problem[1:]
    print(" ", problem, "symbols", flush=True)

    def run(x, tokens):
        output = cpu.hm_lstm_cpu(x, *rest, tokens=tokens)
        loss = sum((h * torch.linspace(-1, 1, h.numel(), dtype=dtype).view_as(h)).sum() for h in output.hidden)
        leaves = [table, *(t for layer in problem.layers for t in layer if t is not None)]
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return list(output.hidden), [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves)]

    found, grads = with_threads(threads, lambda: run(table, tokens))
    expected, expected_grads = with_threads(threads, lambda: run(table[tokens], None))
    check_written(found + grads, expected + expected_grads)
    if dtype == torch.float64 and all(bool(t.isfinite().all()) for t in expected_grads):
        assert_close(found, expected, 1e-9)
        assert_close(grads, expected_grads, 1e-4 if problem.layers[0].layer_norm else 1e-8)


def generation(choose: random.Random, threads: int) -> None:
    """Steps of a language model: one call for all as one for each, one thread as many, and choices from the limits."""
    from fairseq_hmrnn.modules import LayerOutput
    from fairseq_hmrnn.ops import cpu
    from fairseq_hmrnn.ops.cpu.generation import Generation, OutputParameters, SymbolChoice

    dtype, low = random_precision(choose)
    problem = random_problem(choose, dtype, low)
    if problem.options.boundary == "bernoulli":
        problem = problem._replace(options=problem.options._replace(boundary="step"))
    sizes, batch = [layer.hidden_size for layer in problem.layers], problem.x.size(1)
    read, written, width, pad = choose.choice([70, 200]), choose.choice([1, 33, 70]), choose.choice([1, 9, 65]), 1
    torch.manual_seed(choose.randrange(10**6))
    parameters = OutputParameters(
        LayerOutput(sizes, width).to(dtype).layer_weights(),
        torch.randn(written, width, dtype=dtype),
        torch.randn(written, dtype=dtype),
    )
    embedding = torch.randn(read, problem.x.size(2), dtype=dtype)
    table = choose.random() < 0.5
    print(" ", problem, f"{written} of {read} symbols, features {width}, table {table}", flush=True)
    tokens = torch.randint(read, (problem.x.size(0), batch))
    choices = choose.randint(1, 4)
    noise = -torch.empty(choices, batch, written).exponential_().log() if choose.random() < 0.7 else None
    never = torch.rand(written) < 0.2
    choice = SymbolChoice(0.7, choose.choice([0, 1, 5]), choose.choice([1.0, 0.5]), never, noise)

    packed = cpu.PackedLayers(problem.layers, "compiled", low)
    begun = Generation(packed, problem.options, embedding, table, parameters, pad)
    start = begun.begin(problem.state.detach())

    def run():
        whole, stepwise = copy.deepcopy(start), copy.deepcopy(start)
        found = begun.run(whole, tokens)
        check_written(found[:4], [torch.zeros(1)] * 4)
        steps = [begun.run(stepwise, row.unsqueeze(0)) for row in tokens]
        check_equal([torch.cat([step[i] for step in steps]) for i in range(4)], found[:4], "one call a step")
        chosen = begun.sample(whole, tokens, choices, choice)
        assert bool(((chosen.chosen >= 0) & (chosen.chosen < written)).all())
        return [*found[:4], *chosen]

    many, one = with_threads(threads, run), with_threads(1, run)
    assert len(many) == len(one)
    check_equal(many, one, "one thread")


def large_products(choose: random.Random, threads: int) -> None:
    from fairseq_hmrnn.ops import cpu

    dtype, low = random_precision(choose)
    rows, columns, depth = (choose.choice([1, 3, 6, 7, 63, 65, 97, 300, 515]) for _ in range(3))
    depth = choose.choice([0, depth, depth, depth + 600])
    a, b = torch.randn(rows, depth, dtype=dtype), torch.randn(depth, columns, dtype=dtype)
    over = choose.random() < 0.5, choose.random() < 0.5
    print(" ", rows, columns, depth, dtype, low, over, flush=True)
    left, right = a.t().contiguous() if over[0] else a, b if over[1] else b.t().contiguous()
    given = left, over[0], right, over[1], low
    many, one = (with_threads(count, lambda: cpu.kernel.compiled.multiply(*given)) for count in (threads, 1))
    check_equal([many], [one], "one thread")
    exact = (a.bfloat16().double() @ b.bfloat16().double()) if low else a.double() @ b.double()
    assert float((many - exact).abs().max()) < (1e-10 if dtype == torch.float64 else 1e-5 * (1 + depth)), "product"


def output_module(choose: random.Random, threads: int) -> None:
    """The gated output module and its gradients, as torch computes them, where some h stay as they are."""
    from problems import assert_close

    from fairseq_hmrnn.modules import LayerOutput

    dtype, low = random_precision(choose)
    sizes, width = choose.choices(SIZES, k=choose.randint(1, 4)), choose.choice(SIZES)
    steps, batch = choose.choice([1, 2, 9]), choose.randint(1, 9)
    print(" ", sizes, width, (steps, batch), dtype, low, flush=True)
    torch.manual_seed(choose.randrange(10**6))
    module = LayerOutput(sizes, width, bfloat16_products=low).to(dtype)
    changed = torch.rand(steps, batch, len(sizes)) < choose.random()
    hidden = [torch.randn(steps, batch, size, dtype=dtype) for size in sizes]
    for layer, h in enumerate(hidden):
        for t in range(1, steps):
            h[t] = torch.where(changed[t, :, layer, None], h[t], h[t - 1])
        h.requires_grad_()
    weight = torch.randn(steps, batch, width, dtype=dtype)
    leaves = [*hidden, *module.parameters()]

    def run(function):
        output = function()
        return [output, *torch.autograd.grad((output * weight).sum(), leaves)]

    found = with_threads(threads, lambda: run(lambda: module.over_sequence(hidden, changed)))
    check_equal(found, with_threads(1, lambda: run(lambda: module.over_sequence(hidden, changed))), "one thread")
    if not low:
        assert_close(found, run(lambda: module(hidden)), 1e-10 if dtype == torch.float64 else 1e-3)


KINDS = [recurrence, recurrence, recurrence, symbols, generation, generation, large_products, output_module]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the first case; the next ones count up (default 1)")
    parser.add_argument("--cases", type=int, default=60, help="how many (default 60)")
    parser.add_argument("--extension", help="the compiled extension to run (default: the package's own)")
    args = parser.parse_args()
    if args.extension:
        load_extension(args.extension)
    from fairseq_hmrnn.ops import cpu

    if cpu.kernel.compiled is None:
        sys.exit(f"the compiled kernel cannot be loaded: {cpu.kernel.MISSING}")
    cpu.kernel.compiled.hold_threads(True)
    if hasattr(torch.utils, "deterministic"):  # torch.empty begins as NaN
        torch.use_deterministic_algorithms(True)
    for seed in range(args.seed, args.seed + args.cases):
        choose = random.Random(seed)
        torch.manual_seed(seed)
        kind, threads = choose.choice(KINDS), choose.choice([2, 3, 4])
        print(f"case {seed}: {kind.__name__}, {threads} threads", flush=True)
        kind(choose, threads)
    print(f"{args.cases} cases: all well")


if __name__ == "__main__":
    main()
