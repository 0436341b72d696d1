"""The Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter.

The interpreter runs the kernels' arithmetic, not their compiler: `test_kernels_compile` adds that. What needs a GPU
is marked `gpu`.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pairs import same_bits
from problems import assert_close, assert_every_option_varies, make_problem, varied
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions, hm_lstm
from fairseq_hmrnn.ops.reference import hm_lstm_reference

pytest.importorskip("triton", reason="Triton is not installed")

from triton_compile import CARDS, shapes  # noqa: E402
from triton_problems import GPU, PROBLEMS, check, cpu_doubles, expected_of, moved, problem_of, run_here  # noqa: E402

from fairseq_hmrnn.ops.triton import graphs, hm_lstm_triton, launch  # noqa: E402
from fairseq_hmrnn.ops.triton.buffers import Buffers, Shape  # noqa: E402

entry = importlib.import_module("fairseq_hmrnn.ops.hm_lstm")  # the package gives its name to the function

CUDA = torch.device("cuda")
QUICK = {"open", "soft-top", "one-layer-one-step", "exact-padded-masked-nested", "hidden-norm-scaled-nested-masked"}
gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a CUDA device")]


@pytest.fixture
def poisoned():
    """New memory is full of NaN: what is read must have been written."""
    torch.use_deterministic_algorithms(not GPU)
    yield
    torch.use_deterministic_algorithms(False)


def test_every_option_is_compared_with_the_reference():
    assert_every_option_varies(varied(problem_of(name).options for name in PROBLEMS))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.thorough) for n in PROBLEMS])
def test_equals_the_reference(name, poisoned):
    expected = check(problem_of(name), 2e-5)
    if "closed" in name:
        z = expected[len(PROBLEMS[name][0])]
        assert 0 < z[..., 0].mean() < 0.5, "the problem is there for its COPY steps"


@pytest.mark.thorough
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", ["open", "soft-norm", "hidden-soft-top"])
def test_half_precision_is_within_its_bound(name, dtype, tolerance):
    """The bound is stated in ops/README.md, relative to the largest element of each tensor. The seed keeps hidden units
    of detectors away from 0, where rounding would decide which way the ReLU goes."""
    check(problem_of(name, dtype, seed=2), tolerance)


@pytest.mark.thorough
@pytest.mark.parametrize("detector_hidden", [0, 3])
@pytest.mark.parametrize("name", ["norm-mostly-closed", "exact-mostly-closed-padded"])
def test_skipping_gives_the_same_bits(name, detector_hidden):
    problem = moved(problem_of(name, detector_hidden=detector_hidden), torch.float32)
    skipped, dense = run_here(problem), run_here(problem, skip=False)
    assert same_bits(skipped[0] + skipped[1], dense[0] + dense[1])


@pytest.mark.thorough
@pytest.mark.parametrize("most", [512, 0], ids=["sorted", "too-many"])
def test_more_samples_than_one_tile_holds(most, monkeypatch, poisoned):
    """Those in need come first, as long as they can be sorted."""
    monkeypatch.setattr(Shape, "block_m", 16)
    monkeypatch.setattr(launch, "SORTED_ROWS", most)
    problem = make_problem(2, 1, 18, [3, 2], RecurrenceOptions(slope=0.8), bias=-1.0, dtype=torch.float32)
    check(problem._replace(valid=torch.arange(18).expand(1, 18) % 5 > 0), 2e-5)


def test_step_by_step_equals_the_sequence():
    problem = moved(problem_of("exact-padded-masked-nested"), torch.float32)
    with torch.no_grad():
        whole, state = hm_lstm_triton(*problem), problem.state
        for t in range(problem.x.size(0)):
            now = problem._replace(x=problem.x[t : t + 1], valid=problem.valid[t : t + 1], state=state)
            output = hm_lstm_triton(*now)
            state = output.state
            assert_close([output.hidden[1][0]], [whole.hidden[1][t]], 1e-6)
    assert_close([*state.h, *state.c, state.z], [*whole.state.h, *whole.state.c, whole.state.z], 1e-6)


def test_only_what_needs_a_gradient_gets_one():
    problem = moved(problem_of("open"), torch.float32)
    frozen = problem._replace(x=problem.x.detach(), state=problem.state.detach())
    output = hm_lstm_triton(*frozen)
    output.hidden[1].sum().backward(retain_graph=True)
    once = frozen.layers[0].bias.grad.clone()
    output.hidden[1].sum().backward()
    assert torch.equal(frozen.layers[0].bias.grad, 2 * once) and frozen.x.grad is None


def test_chosen_by_name_and_refused_with_a_reason(monkeypatch, caplog):
    problem = moved(problem_of("one-layer-one-step"), torch.float32)
    with caplog.at_level("INFO"):
        entry.choose.cache_clear()
        hm_lstm(*problem, backend="triton")
    assert "HM-LSTM runs the Triton kernels" in caplog.text
    with pytest.raises(ValueError, match="float32, float16 and bfloat16, not torch.float64"):
        hm_lstm(*moved(problem, torch.float64), backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    entry.choose.cache_clear()
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        hm_lstm(*moved(problem, torch.float32, "cpu"), backend="triton")
    entry.choose.cache_clear()


class Card:
    name, major, minor, shared_memory_per_block_optin = "Some GPU", 8, 6, 99 * 1024


@pytest.mark.parametrize(
    "card, version, importable, words",
    [
        (dict(major=7, minor=5), "2.8.0", True, "Some GPU has compute capability 7.5, they need 8.0"),
        (dict(shared_memory_per_block_optin=48 * 1024), "2.10.1", True, "Some GPU has 49152 bytes of shared memory"),
        (dict(), "2.7.1+cu126", True, "they need torch 2.8 or later, this is 2.7.1+cu126"),
        (dict(), "2.8.0", False, "pip install triton"),
    ],
    ids=["old", "small", "old-torch", "no-triton"],
)
def test_auto_falls_back_with_one_line(card, version, importable, words, monkeypatch, caplog):
    """The choice alone: `choose` is asked for a device that need not be there, under a torch that need not be this."""
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Other", (Card,), card))
    if not importable:
        monkeypatch.setitem(sys.modules, "fairseq_hmrnn.ops.triton", None)
    entry.choose.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert entry.choose("auto", CUDA, torch.float32) is hm_lstm_reference
    assert len(caplog.records) == 1 and words in caplog.text
    with pytest.raises(ValueError, match="cannot run"):
        entry.choose("triton", CUDA, torch.float32)
    entry.choose.cache_clear()


def test_auto_takes_triton_on_a_gpu_that_can(monkeypatch):
    old = type("Other", (Card,), dict(major=7, minor=5))
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card if device.index == 1 else old)
    entry.choose.cache_clear()
    for index, chosen in ((1, hm_lstm_triton), (0, hm_lstm_reference)):
        assert entry.choose("auto", torch.device("cuda", index), torch.bfloat16) is chosen
    entry.choose.cache_clear()


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_a_product_fit_the_card(card, dtype, monkeypatch):
    """Two at least, and where there are more than two, those of all programs that share a multiprocessor."""
    monkeypatch.setattr(launch, "card_of", lambda device: card)
    real = dict(shapes())["bf16 layer norm"]._replace(dtype=dtype)
    for batch, size in ((1, 512), (64, 512), (64, 1024), (1000, 512)):
        launcher = launch.Launcher(Buffers(real._replace(batch=batch, sizes=(size,) * 3)))
        for _, grid, constants in (launcher.launches_forward()[0], launcher.launches_backward()[1]):
            tile = (constants["BLOCK_M"] + 64) * constants["BLOCK_K"] * (4 if dtype == torch.float32 else 2)
            fewer = not (card.capability >= 9 and batch >= 64 and dtype != torch.float32)
            tiles = constants["num_stages"] - fewer
            # Of six products of two cells at most four are there at once, in the forward and the backward pass alike.
            programs = -(-grid[0] * grid[1] * grid[2] // 6 * 4 // card.multiprocessors)
            assert 2 <= tiles <= 4 and 2 * tile <= card.shared_memory
            assert tiles == 2 or tiles * tile * programs <= card.shared_memory, (batch, size, tiles, programs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_runs_in_any_precision(dtype):
    problem = moved(make_problem(0, 3, 0, [5, 6], RecurrenceOptions(), dtype=torch.float32), dtype)
    output = hm_lstm(problem.x, problem.layers, problem.state, problem.options, backend="triton")
    assert output.hidden[1].shape == (3, 0, 6) and output.hidden[1].dtype == dtype
    assert output.boundaries.dtype == torch.float32


def test_package_does_not_import_triton():
    code = "import sys, fairseq_hmrnn, fairseq_hmrnn.modules as m, torch; m.HMLSTM(3, [4])(torch.zeros(2, 1, 3));"
    code += "print(any(name.startswith('fairseq_hmrnn.ops.triton') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


class Operations(TorchDispatchMode):
    """Counts what writes memory: on a GPU each is a launch, or several where lists are not of one kind."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in ("copy_", "clone", "zero_", "fill_", "_to_copy", "_foreach_copy_", "_foreach_zero_")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_little_is_launched_around_the_graphs_of_layers_without_padding(dtype):
    shape = dict(shapes())["bf16 layer norm"]._replace(dtype=dtype, steps=5, sizes=(64, 64), batch=64, input_size=64)
    module = HMLSTM(64, [64, 64], layer_norm=True).to(dtype)
    buffers, x = Buffers(shape._replace(device=torch.device("cpu"))), torch.randn(5, 64, 64).to(dtype)
    with torch.no_grad(), Operations() as forward:
        buffers.load_weights(module.layers())
        buffers.load_inputs(x, module.zero_state(64), RecurrenceOptions(), None, None, None)
        results = buffers.results(5)
    grads = [None] * len(results)
    grads[1], grads[-3] = torch.randn_like(results[1]), torch.randn_like(results[-3])
    with torch.no_grad(), Operations() as backward:
        buffers.load_gradients(grads, 5)
    assert forward.count <= 12 and backward.count <= 5
    assert torch.equal(buffers.x, x) and torch.equal(buffers.h[:, 0], torch.zeros(2, 64, 64))
    assert torch.equal(buffers.grad_hidden[1], grads[1].float()) and not buffers.grad_hidden[0].any()
    assert torch.equal(buffers.grad_boundaries, grads[-3].permute(2, 0, 1)) and not buffers.dh.any()


def test_pool_keeps_few():
    graphs.pool.clear()
    kept = [graphs.Workspace.__new__(graphs.Workspace) for _ in range(graphs.IDLE + 2)]
    for number, workspace in enumerate(kept):
        with graphs.pool.lock:  # a garbage collection may give back at any time
            graphs.pool.give_back(number % 3, workspace)
    assert len(graphs.pool.at_rest()) == graphs.IDLE
    assert graphs.pool.take((graphs.IDLE + 1) % 3) is kept[-1] and graphs.pool.take("other") is None
    graphs.pool.clear()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's assembler is for Linux")
def test_kernels_compile():
    """For an A100, an H100, a B200 and an RTX 3090, which need not be there: compiler, assembler, registers, shared
    memory. The last one's products are in float32, without tensor cores."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__).with_name("triton_compile.py")), "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    *kernels, total = done.stdout.splitlines()
    assert total == "16 kernels compiled, 0 bytes spilled", done.stdout
    products = [line for line in kernels if "products" in line]
    assert [line.endswith(" -") for line in products] == [False] * 6 + [True] * 2, "a product without tensor cores"


@pytest.mark.thorough
@pytest.mark.parametrize("script, arguments, lines", [("gpu", ["--tasks", "sequence"], 8), ("gpu_kernels", [], 13)])
def test_benchmarks_run_in_half_precision(import_benchmark, monkeypatch, capsys, script, arguments, lines):
    """Once, at a tiny size."""
    monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments, "--tiny", "--dtypes", "bf16"])
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = [backend.allow_tf32 for backend in backends]
    try:
        import_benchmark(script).main()
    finally:
        for backend, allowed in zip(backends, kept):
            backend.allow_tf32 = allowed
    printed = capsys.readouterr().out
    found = re.findall(r"^bf16 H .* (?:([\d.]+) ms|([\d.]+) us)", printed, re.MULTILINE)
    assert len(found) == lines and all(float(ms or us) > 0 for ms, us in found), printed


def gpu_problem(
    dtype=torch.float32, layer_norm=False, batch=64, sizes=(512, 384, 130), steps=40, detector_hidden=0, **options
):
    options = RecurrenceOptions(**options)
    problem = make_problem(
        0, steps, batch, list(sizes), options, 70, layer_norm, padded=True, detector_hidden=detector_hidden
    )
    return moved(problem, dtype)


class TestOnGPU:
    pytestmark = gpu

    @pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "norm"])
    @pytest.mark.parametrize("batch, detector_hidden", [(1, 0), (64, 0), (128, 0), (64, 32)])
    @pytest.mark.parametrize("scale", [0.0, 1.0])
    def test_real_sizes_in_float32(self, layer_norm, batch, detector_hidden, scale):
        """With soft boundaries, so that no rounding decides a boundary. Layer normalisation multiplies an error by more
        with every step: after 40 of them the reference in float32 is 3e-4 away from itself in float64."""
        torch.backends.cuda.matmul.allow_tf32 = False
        steps = 8 if layer_norm else 40
        problem = gpu_problem(
            layer_norm=layer_norm, batch=batch, detector_hidden=detector_hidden, steps=steps, boundary="soft",
            detector_grad_scale=scale,
        )  # fmt: skip
        expected, grads = expected_of(problem)
        found, found_grads = run_here(problem)
        assert_close(cpu_doubles(found), expected, 1e-4, problem.outputs)
        assert_close(cpu_doubles(found_grads), grads, 1e-3, problem.gradients)

    @pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)], ids=["fp16", "bf16"])
    @pytest.mark.parametrize("sizes", [(512, 384, 130), (512, 512, 512)], ids=["unequal", "equal"])
    def test_real_sizes_in_half_precision(self, sizes, dtype, tolerance):
        problem = gpu_problem(dtype, sizes=sizes, boundary="soft", detector_grad_scale=0.0, steps=20)
        expected, grads = expected_of(problem)
        found, found_grads = run_here(problem)
        assert_close(cpu_doubles(found), expected, tolerance, problem.outputs)
        assert_close(cpu_doubles(found_grads), grads, tolerance, problem.gradients)

    @pytest.mark.parametrize("detector_hidden", [0, 32])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_graphs_give_the_bits_of_launches(self, dtype, detector_hidden):
        """Five calls: launched, captured, replayed; two runs agree; new numbers in old memory are seen."""
        graphs.pool.clear()
        problem = gpu_problem(dtype, layer_norm=True, detector_hidden=detector_hidden, detector_grad_scale=0.0)
        for turn in range(5):
            with torch.no_grad():
                problem.x.mul_(1.1)
                problem.layers[1].bias.add_(0.01)
            problem = problem._replace(options=problem.options._replace(slope=1 + 0.1 * turn))
            launched, replayed = run_here(problem, graphs=False), run_here(problem)
            assert same_bits(launched[0] + launched[1], replayed[0] + replayed[1])

    def test_windows_of_varying_length_share_a_graph(self):
        graphs.pool.clear()
        for steps in (80, 70, 65, 78):
            problem = gpu_problem(steps=steps, detector_grad_scale=0.0)
            (launched, expected), (replayed, grads) = run_here(problem, graphs=False), run_here(problem)
            assert same_bits(launched, replayed)
            assert_close(grads, expected, 1e-4)
            del launched, replayed, grads
        (workspace,) = graphs.pool.at_rest()
        assert all(graph.replay for graph in workspace.graphs.values())

    def test_autocast_replays_its_graphs(self):
        graphs.pool.clear()
        module = HMLSTM(24, [64, 48]).cuda()
        for _ in range(4):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                output = module(torch.randn(30, 8, 24, device="cuda"))
            sum(h.float().sum() for h in output.hidden).backward()
            del output
        (workspace,) = graphs.pool.at_rest()
        assert len(workspace.graphs) == 2 and all(graph.replay for graph in workspace.graphs.values())

    @pytest.mark.parametrize("detector_hidden", [0, 32])
    def test_skipping_gives_the_same_bits(self, detector_hidden):
        problem = gpu_problem(batch=192, detector_hidden=detector_hidden)
        assert same_bits(*(sum(run_here(problem, skip=skip), []) for skip in (True, False)))

    def test_module_trains_like_the_reference(self):
        torch.manual_seed(0)
        module = HMLSTM(24, [64, 48], layer_norm=True).cuda()
        x = torch.randn(30, 8, 24, device="cuda")
        losses = {}
        for backend in ("reference", "auto"):
            module.reset_parameters(), torch.manual_seed(1)
            module.backend = backend
            torch.manual_seed(2)
            module.reset_parameters()
            optimizer = torch.optim.Adam(module.parameters(), 0.01)
            for _ in range(10):
                loss = (module(x).hidden[-1] - 0.3).pow(2).mean()
                optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses[backend] = float(loss)
        assert losses["auto"] == pytest.approx(losses["reference"], rel=0.02)
