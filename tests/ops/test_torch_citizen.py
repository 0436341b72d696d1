"""The recurrence among torch's tools: checkpoint, saved-tensor hooks, trace, export, compile."""

from __future__ import annotations

import importlib
import io

import pytest
import torch
from pairs import pairs
from problems import assert_close, make_problem, run, tensors
from small_module import SIZES, given, make

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import (
    HMLSTMState,
    PackedLayers,
    RecurrenceOptions,
    cpu,
    hm_lstm,
    library,
)

entry = importlib.import_module("fairseq_hmrnn.ops.hm_lstm")  # the package gives its name to the function

needs_operators = pytest.mark.skipif(entry.captured is None, reason="this torch has no custom operators")


def gradients(function, module, *inputs):
    """Of x and every parameter."""
    x = inputs[0].clone().requires_grad_()
    output = function(x, *inputs[1:])
    hidden, probs, state = output[0], output[2], output[3]
    loss = sum(h.pow(2).sum() for h in hidden) + probs.sum() + state[1][-1].sum()
    return torch.autograd.grad(loss, [x, *module.parameters()])


def flat(output):
    if hasattr(output, "hidden"):
        return tensors(output)
    hidden, boundaries, probs, (h, c, z) = output
    return [*hidden, boundaries, probs, *h, *c, z]


def assert_equal(found, expected):
    """The same bits. Without the compiled kernel to rounding: torch's products depend on where their operands lie."""
    for a, b in pairs(found, expected):
        assert a.dtype == b.dtype
        if cpu.kernel.compiled is None:
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)


# Values saved for the backward pass


def kept_bytes(module, x, state, **hooks):
    """The tensors that saved-tensor hooks see during a forward pass, each storage once, the arguments aside."""
    arguments = {t.data_ptr() for t in (x, *state.h, *state.c, state.z, *module.parameters())}
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in arguments:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x, state)
    return sum(seen.values())


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_checkpoint_trains_it_to_the_same_gradients(backend, layer_norm):
    module, (x, state) = make(layer_norm=layer_norm, backend=backend), given()

    def checkpointed(x, state):
        return torch.utils.checkpoint.checkpoint(module, x, state, use_reentrant=False)

    assert_equal(gradients(checkpointed, module, x, state), gradients(module, module, x, state))


@pytest.mark.skipif(cpu.kernel.compiled is None, reason="the kernel was not built: Python keeps an object")
def test_hooks_see_what_is_kept_and_may_move_it():
    module, (x, state) = make(), given(steps=40, batch=8)
    gates = 40 * 8 * 4 * SIZES[0] * 4  # of layer 1, which never copies: the least that any backward pass needs
    hidden = 40 * 8 * sum(SIZES) * 4
    assert kept_bytes(module, x, state) >= gates + hidden
    expected = gradients(module, module, x, state)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
        assert_equal(gradients(module, module, x, state), expected)


def test_what_is_kept_is_gone_within_checkpoint():
    module, (x, state) = make(), given(steps=40, batch=8)

    def checkpointed(x, state):
        return torch.utils.checkpoint.checkpoint(module, x, state, use_reentrant=False)

    checkpointed.parameters = module.parameters
    assert kept_bytes(checkpointed, x, state) < kept_bytes(module, x, state) / 20


@pytest.mark.parametrize("options", [{"backend": "reference"}, {}, {"recompute_chunks": 2}])
def test_a_second_derivative_is_never_left_out_in_silence(options):
    """Where the loss is linear in the output, nothing that comes in requires a gradient."""
    torch.manual_seed(0)
    model, x = HMLSTM(3, [4, 3], **options).double(), torch.randn(5, 2, 3).double().requires_grad_()
    loss = model(x).hidden[-1].sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    assert grad.requires_grad
    found = []
    for second in (
        lambda: grad.pow(2).sum().backward(retain_graph=True),
        lambda: torch.autograd.grad(loss + grad.pow(2).sum(), [model.weight_recurrent[0]], retain_graph=True)[0],
        lambda: torch.autograd.functional.hessian(lambda x: model(x).hidden[-1].sum(), x),
    ):
        if options.get("backend") == "reference":
            found.append(second())
        else:
            with pytest.raises(RuntimeError, match="differentiated twice: .*backend='reference'"):
                second()
    if found:
        assert all(tensor.any() for tensor in (model.weight_recurrent[0].grad, *found[1:]))


def test_a_graph_that_is_kept_can_be_walked_twice():
    module, (x, state) = make(), given()
    loss = module(x, state).hidden[-1].pow(2).sum()
    first = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    assert_equal(torch.autograd.grad(loss, list(module.parameters())), first)


# The operator

KINDS = {
    "plain": dict(),
    "normalised": dict(layer_norm=True, padded=True, masked=True),
    "sampled": dict(options=RecurrenceOptions(1.5, "bernoulli", True, True, 0.5), padded=True),
    "float32": dict(dtype=torch.float32, masked=True),
    "bfloat16": dict(dtype=torch.bfloat16, layer_norm=True, padded=True),
    "bfloat16 products": dict(options=RecurrenceOptions(bfloat16_products=True), dtype=torch.float32),
    "no steps": dict(steps=0),
    "one layer": dict(sizes=[5], layer_norm=True),
}


def problem_of(kind, **changes):
    usual = {"steps": 6, "batch": 3, "sizes": SIZES, "options": RecurrenceOptions()}
    return make_problem(3, **{**usual, **kind, **changes})


def operator_arguments(problem):
    return library.Arguments.of(*problem, "auto", 1).flat


@needs_operators
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_computes_what_an_eager_call_does(kind, backend):
    problem, chunked = problem_of(KINDS[kind]), {"backend": backend, "recompute_chunks": 2}
    expected = run(hm_lstm, problem, backend=backend)
    found = run(entry.captured, problem, backend=backend, recompute_chunks=1)
    for a, b in pairs(found, expected):
        assert_equal(a, b)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}[problem.x.dtype]
    for a, b in pairs(run(entry.captured, problem, **chunked), expected):
        assert_close(a, b, tolerance)  # in pieces sums are rounded in another order


@needs_operators
@pytest.mark.parametrize("kind", ["plain", "normalised", "sampled"])
def test_opcheck(kind):
    problem = problem_of(KINDS[kind], dtype=torch.float32, steps=3)
    arguments = operator_arguments(problem)
    torch.library.opcheck(torch.ops.fairseq_hmrnn.recurrence.default, arguments)
    grads = [t.detach() for t in torch.ops.fairseq_hmrnn.recurrence(*arguments)]
    needed = [True] * len(library.Arguments(*arguments).leaves)
    needed[1] = False
    constant = torch.utils._pytree.tree_map(lambda t: t.detach() if torch.is_tensor(t) else t, arguments)
    torch.library.opcheck(
        torch.ops.fairseq_hmrnn.recurrence_backward.default, (grads, needed, *constant), test_utils="test_faketensor"
    )


@needs_operators
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("detector_hidden", [0, 2])
@pytest.mark.parametrize("top_boundary", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_the_operator_knows_its_layers_by_their_number(num_layers, top_boundary, detector_hidden, layer_norm):
    """It is given one flat list without those that are absent."""
    options = RecurrenceOptions(top_boundary=top_boundary)
    problem = make_problem(
        0, 1, 1, [2, 3, 1, 2][:num_layers], options, layer_norm=layer_norm, detector_hidden=detector_hidden
    )
    weights = [tensor for layer in problem.layers for tensor in layer if tensor is not None]
    found = library._layers(weights, num_layers, options)
    assert all(a is b for layer, same in pairs(problem.layers, found) for a, b in pairs(layer, same))


# Recorders


@pytest.mark.parametrize("operators", [pytest.param(True, marks=needs_operators), False])
@pytest.mark.parametrize("with_graph", [True, False])
def test_a_trace_computes_what_the_module_does(operators, with_graph, monkeypatch):
    """Without operators, as before torch 2.4, for the steps that it was traced with."""
    if not operators:
        monkeypatch.setattr(entry, "captured", None)
    exact = operators and cpu.kernel.compiled is not None  # see assert_equal
    module = make(layer_norm=True, detector_grad_scale=0.5, detector_hidden=3 if with_graph else 0)
    tolerance = 0 if exact else 1e-5
    length = 7 if operators else 2
    with torch.set_grad_enabled(with_graph):
        traced = torch.jit.trace(module, given(length), strict=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        loaded = torch.jit.load(io.BytesIO(file.getvalue()))
        for steps, batch in [(7, 2), (0, 2), (1, 1), (12, 5)] if operators else [(2, 2), (2, 5)]:
            inputs = given(steps, batch, seed=2)
            expected = flat(module(*inputs))
            assert_close(flat(traced(*inputs)), expected, tolerance)
            assert_close(flat(loaded(*inputs)), expected, tolerance)
    inputs = given(length, seed=3)
    assert_close(gradients(traced, module, *inputs), gradients(module, module, *inputs), tolerance)


@needs_operators
def test_a_trace_from_no_state_and_with_padding():
    class Padded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrence = make(boundary="bernoulli").eval()

        def forward(self, x, valid):
            return self.recurrence(x, None, valid).hidden

    module = Padded()
    traced = torch.jit.trace(module, (given()[0], torch.rand(7, 2) > 0.3))
    x, valid = torch.randn(9, 3, 4), torch.rand(9, 3) > 0.5
    assert_equal(traced(x, valid), module(x, valid))


@needs_operators
@pytest.mark.parametrize("strict", [True, False])
def test_export_of_any_length_and_batch(strict):
    module = make(layer_norm=True, detector_hidden=3 if strict else 0).eval()
    steps, batch = torch.export.Dim("steps"), torch.export.Dim("batch")
    row = {0: batch}
    shapes = ({0: steps, 1: batch}, HMLSTMState((row,) * 3, (row,) * 3, row))
    program = torch.export.export(module, given(), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    for shape in [(7, 2), (12, 5)]:
        inputs = given(*shape, seed=2)
        assert_equal(tensors(program.module()(*inputs)), tensors(module(*inputs)))
        assert_equal(tensors(loaded(*inputs)), tensors(module(*inputs)))


@pytest.mark.thorough
@needs_operators
def test_compile_makes_one_graph_that_trains():
    from torch._dynamo import testing

    torch._dynamo.reset()
    counter = testing.CompileCounterWithBackend("aot_eager")
    module = make(layer_norm=True)
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for steps, batch in [(7, 2), (9, 3), (11, 4), (8, 5)]:
        inputs = given(steps, batch)
        assert_equal(gradients(compiled, module, *inputs), gradients(module, module, *inputs))
    assert counter.frame_count == 2  # of these sizes, then of any
    slopes = [torch.tensor(1.0 + step) for step in range(4)]
    for slope in slopes:
        found, expected = compiled(*inputs, slope=slope), module(*inputs, slope=float(slope))
        assert_equal(found.boundary_probs, expected.boundary_probs)
    assert counter.frame_count == 3  # a tensor instead of a number
    with pytest.raises(ValueError, match="slope of the hard sigmoid must be a positive"):
        compiled(*inputs, slope=torch.tensor(-1.0))


@needs_operators
def test_a_compiled_sequence_of_no_steps_has_gradients_of_zero():
    """Only the weights ask for gradients, and no result depends on them."""
    torch._dynamo.reset()
    module = make()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for steps in (2, 0):
        module.zero_grad()
        sum(h.sum() for h in compiled(torch.randn(steps, 3, 4)).hidden).backward()
        of_weights = [p.grad for p in module.parameters() if p.grad is not None]
        assert len(of_weights) > 5 and all((grad == 0).all() for grad in of_weights) == (steps == 0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_sequence_of_no_steps_has_a_backward_pass(backend):
    x = torch.randn(0, 3, 4, requires_grad=True)
    sum(h.sum() for h in make(backend=backend)(x).hidden).backward()
    assert x.grad.shape == x.shape


@needs_operators
def test_compile_under_autocast_keeps_the_precision_of_the_weights():
    torch._dynamo.reset()
    module, inputs, cast = make(), given(steps=3), torch.autocast("cpu", dtype=torch.bfloat16)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_equal(gradients(cast(compiled), module, *inputs), gradients(module, module, *inputs))


@pytest.mark.thorough
@needs_operators
def test_compile_of_the_reference_and_of_recomputation():
    torch._dynamo.reset()
    inputs = given(steps=2)
    for options in ({"backend": "reference", "recompute_chunks": 2}, {"recompute_chunks": 2}):
        module = make(detector_grad_scale=0.5, **options)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        assert_close(gradients(compiled, module, *inputs), gradients(module, module, *inputs), 1e-5)


@needs_operators
def test_make_fx_records_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    module = make()
    x = torch.randn(9, 3, 4)
    with torch.no_grad():
        for pre_dispatch in (False, True):
            graph = make_fx(lambda x: module(x).hidden[-1], pre_dispatch=pre_dispatch)(given()[0])
            assert torch.equal(graph(x[:7, :2]), module(x[:7, :2]).hidden[-1])


@needs_operators
def test_shapes_without_data():
    with torch._subclasses.FakeTensorMode():
        module = HMLSTM(4, SIZES)
        output = module(torch.randn(7, 2, 4))
        output.hidden[-1].sum().backward()
    assert [h.shape for h in output.hidden] == [(7, 2, size) for size in SIZES]
    assert module.bias[0].grad.shape == module.bias[0].shape


@pytest.mark.parametrize("detector_hidden", [0, 3])
def test_onnx_is_given_operations_that_it_knows(detector_hidden, monkeypatch):
    module = make(detector_hidden=detector_hidden)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with torch.no_grad():
        traced = torch.jit.trace(module, given(), strict=False)
    assert "fairseq_hmrnn::" not in str(traced.inlined_graph)
    assert_equal(
        flat(traced(*given(seed=2))), flat(make(backend="reference", detector_hidden=detector_hidden)(*given(seed=2)))
    )


@pytest.mark.parametrize("path", ["python", pytest.param("compiled", marks=pytest.mark.skipif(
    cpu.kernel.compiled is None, reason="the kernel was not built"))])  # fmt: skip
def test_packed_weights_cannot_be_recorded(path):
    module, (x, state) = make(), given(steps=1)
    packed = PackedLayers(module.layers(), path)

    def step(x):
        return module.step(x, state, packed=packed).hidden[-1]

    with torch.no_grad(), pytest.raises(RuntimeError, match="packed weights cannot be traced or exported"):
        torch.jit.trace(step, x[0])
    if entry.captured is not None:
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.utils.flop_counter import FlopCounterMode

        with torch.no_grad(), pytest.raises(RuntimeError, match="packed weights cannot be traced or exported"):
            make_fx(step)(x[0])
        with torch.no_grad(), FlopCounterMode(display=False):
            found = step(x[0])
        assert torch.equal(found, step(x[0]))


@pytest.mark.thorough
@needs_operators
def test_packed_weights_run_beside_what_is_compiled():
    torch._dynamo.reset()
    module, (x, state) = make(), given(steps=1)
    packed = module.pack()

    def step(x):
        return module.step(x * 2, state, packed=packed).hidden[-1] + 1

    with torch.no_grad():
        assert torch.equal(torch.compile(step, backend="aot_eager")(x[0]), step(x[0]))
