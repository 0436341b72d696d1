"""The CPU kernels against the reference, and what else they promise: bits, memory, errors."""

from __future__ import annotations

import gc
import importlib
import weakref

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from kernel_paths import both_paths, compiled_only, options
from pairs import pairs, same_bits
from problems import assert_close, assert_every_option_varies, condition, make_problem, near_threshold, run, tensors

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import HMLSTMState, RecurrenceOptions, cpu, hm_lstm
from fairseq_hmrnn.ops.reference import hm_lstm_reference

entry = importlib.import_module("fairseq_hmrnn.ops.hm_lstm")  # the package gives its name to the function

OPTIONS = {  # of the cell, each with the values that problems have
    "slope": st.sampled_from([0.3, 1.0, 3.0]),
    "boundary": st.sampled_from(["step", "step", "bernoulli", "soft"]),
    "nested_boundaries": st.booleans(),
    "top_boundary": st.booleans(),
    "detector_grad_scale": st.sampled_from([0.0, 0.3, 1.0]),
}


@st.composite
def problems(draw, dtype=torch.float64):
    sizes = draw(st.lists(st.sampled_from([1, 2, 5, 8, 15, 17, 33, 64, 130]), min_size=1, max_size=4))
    big = sum(sizes) > 120
    return make_problem(
        seed=draw(st.integers(0, 10**6)),
        steps=draw(st.sampled_from([1, 2, 3, 5, 8] if big else [1, 2, 5, 9, 16, 40])),
        batch=draw(st.integers(1, 9)),
        sizes=sizes,
        input_size=draw(st.sampled_from([1, 7, 70])),
        options=RecurrenceOptions(**{name: draw(values) for name, values in OPTIONS.items()}),
        layer_norm=draw(st.booleans()),
        padded=draw(st.booleans()),
        masked=draw(st.booleans()),
        bias=draw(st.sampled_from([-8.0, -1.0, 0.0, 1.0, 8.0])),
        dtype=dtype,
        detector_hidden=draw(st.sampled_from([0, 0, 3, 17])),
    )


def examples(count):
    """No shrinking: a failing problem is already small, and replaying it many times is not cheap."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )


def test_every_option_is_compared_with_the_reference():
    assert_every_option_varies(OPTIONS)


def check_float64(path, problem):
    expected, expected_grads = run(hm_lstm_reference, problem)
    found, grads = run(cpu.hm_lstm_cpu, problem, path=path)
    try:
        assert_close(found, expected, 1e-10, problem.outputs)
        assert_close(grads, expected_grads, 1e-10, problem.gradients)
        with torch.no_grad():
            assert_close(tensors(cpu.hm_lstm_cpu(*problem, path=path)), expected, 1e-10, problem.outputs)
    except AssertionError:
        if condition(hm_lstm_reference, problem) < 1e5:
            raise
        assume(False)


def check_float32(path, problem):
    double = problem._replace(
        x=problem.x.detach().double().requires_grad_(),
        layers=tuple(
            type(p)(*(None if t is None else t.detach().double().requires_grad_() for t in p)) for p in problem.layers
        ),
        state=problem.state.apply(lambda t: t.detach().double().requires_grad_()),
        noise=None if problem.noise is None else problem.noise.double(),
        masks=None if problem.masks is None else tuple(m.double() for m in problem.masks),
    )
    expected, expected_grads = run(hm_lstm_reference, double)
    edge = ((expected[len(problem.layers) + 1] % 1) < 1e-5) & (expected[len(problem.layers) + 1] % 1 > 0)
    assume(not near_threshold(double, expected, 1e-4) and not bool(edge.any()))
    found, grads = run(cpu.hm_lstm_cpu, problem, path=path)
    try:
        assert_close(found, [e.float() for e in expected], 1e-4, problem.outputs)
        assert_close(grads, [g.float() for g in expected_grads], 1e-4, problem.gradients)
    except AssertionError:
        amplified = condition(hm_lstm_reference, double)
        assume(amplified < 500)
        assert_close(found, [e.float() for e in expected], max(1e-4, 1e-6 * amplified), problem.outputs)
        assert_close(grads, [g.float() for g in expected_grads], max(1e-4, 1e-6 * amplified), problem.gradients)


@compiled_only
@examples(200)
@given(problem=problems())
def test_compiled_equals_the_reference_in_float64(problem):
    check_float64("compiled", problem)


@pytest.mark.thorough
@compiled_only
@examples(40)
@given(problem=problems(dtype=torch.float32))
def test_compiled_equals_the_reference_in_float32(problem):
    check_float32("compiled", problem)


@examples(40)
@given(problem=problems())
def test_python_equals_the_reference_in_float64(problem):
    check_float64("python", problem)


@examples(10)
@given(problem=problems(dtype=torch.float32))
def test_python_equals_the_reference_in_float32(problem):
    check_float32("python", problem)


@compiled_only
@examples(60)
@given(problem=problems(dtype=torch.float32))
def test_skipping_gives_the_same_bits(problem):
    skipped = run(cpu.hm_lstm_cpu, problem, skip=True)
    dense = run(cpu.hm_lstm_cpu, problem, skip=False)
    for a, b in pairs(skipped[0] + skipped[1], dense[0] + dense[1]):
        assert torch.equal(a, b) or not bool(b.isfinite().all())


@both_paths
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
def test_sequence_equals_its_windows_and_steps(path, layer_norm):
    problem = make_problem(3, 30, 6, [33, 20, 9], options(), layer_norm=layer_norm, padded=True)
    with torch.no_grad():
        whole = cpu.hm_lstm_cpu(*problem, path=path)
        state, hidden = problem.state, []
        for first, last in ((0, 1), (1, 2), (2, 17), (17, 30)):
            window = problem._replace(x=problem.x[first:last], valid=problem.valid[first:last], state=state)
            output = cpu.hm_lstm_cpu(*window, path=path)
            state = output.state
            hidden.append(output.hidden[2])
    assert_close([torch.cat(hidden), *state.h, state.z], [whole.hidden[2], *whole.state.h, whole.state.z], 1e-10)


@both_paths
def test_graphs_do_not_share_memory(path):
    """Two forward passes before either backward, and backward twice over one graph."""
    first, second = (make_problem(seed, 12, 5, [20, 17, 9], options()) for seed in (1, 2))
    expected = [run(cpu.hm_lstm_cpu, p, path=path)[1] for p in (first, second)]
    outputs = [cpu.hm_lstm_cpu(*p, path=path) for p in (first, second)]
    for _ in range(2):
        for problem, output, grads in zip((first, second), outputs, expected):
            random = torch.Generator().manual_seed(0)
            loss = sum((t * torch.randn(t.shape, generator=random, dtype=torch.float64)).sum() for t in tensors(output))
            found = torch.autograd.grad(loss, problem.leaves(), retain_graph=True)
            assert same_bits(found, grads)


@both_paths
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
def test_outputs_die_with_their_last_reference(path, layer_norm):
    """Nothing that a call keeps for its backward pass may hold its outputs: neither would ever be freed."""
    problem = make_problem(3, 6, 1, [9, 8, 7], options(), layer_norm=layer_norm)
    gc.collect()
    gc.disable()
    try:
        output = cpu.hm_lstm_cpu(*problem, path=path)
        alive = [weakref.ref(tensor) for tensor in tensors(output)]
        sum(tensor.sum() for tensor in tensors(output)).backward()
        del output
        assert not any(reference() is not None for reference in alive)
    finally:
        gc.enable()


@both_paths
def test_gradients_of_single_outputs(path):
    """Most gradients are None in training: only the outputs in use count."""
    problem = make_problem(4, 9, 3, [9, 5, 6], options(), padded=True)
    for which in range(12):
        grads = [
            torch.autograd.grad(tensors(function())[which].pow(2).sum(), problem.leaves(), allow_unused=True)
            for function in (lambda: hm_lstm_reference(*problem), lambda: cpu.hm_lstm_cpu(*problem, path=path))
        ]
        zeros = [torch.zeros_like(leaf) for leaf in problem.leaves()]
        reference, found = ([z if g is None else g for g, z in zip(gs, zeros)] for gs in grads)
        assert_close(found, reference, 1e-10)


@both_paths
def test_only_what_needs_a_gradient_gets_one(path):
    problem = make_problem(4, 9, 3, [9, 5], options())
    frozen = problem._replace(x=problem.x.detach(), state=problem.state.detach())
    output = cpu.hm_lstm_cpu(*frozen, path=path)
    output.hidden[1].sum().backward()
    assert frozen.x.grad is None and problem.layers[0].bias.grad is not None
    with torch.no_grad():
        assert not cpu.hm_lstm_cpu(*problem, path=path).hidden[0].requires_grad


@both_paths
def test_empty_batch_and_empty_sequence(path):
    for steps, batch in ((0, 3), (4, 0), (0, 0)):
        problem = make_problem(0, steps, batch, [5, 6], options())
        output = cpu.hm_lstm_cpu(*problem, path=path)
        assert output.hidden[1].shape == (steps, batch, 6) and output.boundaries.shape == (steps, batch, 2)


@both_paths
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_stay_visible(path, value):
    """A NaN closes every boundary above it, and the steps it closes are skipped; it must show all the same."""
    problem = make_problem(7, 10, 4, [9, 5, 6], options())
    x = problem.x.detach().clone()
    x[3, 1] = value
    reference = hm_lstm_reference(*problem._replace(x=x))
    found = cpu.hm_lstm_cpu(*problem._replace(x=x), path=path)
    assert not bool(found.hidden[0][3:, 1].isfinite().all()) or bool(reference.hidden[0][3:, 1].isfinite().all())
    if value != value:
        assert bool(found.hidden[0][3:, 1].isnan().all())
    others = [0, 2, 3]
    assert_close([found.hidden[2][:, others]], [reference.hidden[2][:, others]], 1e-10)


@both_paths
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("detector_hidden", [0, 3], ids=["row", "hidden"])
@pytest.mark.parametrize("by_symbol", [False, True], ids=["x", "table"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_that_no_step_reads_reach_no_result(value, by_symbol, detector_hidden, layer_norm, path):
    """At padding, so little of it that all steps are read at once, and in the last row of a table."""
    made = make_problem(7, 10, 4, [9, 5], options(slope=0.2), layer_norm=layer_norm, detector_hidden=detector_hidden)
    tokens = torch.arange(40).remainder(5).view(10, 4)
    valid = torch.ones(10, 4, dtype=torch.bool)
    valid[8:, 0] = False
    tokens[8:, 0] = 5
    table = made.x.detach()[0].repeat(2, 1)[:7]
    table[5:] = value
    x = table if by_symbol else table[tokens]
    problem = made._replace(x=x.requires_grad_(), valid=valid)

    def reference(x, *rest):
        return hm_lstm_reference(torch.nn.functional.embedding(tokens, x) if by_symbol else x, *rest)

    expected, expected_grads = run(reference, problem)
    found, grads = run(cpu.hm_lstm_cpu, problem, path=path, tokens=tokens if by_symbol else None)
    assert all(bool(tensor.isfinite().all()) for tensor in found + grads)
    assert_close(found, expected, 1e-10)
    assert_close(grads, expected_grads, 1e-10)


@both_paths
def test_non_contiguous_arguments(path):
    problem = make_problem(8, 6, 4, [9, 5], options(), padded=True)

    def strided(t):
        return t.detach().transpose(0, 1).contiguous().transpose(0, 1)

    odd = problem._replace(x=strided(problem.x), state=problem.state.apply(strided), valid=strided(problem.valid))
    assert not odd.x.is_contiguous()
    assert_close(tensors(cpu.hm_lstm_cpu(*odd, path=path)), tensors(cpu.hm_lstm_cpu(*problem, path=path)), 0)


@both_paths
def test_second_derivatives_are_refused(path):
    problem = make_problem(0, 3, 2, [5], options())
    (grad,) = torch.autograd.grad(
        cpu.hm_lstm_cpu(*problem, path=path).hidden[0].pow(2).sum(), [problem.x], create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiated twice"):
        grad.sum().backward()


@both_paths
def test_overwritten_arguments_are_noticed(path):
    problem = make_problem(0, 3, 2, [5], options())
    output = cpu.hm_lstm_cpu(*problem, path=path)
    with torch.no_grad():
        problem.layers[0].weight_recurrent.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.hidden[0].sum().backward()


def test_backend_is_chosen_in_one_place(caplog, monkeypatch):
    problem = make_problem(0, 3, 2, [5], options())
    assert hm_lstm(*problem, backend="cpu").hidden[0].grad_fn.name().startswith("Recurrence")
    assert not hm_lstm(*problem, backend="reference").hidden[0].grad_fn.name().startswith("Recurrence")
    with pytest.raises(ValueError, match='backend="cpu" runs floating-point numbers on CPU, not torch.float32 on cuda'):
        entry.choose("cpu", torch.device("cuda"), torch.float32)
    assert entry.choose("auto", torch.device("cpu"), torch.bfloat16) is cpu.hm_lstm_cpu  # in float32
    assert entry.choose("auto", torch.device("meta"), torch.float32) is hm_lstm_reference
    with pytest.raises(ValueError, match="unknown backend"):
        HMLSTM(3, [4], backend="tpu")
    monkeypatch.setattr(cpu.kernel, "compiled", None)
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", "python")
    monkeypatch.setattr(cpu.kernel, "MISSING", "was not built")
    entry.choose.cache_clear(), cpu.kernel.warn_of_python_path.cache_clear()
    caplog.clear()
    for backend in ("auto", "cpu", "auto"):
        hm_lstm(*problem, backend=backend)
    entry.choose.cache_clear(), cpu.kernel.warn_of_python_path.cache_clear()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "kernel was not built; its Python path runs, which takes 3 to 10 times as long" in warning
    assert "setup.py build_ext --inplace" in warning
    with pytest.raises(ValueError, match="the compiled CPU kernel was not built; to build it: "):
        cpu.hm_lstm_cpu(*problem, path="compiled")


def test_state_of_zeros_and_module():
    """The module's default backend is the kernel; its numbers are the reference's."""
    torch.manual_seed(0)
    module = HMLSTM(5, [16, 8], layer_norm=True).double()
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    kernel = module(x)
    module.backend = "reference"
    assert_close(tensors(kernel), tensors(module(x, HMLSTMState.zeros(3, [16, 8], torch.float64))), 1e-10)
