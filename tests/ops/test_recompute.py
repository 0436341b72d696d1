"""Sequences in chunks that the backward pass computes again."""

import functools

import pytest
import torch
from problems import assert_close, make_problem, run

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions, cpu, hm_lstm


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("chunks", [2, 3, 50])
@pytest.mark.parametrize("boundary, detector_hidden", [("step", 0), ("bernoulli", 0), ("step", 3)])
def test_chunks_are_one_sequence(backend, chunks, boundary, detector_hidden):
    options = RecurrenceOptions(boundary=boundary, detector_grad_scale=1.0)
    kinds = {"layer_norm": True, "padded": True, "masked": True, "detector_hidden": detector_hidden}
    problem = make_problem(5, 11, 3, [6, 5, 4], options, **kinds)
    whole = run(functools.partial(hm_lstm, backend=backend), problem)
    cut = run(functools.partial(hm_lstm, backend=backend, recompute_chunks=chunks), problem)
    assert_close(cut[0], whole[0], 1e-12, problem.outputs)
    assert_close(cut[1], whole[1], 1e-10, problem.gradients)


@pytest.mark.thorough
def test_chunks_of_triton_are_one_sequence():
    """As small as can be: the interpreter takes seconds for it."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton_problems import moved, run_here

    options = RecurrenceOptions(detector_grad_scale=1.0, top_boundary=True)
    problem = moved(make_problem(5, 2, 1, [3], options, input_size=2), torch.float32)
    whole = run_here(problem, hm_lstm, backend="triton")
    cut = run_here(problem, hm_lstm, backend="triton", recompute_chunks=2)
    assert_close(cut[0], whole[0], 2e-5, problem.outputs)
    assert_close(cut[1], whole[1], 2e-5, problem.gradients)


def test_only_what_is_wanted_gets_a_gradient():
    """Gradients of the final state alone, and of the weights alone, as in windows of a stream."""
    problem = make_problem(1, 8, 2, [4, 3], RecurrenceOptions())
    with_state = hm_lstm(*problem, recompute_chunks=4).state.c[0].sum()
    (found,) = torch.autograd.grad(with_state, [problem.state.c[0]])
    (expected,) = torch.autograd.grad(hm_lstm(*problem).state.c[0].sum(), [problem.state.c[0]])
    assert_close([found], [expected], 1e-12)

    module = HMLSTM(5, [4, 3], recompute_chunks=3)
    module(torch.randn(7, 2, 5)).hidden[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_backward_keeps_one_chunk(monkeypatch):
    """The whole of a sequence is never run at once with what its backward pass needs."""
    kept = []
    for call in (cpu.recurrence._CompiledCall, cpu.recurrence._PythonCall):

        def forward(self, tensors, training, original=call.forward):
            kept.append((self.split(tensors)[0].size(0), training))
            return original(self, tensors, training)

        monkeypatch.setattr(call, "forward", forward)
    module = HMLSTM(5, [4, 3], recompute_chunks=4)
    module(torch.randn(20, 2, 5)).hidden[1].sum().backward()
    assert kept == [(5, False)] * 4 + [(5, True)] * 4
    kept.clear()
    with torch.no_grad():
        module(torch.randn(20, 2, 5))
    assert kept == [(20, False)], "without gradients nothing is cut"


def test_bad_number_of_chunks():
    with pytest.raises(ValueError, match="recompute_chunks must be positive"):
        HMLSTM(5, [4], recompute_chunks=0)
