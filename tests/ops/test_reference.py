"""The reference against a NumPy transcription, and its gradients against finite differences."""

import numpy as np
import pytest
import torch
from numpy_hm_lstm import run_sample

from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops import HMLSTMState, RecurrenceOptions, hm_lstm

SIZES = {"one": [3], "two": [4, 4], "unequal": [5, 3, 7], "deep": [2, 3, 4, 5]}


def make(sizes, seed, layer_norm=False, bias=0.0, **options):
    """A float64 module with weights large enough that boundaries vary."""
    torch.manual_seed(seed)
    module = HMLSTM(3, sizes, layer_norm, backend="reference", **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        for layer in module.layers():
            layer.bias[-1] += bias
    return module


def random_state(sizes, batch, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        return torch.randn(batch, size, generator=generator, dtype=torch.float64)

    z = torch.randint(0, 2, (batch, len(sizes)), generator=generator).double()
    z[:, -1] = 0
    return HMLSTMState(tuple(map(draw, sizes)), tuple(map(draw, sizes)), z)


def as_numpy(module):
    arrays = []
    for layer in module.layers():
        names = ("weight_recurrent", "weight_bottom_up", "weight_top_down", "bias")
        gains = ("gain_recurrent", "gain_bottom_up", "gain_top_down")
        hidden = ("detector_hidden_weight", "detector_hidden_bias", "detector_output")
        values = [getattr(layer, name) for name in names + gains + hidden]
        keys = ("U", "W", "V", "b", "gU", "gW", "gV", "D", "d", "v")
        arrays.append({k: None if v is None else v.detach().numpy() for k, v in zip(keys, values)})
    return arrays


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer-norm"])
@pytest.mark.parametrize("nested", [False, True], ids=["free", "nested"])
@pytest.mark.parametrize("detector_hidden", [0, 3], ids=["linear", "hidden"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_equals_numpy_transcription(sizes, detector_hidden, nested, layer_norm, seed):
    slope, top_boundary, steps, batch = 1.0 + seed, seed == 2, 11, 3
    options = {"nested_boundaries": nested, "top_boundary": top_boundary, "detector_hidden": detector_hidden}
    module = make(sizes, seed, layer_norm, **options)
    state = random_state(sizes, batch, seed)
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    valid = torch.rand(steps, batch) > 0.2
    output = module(x, state, valid, slope)
    for b in range(batch):
        hidden, boundaries, probs, h, c, z = run_sample(
            x[:, b].numpy(),
            as_numpy(module),
            [v[b].numpy() for v in state.h],
            [v[b].numpy() for v in state.c],
            state.z[b].tolist(),
            slope,
            nested,
            top_boundary,
            valid[:, b].numpy(),
        )
        np.testing.assert_array_equal(output.boundaries[:, b].detach(), boundaries)
        np.testing.assert_allclose(output.boundary_probs[:, b].detach(), probs, atol=1e-12)
        np.testing.assert_array_equal(output.state.z[b].detach(), z)
        for index in range(len(sizes)):
            ours = output.hidden[index][:, b].detach()
            np.testing.assert_allclose(ours, [step[index] for step in hidden], atol=1e-12)
            np.testing.assert_allclose(output.state.h[index][b].detach(), h[index], atol=1e-12)
            np.testing.assert_allclose(output.state.c[index][b].detach(), c[index], atol=1e-12)


def test_all_three_operations_occur():
    """The comparison above would prove little if some branch were never taken."""
    module = make([5, 3, 7], 2)
    z = module(torch.randn(100, 8, 3, dtype=torch.float64)).boundaries
    z_prev, z_below = z[:-1, :, 1], z[1:, :, 0]
    for operation in (z_prev == 1, (z_prev == 0) & (z_below == 1), (z_prev == 0) & (z_below == 0)):
        assert 0.02 < operation.double().mean() < 0.98


@pytest.mark.thorough
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer-norm"])
def test_gradients_with_fixed_boundaries_equal_finite_differences(layer_norm):
    """With z constant the gradient is a true derivative. Cut both ways a gradient can reach z: the slope is so steep
    that the hard sigmoid is saturated everywhere, so z~ and z are locally constant."""
    module = make([2, 2, 1], 4, layer_norm, detector_grad_scale=1.0)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    state = random_state([2, 2, 1], 2, 5).apply(lambda v: v.requires_grad_())
    probs = module(x, state, slope=1e6).boundary_probs[..., :2]
    assert ((probs == 0) | (probs == 1)).all()
    assert 0.1 < probs.mean() < 0.9
    z_prev, z_below = torch.cat([state.z[None, :, 1], probs[:-1, :, 1]]), probs[..., 0]
    operations = torch.where(z_prev == 1, torch.full_like(z_below, 2), z_below)
    assert {*operations.flatten().tolist()} == {0, 1, 2}, "the middle layer has them all"

    def function(x, h0, h1, c1, *parameters):
        output = module(x, HMLSTMState((h0, h1, state.h[2]), (state.c[0], c1, state.c[2]), state.z.detach()), slope=1e6)
        return (*output.hidden, *output.state.c)

    inputs = (x, state.h[0], state.h[1], state.c[1], *module.parameters())
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7)


def test_soft_boundaries_have_true_derivatives():
    """z = z~ is differentiable: the whole chain through the choice of operation and through the gates is checked."""
    module = make([2, 2, 1], 2, boundary="soft", detector_grad_scale=1.0)
    with torch.no_grad():
        for layer in module.layers():
            for weight in layer[:3]:
                if weight is not None:
                    weight[-1] *= 0.05  # keep z~ inside the interval, away from its kinks
            layer.bias[-1] *= 0.05
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    probs = module(x).boundary_probs[..., :2]
    assert ((probs > 0.01) & (probs < 0.99)).all()

    def function(x, *parameters):
        output = module(x)
        return (*output.hidden, output.boundaries, output.boundary_probs)

    assert torch.autograd.gradcheck(function, (x, *module.parameters()), eps=1e-6, atol=1e-7)


def straight_through_by_hand(module, x, slope):
    """dL/du of the first of two steps of a single layer, L = sum of h and c after the second, from the derivative
    with respect to the z between them: a second derivation of what the estimator must return."""
    output = module(x[:2], slope=slope)
    state = module(x[:1], slope=slope).state
    z_prev = output.boundaries[0, :, 0].detach().requires_grad_()
    after = module(x[1:2], HMLSTMState(state.h, state.c, z_prev.unsqueeze(1)), slope=slope)
    loss = after.hidden[0].sum() + after.state.c[0].sum()
    (grad_z,) = torch.autograd.grad(loss, z_prev)
    u = 2 * module(x[:1], slope=1e-3).boundary_probs[0, :, 0] / 1e-3 - 1e3  # unsaturated, so u can be read off
    inside = (slope * u).abs() < 1
    return grad_z * slope / 2 * inside, u


def test_straight_through_gradient_of_the_detector():
    module = make([4], 3, detector_grad_scale=0.0, top_boundary=True)
    x = torch.randn(2, 16, 3, dtype=torch.float64)
    slope = 0.5
    expected, u = straight_through_by_hand(module, x, slope)
    assert (expected != 0).any() and (expected == 0).any()
    output = module(x, slope=slope)
    loss = output.hidden[0][1].sum() + output.state.c[0].sum()
    # The detector's bias acts at step 0 through z alone, and at step 1 it reaches no loss.
    (grad,) = torch.autograd.grad(loss, module.bias[0])
    torch.testing.assert_close(grad[-1], expected.sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_detectors_hidden_layer_sends_nothing_to_what_it_reads(scale):
    """What reaches input and states is the linear row's part alone, while the hidden layer itself learns."""
    module, slope = make([4, 3], 4, detector_hidden=2, detector_grad_scale=scale), 0.2
    state = random_state([4, 3], 5, 1).apply(lambda v: v.requires_grad_())
    x = torch.randn(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    probs = module(x, state, slope=slope).boundary_probs[0, :, 0]
    inside = ((probs > 0) & (probs < 1)).double()
    layer, hidden = module.layers()[0], (module.detector_hidden_weight[0], module.detector_output[0])
    read = [x, state.h[0], state.h[1]]
    of_x, of_h, of_above, *of_hidden = torch.autograd.grad(probs.sum(), [*read, *hidden])
    row = (scale * slope / 2 * inside).unsqueeze(1)
    torch.testing.assert_close(of_x[0], row * layer.weight_bottom_up[-1])
    torch.testing.assert_close(of_h, row * layer.weight_recurrent[-1])
    torch.testing.assert_close(of_above, row * state.z[:, :1] * layer.weight_top_down[-1])
    assert inside.any() and all(grad.any() for grad in of_hidden)


def test_detector_grad_scale_cuts_only_what_the_detector_reads():
    """The detector's own weights learn alike at every scale; with 0 no gradient goes from u to earlier states."""
    grads = {}
    for scale in (0.0, 0.5, 1.0):
        module = make([4, 3], 4, detector_grad_scale=scale)
        x = torch.randn(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        state = random_state([4, 3], 5, 1)
        h = state.h[0].clone().requires_grad_()
        output = module(x, HMLSTMState((h, state.h[1]), state.c, state.z), slope=0.2)
        output.boundary_probs[..., 0].sum().backward()
        grads[scale] = (h.grad, x.grad, module.weight_recurrent[0].grad, module.bias[0].grad)
    assert grads[0.0][0].abs().sum() == 0 and grads[0.0][1].abs().sum() == 0
    assert grads[1.0][0].abs().sum() > 0 and grads[1.0][1].abs().sum() > 0
    torch.testing.assert_close(grads[0.5][0], grads[1.0][0] / 2)
    torch.testing.assert_close(grads[0.5][1], grads[1.0][1] / 2)
    for scale in (0.0, 0.5):
        torch.testing.assert_close(grads[scale][2], grads[1.0][2])
        torch.testing.assert_close(grads[scale][3], grads[1.0][3])


def test_copy_is_the_same_bits():
    module = make([4, 6], 5, bias=-50.0)
    state = random_state([4, 6], 3, 2)
    state = state._replace(z=torch.zeros_like(state.z))
    output = module(torch.randn(7, 3, 3, dtype=torch.float64), state)
    assert torch.equal(output.state.h[1], state.h[1]) and torch.equal(output.state.c[1], state.c[1])
    assert all(torch.equal(h, state.h[1]) for h in output.hidden[1])


def test_closed_terms_are_zero_even_at_zero_vectors_with_layer_norm():
    module = make([4, 4], 6, layer_norm=True)
    output = module(torch.zeros(5, 2, 3, dtype=torch.float64))
    sum(h.sum() for h in output.hidden).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_bernoulli_decides_by_the_noise_given():
    module = make([4, 3], 7, boundary="bernoulli")
    x = torch.randn(30, 4, 3, dtype=torch.float64)
    noise = torch.rand(30, 4, 2, dtype=torch.float64)
    output = module(x, noise=noise)
    assert torch.equal(output.boundaries[..., 0], (output.boundary_probs > noise).double()[..., 0])
    assert output.boundaries[..., 0].mean() not in (0, 1)


def test_bernoulli_samples_in_training_and_steps_in_evaluation():
    module = make([4, 3], 8, boundary="bernoulli")
    x = torch.randn(40, 4, 3, dtype=torch.float64)
    assert not torch.equal(module(x).boundaries, module(x).boundaries)
    module.eval()
    output = module(x)
    assert torch.equal(output.boundaries, (output.boundary_probs > 0.5).double())


def test_nested_boundaries_nest():
    x = torch.randn(60, 4, 3, dtype=torch.float64)
    nested = make([4, 4, 4], 9, nested_boundaries=True)(x).boundaries
    free = make([4, 4, 4], 9)(x).boundaries
    assert (nested[..., 1] <= nested[..., 0]).all() and nested[..., 1].sum() > 0
    assert (free[..., 1] > free[..., 0]).any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(4, 2, 7)), r"x must be \(T, B, 3\)"),
        (dict(x=torch.zeros(2, 3)), r"got \(2, 3\)"),
        (dict(x=torch.zeros(4, 2, 3, dtype=torch.float64)), "float64"),
        (dict(valid=torch.ones(4, 3, dtype=torch.bool)), "valid must be bool"),
        (dict(valid=torch.ones(4, 2)), "valid must be bool"),
        (dict(state=HMLSTMState.zeros(3, [4, 5])), "state.z has shape"),
        (dict(state=HMLSTMState.zeros(2, [4, 6])), "state.h"),
        (dict(state=HMLSTMState.zeros(2, [4])), "state.h has 1 layers"),
        (dict(noise=torch.zeros(4, 2, 2)), "requires noise"),
        (dict(options=RecurrenceOptions(boundary="bernoulli")), "requires noise"),
        (dict(options=RecurrenceOptions(boundary="hard")), "unknown boundary mode 'hard': choose from step"),
        (dict(options=RecurrenceOptions(slope=0.0)), "slope"),
        (dict(backend="cuda"), "unknown backend 'cuda': choose from auto"),
        (dict(recurrent_masks=(torch.ones(2, 4),)), "recurrent_masks has 1 layers"),
        (dict(recurrent_masks=()), "recurrent_masks has 0 layers"),
    ],
)
def test_bad_arguments_are_named(change, message):
    module = HMLSTM(3, [4, 5])
    arguments = dict(
        x=torch.zeros(4, 2, 3),
        layers=module.layers(),
        state=HMLSTMState.zeros(2, [4, 5]),
        options=RecurrenceOptions(),
    )
    with pytest.raises(ValueError, match=message):
        hm_lstm(**{**arguments, **change})
