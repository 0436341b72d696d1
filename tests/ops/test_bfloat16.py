"""Products of operands rounded to bfloat16, and layer 1's input by symbol, against the reference that rounds alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pairs import pairs, same_bits
from problems import assert_close, differences, make_problem, near_threshold, run, tensors

from fairseq_hmrnn.ops import RecurrenceOptions, cpu, hm_lstm, products
from fairseq_hmrnn.ops.precision import rounded_linear
from fairseq_hmrnn.ops.reference import hm_lstm_reference

pytestmark = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
KINDS = pytest.mark.parametrize(
    "keywords",
    [{}, {"layer_norm": True}, {"padded": True, "masked": True}, {"layer_norm": True, "padded": True, "masked": True}],
    ids=["plain", "layer_norm", "padded", "layer_norm_padded"],
)
HIDDEN = pytest.mark.parametrize("detector_hidden", [0, 40], ids=["row", "hidden"])
SCALES = pytest.mark.parametrize("scale", [0.0, 1.0])


def low_problem(seed, sizes, batch=5, steps=9, scale=0.0, boundary="step", **keywords):
    options = RecurrenceOptions(0.8, boundary, detector_grad_scale=scale, bfloat16_products=True)
    return make_problem(seed, steps, batch, sizes, options, dtype=torch.float32, **keywords)


@SCALES
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("detector_hidden", [0, 40], ids=["row", "hidden"])
def test_equals_the_reference_that_rounds_alike(detector_hidden, padded, scale, batch):
    """In float32's tolerance with some seeds, and in bfloat16's with all: where a number lies near the middle of two
    bfloat16 numbers, two orders of summation may round it to both, and torch's order is another on every processor. Of
    24 seeds 14 or more agreed in every case."""
    keywords = {"layer_norm": True, "padded": padded, "masked": padded, "detector_hidden": detector_hidden}
    agreeing = 0
    for seed in range(12):
        problem = low_problem(seed, [17, 9, 6], batch, 6, scale, **keywords)
        (expected, expected_grads), (found, grads) = run(hm_lstm_reference, problem), run(cpu.hm_lstm_cpu, problem)
        if near_threshold(problem, expected, 0.005):
            continue
        both = found + grads, expected + expected_grads
        assert_close(*both, 0.03, problem.outputs + problem.gradients)
        if all(difference <= 1e-4 * scale for difference, scale in differences(*both)):
            agreeing += 1
            with torch.no_grad():
                assert_close(tensors(cpu.hm_lstm_cpu(*problem)), expected, 1e-4, problem.outputs)
            exact = problem._replace(options=problem.options._replace(bfloat16_products=False))
            exactly = run(cpu.hm_lstm_cpu, exact)[0][0]
            assert float((exactly - found[0]).detach().abs().max()) > 1e-4, "nothing was rounded"
    assert agreeing >= 2


@SCALES
def test_without_layer_norm(scale):
    """The gradient of a boundary, z of the start state among them, is then taken from what a product sends to its
    input, of which a factor is rounded: the detectors' rows, and with a scale all that hears of them, agree to
    bfloat16's tolerance."""
    problem = low_problem(5, [33, 17, 6], scale=scale)
    (expected, expected_grads), (found, grads) = run(hm_lstm_reference, problem), run(cpu.hm_lstm_cpu, problem)
    assert_close(found, expected, 1e-4, problem.outputs)
    assert_close(grads, expected_grads, 1e-2, problem.gradients)
    if scale == 0:
        z = 1 + 2 * 3  # the start state's, after x, h and c
        for found, expected in pairs(grads[:z] + grads[z + 1 :], expected_grads[:z] + expected_grads[z + 1 :]):
            rows = slice(None, -1) if len(found) in (133, 69, 25) else slice(None)
            assert_close([found[rows]], [expected[rows]], 1e-4)


@KINDS
@HIDDEN
@pytest.mark.parametrize("boundary", ["step", "bernoulli"])
def test_skipped_equals_not_skipped(keywords, detector_hidden, boundary):
    problem = low_problem(2, [130, 64, 17], 7, boundary=boundary, detector_hidden=detector_hidden, **keywords)
    results = [run(cpu.hm_lstm_cpu, problem, skip=skip) for skip in (True, False)]
    assert same_bits(*(found + grads for found, grads in results))


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@HIDDEN
def test_bits_do_not_depend_on_threads(low, layer_norm, detector_hidden):
    keywords = {"layer_norm": layer_norm, "detector_hidden": detector_hidden}
    problem = low_problem(2, [300, 200, 130], 9, 12, scale=1.0, **keywords)
    problem = problem._replace(options=problem.options._replace(bfloat16_products=low))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(run(cpu.hm_lstm_cpu, problem))
    finally:
        torch.set_num_threads(threads)
    for found, grads in results[1:]:
        assert same_bits(found + grads, results[0][0] + results[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("chunks", [1, 3])
@HIDDEN
def test_input_by_symbol(dtype, layer_norm, chunks, detector_hidden):
    """A table and tokens give what the table's rows give one by one, the table's gradient summed over its readers."""
    options = RecurrenceOptions(0.8, detector_grad_scale=1.0)
    keywords = {"layer_norm": layer_norm, "dtype": dtype, "detector_hidden": detector_hidden}
    problem = make_problem(3, 1, 4, [40, 17], options, **keywords)
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 6, (11, 4), generator=random)
    valid = torch.rand(11, 4, generator=random) > 0.2
    table = problem.x.detach()[0, :, :].repeat(2, 1)[:6].clone().requires_grad_()
    problem = problem._replace(x=table, valid=valid)

    def by_row(x, *rest):
        return hm_lstm(torch.nn.functional.embedding(tokens, x), *rest)

    def by_symbol(*arguments):
        return hm_lstm(*arguments, tokens=tokens, recompute_chunks=chunks)

    (expected, expected_grads), (found, grads) = run(by_row, problem), run(by_symbol, problem)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert_close(found, expected, tolerance, problem.outputs)
    assert_close(grads, expected_grads, tolerance, problem.gradients)


def test_symbols_that_the_table_has_not():
    problem = make_problem(3, 1, 4, [4], RecurrenceOptions())
    with pytest.raises(IndexError, match="symbol 4 is not in a table of 4"):
        hm_lstm(problem.x[0], *problem[1:], tokens=torch.tensor([[0, 1, 2, 4]]))
    with pytest.raises(ValueError, match="tokens must be int64"):
        hm_lstm(problem.x[0], *problem[1:], tokens=torch.zeros(1, 4))


def test_float64_is_not_rounded():
    problem = make_problem(3, 2, 4, [5, 6], RecurrenceOptions(bfloat16_products=True))
    with pytest.raises(ValueError, match="bfloat16_products rounds float32 tensors, x is torch.float64"):
        hm_lstm(*problem)
    x, weight = torch.randn(40, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    expected = F.linear(x.bfloat16().double(), weight.bfloat16().double())
    assert_close([products.linear(x, weight, bfloat16=True)], [expected], 1e-12)  # by torch: the panels cannot
    hidden, weights = [torch.randn(2, 3, 5, dtype=torch.float64)] * 2, [torch.randn(6, 5, dtype=torch.float64)] * 2
    low = [[t.bfloat16().double() for t in many] for many in (hidden, weights)]
    assert_close([products.layer_output(hidden, weights, bfloat16=True)], [products.layer_output(*low)], 1e-12)


def test_second_derivatives_of_rounded_products_are_refused():
    x = torch.randn(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(rounded_linear(x, torch.randn(4, 3)).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        first.sum().backward()


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@HIDDEN
def test_packed_steps_round_as_sequences_do(layer_norm, detector_hidden):
    problem = low_problem(5, [33, 17], 3, layer_norm=layer_norm, detector_hidden=detector_hidden)
    with torch.no_grad():
        expected = hm_lstm(*problem)
        packed = cpu.PackedLayers(problem.layers, bfloat16=True)
        state, options = problem.state, problem.options
        for t, x in enumerate(problem.x.split(1)):
            for given in (x, packed.project(x)):
                output = packed(given, state, options, projected=given is not x)
                assert_close([h[0] for h in output.hidden], [h[t] for h in expected.hidden], 1e-5)
            state = output.state
