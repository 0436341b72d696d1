"""The LSTM with attention and input feeding, whose backward pass is by hand, against its equations under autograd."""

import pytest
import torch
from pairs import pairs
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from fairseq_hmrnn.ops import attention_lstm, cpu

STEPS, BATCH, SLOTS, INPUT, SIZE = 4, 3, 5, 6, 7


def by_autograd(x, h, c, keys, values, padding_mask, weights, output, masks):
    h, c, fed, found = list(h), list(c), torch.zeros_like(h[0]), []
    for t in range(len(x)):
        below = torch.cat([x[t], fed], dim=1)
        for index, (of_input, of_hidden, bias) in enumerate(weights):
            i, f, g, o = (below @ of_input.t() + h[index] @ of_hidden.t() + bias).chunk(4, dim=1)
            c[index] = f.sigmoid() * c[index] + i.sigmoid() * g.tanh()
            h[index] = o.sigmoid() * c[index].tanh()
            below = h[index] * masks[0][t, index] if index + 1 < len(weights) else h[index]
        scores = torch.einsum("bmh,bh->bm", keys, below).masked_fill(padding_mask, float("-inf"))
        attention = scores.softmax(dim=1)
        fed = (torch.einsum("bm,bmh->bh", attention, values) + below @ output.t()).tanh() * masks[1][t]
        found.append((fed, attention))
    return [torch.stack(tensors) for tensors in zip(*found)]


def problem(layers, steps=STEPS, batch=BATCH):
    generator = torch.Generator().manual_seed(layers)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    state = random(layers, batch, SIZE), random(layers, batch, SIZE)
    memory = random(batch, SLOTS, SIZE), random(batch, SLOTS, SIZE)
    below = [INPUT + SIZE] + [SIZE] * (layers - 1)
    weights = [(random(4 * SIZE, size), random(4 * SIZE, SIZE), random(4 * SIZE)) for size in below]
    padding_mask = torch.zeros(batch, SLOTS, dtype=torch.bool)
    padding_mask[1:2, 2:] = padding_mask[2:3, :1] = True
    masks = tuple(random(*shape).detach() for shape in ((steps, layers - 1, batch, SIZE), (steps, batch, SIZE)))
    return random(steps, batch, INPUT), *state, *memory, padding_mask, weights, random(SIZE, SIZE), masks


def tensors_of(arguments):
    """Those that have a gradient."""
    *tensors, _, weights, output, _ = arguments
    return [*tensors, output, *(tensor for layer in weights for tensor in layer)]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("panels", [True, False])
def test_outputs_and_gradients_are_those_of_the_equations(layers, panels, monkeypatch):
    if not panels:
        monkeypatch.setattr(cpu.kernel, "chooses_panels", lambda *_: False)
    arguments = problem(layers)
    tensors = tensors_of(arguments)
    expected, found = by_autograd(*arguments), attention_lstm(*arguments)
    weight = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for one, other in pairs(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not found[1].requires_grad
    gradients = [grad((of[0] * weight).sum(), tensors) for of in (found, expected)]
    for one, other in pairs(*gradients):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_no_masks_are_masks_of_ones():
    *arguments, masks = problem(2)
    ones = tuple(map(torch.ones_like, masks))
    torch.testing.assert_close(attention_lstm(*arguments)[0], attention_lstm(*arguments, ones)[0], rtol=0, atol=0)


def test_a_state_that_changed_since_is_noticed():
    """As of every tensor that a gradient requires."""
    x, h, c, *others = problem(1)
    cell = c.clone()
    loss = attention_lstm(x, h, cell, *others)[0].sum()
    with torch.no_grad():
        cell.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_same_graph_twice():
    arguments = problem(1)
    loss = attention_lstm(*arguments)[0].sum()
    once, again = (grad(loss, arguments[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("steps, batch", [(0, BATCH), (STEPS, 0), (0, 0)])
@pytest.mark.parametrize("panels", [True, False])
def test_without_steps_or_samples(steps, batch, panels, monkeypatch):
    """There is nothing to return, and every gradient is zero."""
    if not panels:
        monkeypatch.setattr(cpu.kernel, "chooses_panels", lambda *_: False)
    arguments = problem(2, steps, batch)
    attended, attention = attention_lstm(*arguments)
    assert attended.shape == (steps, batch, SIZE) and attention.shape == (steps, batch, SLOTS)
    tensors = tensors_of(arguments)
    for tensor, gradient in zip(tensors, grad(attended.sum(), tensors)):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_hooks_on_saved_tensors_see_all_that_the_backward_pass_reads():
    """With zeros in place of everything that was saved, every gradient is zero."""
    *arguments, masks = problem(2)
    with saved_tensors_hooks(torch.zeros_like, lambda saved: saved):
        attended, _ = attention_lstm(*arguments)
    for gradient in grad(attended.sum(), tensors_of([*arguments, masks])):
        assert not gradient.any()


def test_a_backward_pass_under_autocast_is_that_without():
    *tensors, padding_mask, weights, output, masks = problem(2)
    tensors = [tensor.float() for tensor in tensors]  # autocast leaves float64 alone
    weights = [tuple(tensor.float() for tensor in layer) for layer in weights]
    arguments = *tensors, padding_mask, weights, output.float(), tuple(mask.float() for mask in masks)
    tensors = tensors_of(arguments)
    found = attention_lstm(*arguments)[0].sum()
    expected = grad(found, tensors, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, grad(found, tensors), expected))
