"""Gradients written by hand have none themselves: whoever asks for a second derivative is told so, of any input."""

import pytest
import torch
from pairs import pairs
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fairseq_hmrnn.criterions.softmax_nll import softmax_nll
from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import attention_lstm, cpu, products
from fairseq_hmrnn.ops.precision import rounded_linear

compiled = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")


def strided(*shape):
    """A leaf, and the same with its elements apart: a copy that a Function makes of it has lost its graph."""
    generator = torch.Generator().manual_seed(sum(shape))
    leaf = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    return leaf, torch.stack([leaf, leaf], dim=-1)[..., 0]


def recurrence(**options):
    model = HMLSTM(3, [5, 4], layer_norm=True, **options).double()
    (x, given), state = strided(6, 2, 3), model.zero_state(2)
    for tensor in (*state.h, *state.c):
        tensor.requires_grad_()

    def run():
        output = model(given, state)
        return [*output.hidden, output.boundary_probs]

    return run, [x, *state.h, *state.c, *model.parameters()]


def linear():
    (x, given), (weight, rows), (bias, _) = strided(40, 4), strided(70, 4), strided(70)
    return lambda: [products.linear(given, rows, bias)], [x, weight, bias]


def layer_output():
    made = [strided(*shape) for shape in ((40, 3, 6), (40, 3, 5), (70 + 2, 6), (70 + 2, 5))]
    leaves, given = zip(*made)
    return lambda: [products.layer_output(given[:2], given[2:])], list(leaves)


def rounded():
    (x, given), (weight, rows) = strided(5, 4), strided(7, 4)
    return lambda: [rounded_linear(given, rows)], [x, weight]


def attention(masks):
    shapes = [(4, 3, 6), (1, 3, 7), (1, 3, 7), (3, 5, 7), (3, 5, 7), (28, 13), (28, 7), (28,), (7, 7)]
    leaves, (x, h, c, keys, values, *weights, output) = zip(*(strided(*shape) for shape in shapes))
    of_steps = (torch.ones(4, 0, 3, 7).double(), torch.full((4, 3, 7), 0.5).double()) if masks else None

    def run():
        padding_mask = torch.zeros(3, 5, dtype=torch.bool)
        return [attention_lstm(x, h, c, keys, values, padding_mask, [tuple(weights)], output, of_steps)[0]]

    return run, list(leaves)


def likelihood():
    logits = torch.randn(6, 9, requires_grad=True)
    return lambda: [softmax_nll(logits, torch.arange(6), 0)], [logits]


FUNCTIONS = {
    "recurrence": recurrence,
    "hidden layer of detectors": lambda: recurrence(detector_hidden=3),
    "in chunks": lambda: recurrence(recompute_chunks=2),
    "linear": linear,
    "layer_output": layer_output,
    "rounded_linear": rounded,
    "attention_lstm": lambda: attention(False),
    "attention_lstm with dropout": lambda: attention(True),
    "softmax_nll": likelihood,
}


@compiled
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_second_derivative_by_any_input_is_refused(name):
    """Alone, as autograd.grad, hessian and backward(inputs=...) ask for it: they walk through nothing else."""
    torch.manual_seed(0)
    run, leaves = FUNCTIONS[name]()
    loss = sum(tensor.pow(2).sum() for tensor in run())
    first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    grads = [grad for grad in first if grad is not None]
    assert len(grads) > len(leaves) / 2
    for leaf in leaves:
        for grad in grads:
            with pytest.raises(RuntimeError, match="differentiated twice: .*backend='reference'"):
                torch.autograd.grad(grad.sum(), leaf, retain_graph=True)


def forward_mode(model, x):
    with forward_ad.dual_level():
        model(forward_ad.make_dual(x, torch.ones_like(x)))


def batched(model, x):
    torch.autograd.functional.jacobian(lambda x: model(x).hidden[0].sum((0, 1)), x, vectorize=True)


def of_torch_func(model, x):
    torch.func.grad(lambda x: model(x).hidden[0].sum())(x)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("take", [forward_mode, batched, of_torch_func])
def test_other_ways_to_differentiate_are_refused_by_name(take, trained):
    if take is not forward_mode and not hasattr(torch, "func"):
        pytest.skip("this torch has no torch.func, nor says what is batched")
    model, x = HMLSTM(3, [4]).requires_grad_(trained), torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match="^gradients written by hand are not for torch.func, .*backend='reference'"):
        take(model, x)
    with forward_ad.dual_level():  # of something else
        assert torch.equal(model(x).hidden[0], model(x.clone()).hidden[0])


@pytest.mark.parametrize("boundary", ["step", "bernoulli", "soft"])
@pytest.mark.parametrize("detector_grad_scale", [0.0, 0.5, 1.0])
def test_forward_mode_of_the_reference_is_its_reverse_mode(boundary, detector_grad_scale):
    """Straight-through gradients too: a product from either side is the same number."""
    torch.manual_seed(0)
    model = HMLSTM(3, [5, 4], backend="reference", boundary=boundary, detector_grad_scale=detector_grad_scale).double()
    x, along = torch.randn(2, 6, 2, 3, dtype=torch.float64).unbind()
    noise = torch.rand(6, 2, 2, dtype=torch.float64) if boundary == "bernoulli" else None
    weights = [torch.randn(6, 2, size, dtype=torch.float64) for size in (5, 4)]

    def run(x):
        return sum((weight * h).sum() for weight, h in pairs(weights, model(x, noise=noise).hidden))

    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(run(forward_ad.make_dual(x, along))).tangent
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(leaf), leaf)
    torch.testing.assert_close(found, (grad * along).sum())
    assert found != 0


def test_first_derivatives_with_a_graph_are_taken_within_checkpoint():
    """Which allows what it keeps to be read once."""
    model, x = HMLSTM(3, [4, 3]), torch.randn(5, 2, 3, requires_grad=True)
    plain = torch.autograd.grad(model(x).hidden[-1].sum(), x)[0]
    y = checkpoint(lambda x: model(x).hidden[-1], x, use_reentrant=False)
    (found,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(found, plain)
