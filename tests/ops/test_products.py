"""Large products outside of the recurrence, and the output module that leaves out what COPY keeps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pairs import pairs, same_bits

from fairseq_hmrnn.modules import HMLSTM, LayerOutput
from fairseq_hmrnn.ops import HMLSTMState, cpu, products

pytestmark = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
SHAPES = [(1, 1, 1), (7, 65, 3), (6, 64, 256), (130, 1, 257), (97, 515, 31), (300, 70, 1100), (97, 130, 577), (5, 3, 0)]


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("rows, columns, depth", SHAPES)
@pytest.mark.parametrize("a_over", [False, True])
@pytest.mark.parametrize("b_over", [False, True])
def test_product_of_any_shape_and_order(rows, columns, depth, a_over, b_over):
    a, b = random(rows, depth), random(depth, columns)
    given = (a.t().contiguous() if a_over else a, a_over, b if b_over else b.t().contiguous(), b_over)
    assert torch.allclose(cpu.kernel.compiled.multiply(*given, False), a @ b, atol=1e-11)
    given = [t.float() if isinstance(t, torch.Tensor) else t for t in given]
    single = cpu.kernel.compiled.multiply(*given, False)
    assert (single - (a @ b)).abs().max() <= 1e-5 * (1 + depth**0.5)
    low = cpu.kernel.compiled.multiply(*given, True)
    assert torch.allclose(low.double(), a.bfloat16().double() @ b.bfloat16().double(), atol=1e-5 * (1 + depth**0.5))


@pytest.mark.parametrize("a_over", [False, True])
@pytest.mark.parametrize("b_over", [False, True])
def test_nan_stays_nan_in_products_of_bfloat16(a_over, b_over):
    """In its row and column alone: rounding adds to the bits of a number, and this one would become zero."""
    a, b = torch.ones(100, 70), torch.ones(70, 130)
    a[98, 3], b[69, 129] = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    given = (a.t().contiguous() if a_over else a, a_over, b if b_over else b.t().contiguous(), b_over)
    expected = torch.zeros(100, 130, dtype=torch.bool)
    expected[98, :] = expected[:, 129] = True
    assert torch.equal(cpu.kernel.compiled.multiply(*given, True).isnan(), expected)


def test_products_that_do_not_fit():
    with pytest.raises(ValueError, match="sums over 3 and 4"):
        cpu.kernel.compiled.multiply(random(2, 3), False, random(5, 4), False, False)


def test_bfloat16_by_this_processor_and_by_any():
    a, b = random(1001, dtype=torch.float32), random(1001, dtype=torch.float32).flip(0)
    expected = float(a.bfloat16().double() @ b.bfloat16().double())
    for portable in (False, True):
        assert cpu.kernel.compiled.dot_pairs(a, b, portable) == pytest.approx(expected, abs=1e-4)
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20, 3.3e38, float("inf")])
    for x in halfway:  # ties to even, as torch rounds
        found = cpu.kernel.compiled.dot_pairs(x.reshape(1), torch.ones(1), True)
        assert found == float(x.bfloat16())


@pytest.mark.parametrize("portable", [False, True])
def test_nan_stays_nan_in_bfloat16(portable):
    """Rounding adds to the bits of a number: a NaN would become infinite, or zero. Alone, and among whole vectors."""
    for bits in (0x7FC00000, 0x7FFFFFFF, 0x7F800001):  # torch's own, and those of the most and of the fewest bits
        nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        assert math.isnan(cpu.kernel.compiled.dot_pairs(nan, torch.ones(1), portable))
        for place in (0, 7, 63, 64):
            operand = torch.ones(65)
            operand[place : place + 1] = nan
            assert math.isnan(cpu.kernel.compiled.dot_pairs(operand, torch.ones(65), portable))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_threads(dtype):
    x, weight = random(700, 300, dtype=dtype), random(260, 300, dtype=dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(products.linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_linear_is_torchs():
    x, weight, bias = (random(*s).requires_grad_() for s in ((3, 4, 20), (30, 20), (30,)))
    for found, expected in pairs(gradients(products.linear, x, weight, bias), gradients(F.linear, x, weight, bias)):
        assert torch.allclose(found, expected, atol=1e-12)


HALF_ON_CPU = pytest.mark.skipif(torch.__version__.startswith("1."), reason="torch 1 multiplies no Half on CPU")


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.bfloat16, 2**-8), pytest.param(torch.float16, 2**-11, marks=HALF_ON_CPU)]
)
def test_linear_of_16_bits_multiplies_in_float32(dtype, tolerance, monkeypatch):
    """Where the processor lacks instructions for them; rounded once, as torch's are."""
    given = [random(*s).to(dtype).requires_grad_() for s in ((3, 40, 20), (30, 20), (30,))]
    exact = [t.detach().double().requires_grad_() for t in given]
    multiply, made = cpu.kernel.compiled.multiply, []
    counted = SimpleNamespace(multiply=lambda *operands: made.append(operands[0].dtype) or multiply(*operands))
    stand_in = SimpleNamespace(compiled=counted, chooses_panels=cpu.kernel.chooses_panels)
    monkeypatch.setattr(products, "kernel", stand_in)
    monkeypatch.setattr(products, "_torch_is_slow", lambda dtype: True)
    along = random(3, 40, 30).to(dtype)
    for function, leaves in ((products.linear, given), (F.linear, exact)):
        (function(*leaves) * along).sum().backward()
    results = [products.linear(*given), *(t.grad for t in given)]
    expected = [F.linear(*exact), *(t.grad for t in exact)]
    for found, right in pairs(results, expected):
        assert found.dtype == dtype
        assert (found.double() - right).abs().max() <= tolerance * right.abs().max()
    assert made == [torch.float32] * 4, "forward twice, and the gradients of x and of the weight"
    monkeypatch.setattr(products, "_torch_is_slow", lambda dtype: False)
    assert torch.equal(products.linear(*given), F.linear(*given)) and len(made) == 4


def test_16_bits_that_onednn_does_not_multiply_are_slow(monkeypatch):
    slow = products._torch_is_slow.__wrapped__
    assert not slow(torch.float32) and not slow(torch.float64)
    for supported in (True, False):
        found = SimpleNamespace(_is_mkldnn_bf16_supported=lambda found=supported: found)
        monkeypatch.setattr(torch.ops, "mkldnn", found, raising=False)
        assert slow(torch.bfloat16) != supported
        assert slow(torch.float16), "a torch that does not say"


def gradients(function, *leaves):
    result = function(*leaves)
    along = random(*result.shape, dtype=result.dtype)
    return [result, *torch.autograd.grad((result * along).sum(), leaves)]


def recurrence(valid=None, dtype=torch.float64):
    """Outputs of a recurrence that copies, with a start state whose upper layer is about to FLUSH."""
    torch.manual_seed(1)
    model = HMLSTM(6, [20, 17, 9]).to(dtype)
    h, c = (tuple(random(5, size, dtype=dtype) for size in model.hidden_sizes) for _ in range(2))
    z = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=dtype)
    state = HMLSTMState(h, c, z)
    with torch.no_grad():
        return model, model(random(13, 5, 6, dtype=dtype), state, valid), state


@pytest.mark.parametrize("padded", [False, True])
def test_changed_tells_what_copy_keeps(padded):
    valid = (random(13, 5) > -0.5) if padded else None
    _, output, state = recurrence(valid)
    changed = output.changed(state, valid)
    for layer, hidden in enumerate(output.hidden):
        same = (hidden == torch.cat([state.h[layer].unsqueeze(0), hidden[:-1]])).all(-1)
        assert bool((changed[..., layer] | same).all()), "a changed h is called unchanged"
        if valid is None:
            assert torch.equal(changed[..., layer], ~same)
    assert 0.2 < float(changed[..., 1:].double().mean()) < 0.9, "the test needs steps of both kinds"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_module_without_what_copy_keeps(dtype):
    model, output, state = recurrence(dtype=dtype)
    module = LayerOutput(model.hidden_sizes, 33).to(dtype)
    hidden = [h.requires_grad_() for h in output.hidden]
    leaves = [*hidden, *module.parameters()]

    expected = gradients(lambda *leaves: module(hidden), *leaves)
    everything = torch.ones_like(output.boundaries, dtype=torch.bool)
    dense = gradients(lambda *leaves: module.over_sequence(hidden, everything), *leaves)
    sparse = gradients(lambda *leaves: module.over_sequence(hidden, output.changed(state)), *leaves)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b, c in pairs(expected, dense, sparse):
        assert torch.allclose(b, a, atol=tolerance * (1 + a.detach().abs().max().item()))
        assert torch.allclose(c, a, atol=tolerance * (1 + a.detach().abs().max().item()))
    assert same_bits(dense[:4], sparse[:4]), "features and gradients of states"
