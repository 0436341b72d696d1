"""16-bit weights and autocast: what is computed in which precision."""

import copy
import functools

import pytest
import torch
from pairs import pairs, same_bits
from problems import make_problem, run, tensors

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import RecurrenceOptions, cpu, hm_lstm

LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])


def widened(problem):
    """The same numbers in float32, as leaves."""

    def widen(t):
        return None if t is None else t.detach().float().requires_grad_()

    return problem._replace(
        x=widen(problem.x),
        layers=tuple(type(p)(*map(widen, p)) for p in problem.layers),
        state=problem.state.apply(widen),
    )


@LOW
@BACKENDS
def test_low_precision_is_float32_rounded_once(dtype, backend):
    options = RecurrenceOptions(boundary="bernoulli", detector_grad_scale=0.3)
    problem = make_problem(3, 9, 3, [5, 4], options, layer_norm=True, padded=True, masked=True, dtype=dtype)
    function = functools.partial(hm_lstm, backend=backend)
    wide = widened(problem)
    if dtype == torch.bfloat16:  # the weights are rounded already; so is then what they are multiplied with
        wide = wide._replace(options=options._replace(bfloat16_products=True))
    (found, grads), (expected, expected_grads) = run(function, problem), run(function, wide)
    for index, (a, b) in enumerate(pairs(found, expected)):
        assert a.dtype == (dtype if index < 2 else torch.float32), "only `hidden` has the weights' dtype"
        assert torch.equal(a, b.to(a.dtype))
    for leaf, a, b in pairs(problem.leaves(), grads, expected_grads):
        assert a.dtype == leaf.dtype
        # `hidden`'s random gradient is rounded too, so that gradients agree to a few roundings only
        assert (a - b).abs().max() <= 8 * torch.finfo(dtype).eps * b.abs().max().clamp(min=1)


def test_state_of_the_weights_own_precision_is_refused():
    problem = make_problem(0, 2, 2, [3, 3], RecurrenceOptions(), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"state.z is torch.float16.* must be torch.float32"):
        hm_lstm(problem.x, problem.layers, problem.state.to(torch.float16), problem.options)


@LOW
def test_module_keeps_state_in_float32(dtype):
    """The forget gate held open and 300 small steps, which a 16-bit c would round one by one."""
    torch.manual_seed(0)
    module = HMLSTM(4, [6, 5], forget_bias=12.0, detector_bias=-3.0).to(dtype)
    with torch.no_grad():
        for weight in (*module.weight_bottom_up, *module.weight_recurrent):
            weight.mul_(0.01)
        module.bias[0][18:24] = 0.003  # candidates
    x = torch.randn(300, 2, 4).to(dtype)
    output = module(x)
    assert output.hidden[0].dtype == dtype
    assert output.state.c[0].dtype == torch.float32
    exact = copy.deepcopy(module).double()(x.double()).state.c[0]
    # c would be off by its own rounding 300 times over; the operands of bfloat16's products are rounded, c is not
    assert exact.min() > 0.2
    assert (output.state.c[0] - exact).abs().max() < (1e-4 if dtype == torch.bfloat16 else 1e-5)
    stepped = module.eval().step(torch.randn(2, 4).to(dtype), output.state)
    assert stepped.state.c[0].dtype == torch.float32 and stepped.hidden[0].dtype == dtype


@pytest.mark.parametrize("path", ["compiled", "python"])
def test_autocast_on_cpu_changes_nothing_but_the_input(path, monkeypatch):
    """The layers before are in bfloat16; the recurrence is in float32, forward and backward, also where the backward
    pass is called with autocast on."""
    if path == "compiled" and cpu.kernel.compiled is None:
        pytest.skip("the compiled kernel was not built")
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", path)
    torch.manual_seed(0)
    module, linear, x = HMLSTM(8, [7, 6], layer_norm=True), torch.nn.Linear(5, 8), torch.randn(6, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = linear(x)
        assert read.dtype == torch.bfloat16
        found = tensors(module(read))
        sum(t.float().pow(2).sum() for t in found).backward()
    grads = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    expected = tensors(module(read.detach().float()))
    sum(t.pow(2).sum() for t in expected).backward()
    assert same_bits(found, expected)
    assert same_bits(grads, (p.grad for p in module.parameters()))
    assert linear.weight.grad.abs().max() > 0
