"""CUDA graphs and the buffers under them, without a GPU: a recorder stands in for CUDA, the interpreter computes."""

from __future__ import annotations

import importlib
import weakref

import pytest
import torch
from pairs import pairs, same_bits
from problems import assert_close, make_problem, near_threshold, run, tensors
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_hmrnn.ops import LayerParameters, RecurrenceOptions, hm_lstm
from fairseq_hmrnn.ops.reference import hm_lstm_reference

pytest.importorskip("triton", reason="Triton is not installed")

import triton_interpreter  # noqa: E402, F401  (makes it faster)

from fairseq_hmrnn.ops.triton import graphs, hm_lstm_triton  # noqa: E402

entry = importlib.import_module("fairseq_hmrnn.ops.hm_lstm")  # the package gives its name to the function

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the graphs are real: test_triton.py")


class OnlyThisMemory(TorchDispatchMode):
    """Refuses operations on tensors that neither lie in these storages nor were made meanwhile: a graph would find
    something else there when it is replayed."""

    def __init__(self, storages):
        super().__init__()
        self.storages = set(storages)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tensors_of([*args, *(kwargs or {}).values()]):
            assert storage(tensor) in self.storages, f"{function} in a graph uses memory of its own"
        results = function(*args, **(kwargs or {}))
        self.storages.update(map(storage, tensors_of([results])))
        return results


def tensors_of(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(value)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """Graphs that are functions called again, and the workspaces that were made."""

    def __init__(self):
        self.captured, self.replayed, self.workspaces = 0, 0, []

    def capture(self, function):
        self.captured += 1
        storages = {storage(t) for w in self.workspaces for t in vars(w.buffers).values() if torch.is_tensor(t)}

        results = []  # capturing runs nothing: these are there after the first replay

        def replay():
            self.replayed += 1
            with OnlyThisMemory(storages):
                results[:] = function()

        return replay, results


@pytest.fixture
def recorder(monkeypatch):
    recorder, make = Recorder(), graphs.Workspace.__init__

    def init(workspace, *args):
        make(workspace, *args)
        recorder.workspaces.append(workspace)

    monkeypatch.setattr(graphs.Workspace, "__init__", init)
    monkeypatch.setattr(graphs, "capturable", lambda device: True)
    monkeypatch.setattr(graphs, "current_stream", lambda device: 0)
    monkeypatch.setattr(graphs, "capture", recorder.capture)
    graphs.pool.clear()
    yield recorder
    graphs.pool.clear()


@pytest.fixture
def casts(monkeypatch):
    """Autocast as it is on a GPU, to bfloat16; the weights that it makes, as weak references."""
    made, cast = [], LayerParameters.to

    def to(layer, dtype):
        found = cast(layer, dtype)
        made.extend(weakref.ref(t) for t in found if t is not None)
        return found

    monkeypatch.setattr(LayerParameters, "to", to)
    monkeypatch.setattr(entry, "autocast_dtype", lambda x, weight: torch.bfloat16)
    entry.choose.cache_clear()
    yield made
    entry.choose.cache_clear()


def problem_of(seed, **more):
    options = RecurrenceOptions(slope=0.8, detector_grad_scale=1.0)
    return make_problem(seed, 2, 2, [3, 2], options, input_size=4, dtype=torch.float32, **more)


def autocast(*problem, **keywords):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return hm_lstm(*problem, backend="triton", **keywords)


def rounded(problem, dtype):
    """The same numbers as autocast makes of them."""

    def round(t):
        return None if t is None else t.detach().to(torch.bfloat16).to(dtype).requires_grad_()

    layers = tuple(LayerParameters(*map(round, layer)) for layer in problem.layers)
    state = problem.state.apply(lambda t: t.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_())
    return problem._replace(x=round(problem.x), layers=layers, state=state)


def test_autocast_replays_its_graphs(recorder, casts):
    """Three updates with weights cast anew, of two models of one shape: one workspace, one graph of either pass, and no
    cast outlives its update."""
    problems = problem_of(1, detector_hidden=2), problem_of(2, detector_hidden=2)
    for update in range(3):  # launched, recorded, replayed
        problem = problems[update % 2]
        with torch.no_grad():
            problem.layers[0].weight_recurrent.mul_(1.1)
        found, grads = run(autocast, problem)
        low = rounded(problem, torch.bfloat16)
        expected, expected_grads = run(hm_lstm_triton, low, graphs=False)
        assert same_bits(found, expected)
        assert all(torch.equal(a, b.to(a.dtype)) for a, b in pairs(grads, expected_grads))
        del found, grads, expected, expected_grads, low
        assert casts and not any(cast() is not None for cast in casts)
    assert recorder.captured == 2 and recorder.replayed == 2 * 2
    used = [w for w in recorder.workspaces if w.use_graphs]
    assert len(used) == 1 and graphs.pool.at_rest() == used


def test_autocast_equals_the_reference(recorder, casts):
    """Outputs and gradients to bfloat16's bound (ops/README.md), from the launches and from a graph."""
    problem = problem_of(3, bias=6.0, padded=True, detector_hidden=2)
    expected, expected_grads = run(hm_lstm_reference, rounded(problem, torch.float64))
    assert not near_threshold(problem, expected, 0.01), "take another seed"
    for _ in range(2):
        found, grads = run(autocast, problem)
        assert_close([t.double() for t in found], expected, 3e-2, problem.outputs)
        assert_close([t.double() for t in grads], expected_grads, 3e-2, problem.gradients)
        del found, grads
    assert recorder.replayed == 2


@pytest.mark.parametrize(
    "layer_norm, detector_hidden",
    [pytest.param(False, 0, id="plain"), pytest.param(True, 2, id="norm-hidden", marks=pytest.mark.thorough)],
)
def test_windows_of_varying_length_share_a_graph(recorder, monkeypatch, layer_norm, detector_hidden):
    """What a longer window left in the buffers, and their steps after the last one, change nothing; and a graph that a
    shorter one recorded computes all steps."""
    monkeypatch.setattr(graphs, "LONG", 0)
    monkeypatch.setattr(graphs, "MULTIPLE", 2)
    options = RecurrenceOptions(slope=0.8, detector_grad_scale=1.0, boundary="bernoulli")
    for steps in (2, 1, 2):
        problem = make_problem(steps, steps, 2, [3, 2], options, input_size=4, dtype=torch.float32, padded=True,
                               masked=True, layer_norm=layer_norm, detector_hidden=detector_hidden)  # fmt: skip
        expected, expected_grads = run(hm_lstm_triton, problem, graphs=False)
        found, grads = run(hm_lstm_triton, problem)
        assert_close(found, expected, 1e-6, problem.outputs)
        assert_close(grads, expected_grads, 1e-6, problem.gradients)
        del found, grads
    assert recorder.captured == 2 and recorder.replayed == 2 * 2


def test_calls_alive_at_once_have_workspaces_of_their_own(recorder):
    """Two windows of one update: the second may not overwrite what the backward pass of the first needs."""
    problem = problem_of(1)
    problem = problem._replace(x=problem.x[:1].detach().requires_grad_())
    alone = torch.autograd.grad(sum(t.sum() for t in tensors(hm_lstm_triton(*problem))), problem.leaves())
    first = hm_lstm_triton(*problem)
    second = hm_lstm_triton(*problem._replace(x=2 * problem.x.detach()))
    assert len(recorder.workspaces) == 2
    found = torch.autograd.grad(sum(t.sum() for t in tensors(first)), problem.leaves())
    assert same_bits(alone, found)
    del first, second, found
    assert len(graphs.pool.at_rest()) == 2
