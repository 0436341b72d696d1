"""The compiled kernel's guarantees about threads, processes and memory."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pairs import pairs, same_bits
from problems import hidden_is_shared, make_problem, run, tensors

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions, cpu

pytestmark = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
reads_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
OPTIONS = RecurrenceOptions(slope=0.8, detector_grad_scale=1.0)


def test_equal_runs_give_equal_bits():
    problem = make_problem(2, 20, 9, [130, 64], OPTIONS, layer_norm=True, dtype=torch.float32, detector_hidden=5)
    first, second = run(cpu.hm_lstm_cpu, problem), run(cpu.hm_lstm_cpu, problem)
    assert same_bits(first[0] + first[1], second[0] + second[1])


@pytest.mark.parametrize("detector_hidden", [0, 6, 60], ids=["row", "hidden", "hidden_shared"])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
def test_any_number_of_threads(layer_norm, detector_hidden):
    """More threads than cores, too: waiting gives the core away. With a graph and without one threads share 60 hidden
    units without layer norm too."""
    problem = make_problem(
        2, 12, 9, [300, 200, 130], OPTIONS, layer_norm=layer_norm, padded=True, detector_hidden=detector_hidden
    )
    assert all(hidden_is_shared(layer, batch=9) == (detector_hidden == 60) for layer in problem.layers[:-1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(cpu.hm_lstm_cpu, problem)
        for count in (1, 2, 3, 5, 7):
            torch.set_num_threads(count)
            found = run(cpu.hm_lstm_cpu, problem)
            assert same_bits(found[0] + found[1], expected[0] + expected[1])
            with torch.no_grad():
                assert same_bits(tensors(cpu.hm_lstm_cpu(*problem)), expected[0])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("boundary", ["step", "bernoulli"])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("detector_hidden", [0, 6], ids=["row", "hidden"])
def test_threads_that_own_samples_change_no_bit(detector_hidden, layer_norm, boundary):
    """Without a graph, and with 16 samples for each of them."""
    options = OPTIONS._replace(boundary=boundary)
    sizes, kind = [130, 64, 33], {"layer_norm": layer_norm, "padded": True, "masked": True, "dtype": torch.float32}
    kind["detector_hidden"] = detector_hidden
    problem, threads, found = make_problem(3, 21, 50, sizes, options, **kind), torch.get_num_threads(), []
    packed = cpu.PackedLayers(problem.layers)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                output = cpu.hm_lstm_cpu(*problem)
                again = packed(problem.x, problem.state, OPTIONS, problem.valid)  # which draw nothing
            found.append([*output.hidden, *output[1:3], *output.state.h, *output.state.c, output.state.z, *again[1:3]])
    finally:
        torch.set_num_threads(threads)
    assert 0 < found[0][3].mean() < 0.9
    for other in found[1:]:
        assert same_bits(found[0], other)


def test_threads_of_python_may_call_at_once():
    problem = make_problem(2, 12, 9, [130, 64], OPTIONS)
    expected = run(cpu.hm_lstm_cpu, problem)

    def differing():
        """How many tensors are not as expected, over several calls."""
        runs = [run(cpu.hm_lstm_cpu, problem) for _ in range(5)]
        both = [pair for found in runs for pair in pairs(found[0] + found[1], expected[0] + expected[1])]
        return sum(not torch.equal(a, b) for a, b in both)

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(differing) for _ in range(3)]
    assert [call.result() for call in calls] == [0, 0, 0]  # raises what was raised in a thread


class Encoded(torch.utils.data.Dataset):
    """Item i is a model's output on the i-th input."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.model(self.inputs[index]).hidden[-1], torch.get_num_threads()


def test_data_loader_workers_run_it_alone():
    """Forked after a team of threads has run here: those threads are not there in the workers."""
    model, inputs = HMLSTM(64, [128, 128]), torch.randn(4, 20, 16, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = [model(x).hidden[-1].detach() for x in inputs]
        loader = torch.utils.data.DataLoader(Encoded(model, inputs), batch_size=None, num_workers=2, timeout=600)
        for expected, (found, threads) in pairs(here, loader):
            assert threads == 1
            assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@reads_proc
def test_no_thread_beyond_omp_num_threads():
    code = (
        "import os, torch\n"
        "def runtimes(): return {l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'iomp' in l}\n"
        "from fairseq import checkpoint_utils, criterions, models, tasks\n"
        "before = runtimes()\n"
        "from fairseq_hmrnn.modules import HMLSTM\n"
        "m = HMLSTM(64, [256, 256])\n"
        "for _ in range(2): m(torch.randn(20, 16, 64)).hidden[1].sum().backward()\n"
        "print(len(os.listdir('/proc/self/task')), len(runtimes() - before))\n"
    )
    counts = {}
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        counts[threads], new_runtimes = map(int, done.stdout.split()[-2:])
        assert new_runtimes == 0, "the kernel brings an OpenMP runtime of its own"
    assert counts["2"] - counts["1"] <= 3  # one more in each pool: forward, autograd's thread


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


@reads_proc
def test_no_leak_over_1000_calls():
    problem = make_problem(2, 5, 3, [17, 9], OPTIONS)
    for _ in range(50):
        run(cpu.hm_lstm_cpu, problem)
    gc.collect()
    before, in_use = resident_bytes(), cpu.kernel.compiled.buffer_bytes()[0]
    for _ in range(1000):
        run(cpu.hm_lstm_cpu, problem)
    gc.collect()
    assert resident_bytes() - before < 20 << 20
    assert cpu.kernel.compiled.buffer_bytes()[0] == in_use
    cpu.kernel.compiled.clear_buffers()
    assert cpu.kernel.compiled.buffer_bytes()[1] == 0


def test_kept_buffers_stay_within_their_limit():
    """Calls of many lengths, whose buffers fit the next call only in part, one inside the other: no more is kept than a
    quarter above the most in use at once, which the first two need; and no buffer is handed out twice."""
    lengths = [80, 7, 60, 13, 45, 3, 22, 1, 34]
    problems = [make_problem(2, steps, 9, [64, 33], OPTIONS, layer_norm=True) for steps in lengths]
    expected = [run(cpu.hm_lstm_cpu, problem) for problem in problems]

    def two_calls(first, second):
        outer = tensors(cpu.hm_lstm_cpu(*problems[first]))
        found = run(cpu.hm_lstm_cpu, problems[second])
        assert same_bits(outer, expected[first][0])
        assert same_bits(found[0] + found[1], expected[second][0] + expected[second][1])

    gc.collect()
    cpu.kernel.compiled.clear_buffers()
    two_calls(0, 0)
    most = sum(cpu.kernel.compiled.buffer_bytes())
    for number in range(60):
        two_calls(number % len(lengths), number * 5 % 7)
        assert sum(cpu.kernel.compiled.buffer_bytes()) <= 1.25 * most


def backward_of_steps(module, steps):
    """Seconds of this process for each step of a backward pass through so many calls."""
    cpu.kernel.compiled.clear_buffers()
    state = module.zero_state(1)
    for x in torch.ones(steps, 1, module.input_size):
        state = module.step(x, state).state
    began = time.process_time()
    state.h[0].sum().backward()
    return (time.process_time() - began) / steps


def test_a_step_takes_the_same_time_however_many_there_are():
    """Each leaves some ten buffers, through which none of the others may search."""
    module = HMLSTM(2, [3, 2])
    few, many = (min(backward_of_steps(module, steps) for _ in range(3)) for steps in (200, 1600))
    assert many < 3 * few
