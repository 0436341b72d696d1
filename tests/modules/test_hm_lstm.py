"""HMLSTM as a module: carrying state, padding, odd sizes, initialisation, dropout."""

import pytest
import torch
from pairs import pairs
from torch.nn.utils import prune

from fairseq_hmrnn.modules import HMLSTM, LayerOutput
from fairseq_hmrnn.ops import HMLSTMState

SIZES = [5, 3, 4]


def make(**options):
    torch.manual_seed(0)
    module = HMLSTM(3, SIZES, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_sequence_in_parts_equals_one_pass(layer_norm):
    module = make(layer_norm=layer_norm)
    x = torch.randn(12, 4, 3, dtype=torch.float64)
    whole = module(x)
    first = module(x[:5])
    second = module(x[5:], first.state.detach())
    for a, b, c in pairs(whole.hidden, first.hidden, second.hidden):
        torch.testing.assert_close(a, torch.cat([b, c]), rtol=0, atol=1e-12)
    assert torch.equal(whole.boundaries, torch.cat([first.boundaries, second.boundaries]))
    torch.testing.assert_close(whole.state.c[2], second.state.c[2], rtol=0, atol=1e-12)


def test_steps_equal_the_sequence():
    module = make()
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    whole, state = module(x, slope=2.0), module.zero_state(4)
    for t in range(9):
        output = module.step(x[t], state, slope=2.0)
        state = output.state
        torch.testing.assert_close(output.hidden[2], whole.hidden[2][t], rtol=0, atol=1e-12)
        assert torch.equal(output.boundaries, whole.boundaries[t])


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_changes_nothing(side):
    module = make(layer_norm=True)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    gap = {"left": 0, "middle": 3, "right": 6}[side]
    junk = torch.full((4, 2, 3), 1e3, dtype=torch.float64)
    padded = torch.cat([x[:gap], junk, x[gap:]])
    valid = torch.cat([torch.ones(gap, 2), torch.zeros(4, 2), torch.ones(6 - gap, 2)]).bool()
    plain, frozen = module(x), module(padded, valid=valid)
    for a, b in pairs((*plain.state.h, *plain.state.c), (*frozen.state.h, *frozen.state.c)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in pairs(plain.hidden, frozen.hidden):
        torch.testing.assert_close(a, b[valid[:, 0]], rtol=0, atol=1e-12)
    assert torch.equal(plain.boundaries, frozen.boundaries[valid[:, 0]])
    assert not frozen.boundaries[~valid].any() and not frozen.boundary_probs[~valid].any()


def test_a_frozen_sample_keeps_its_state_bit_for_bit_and_gets_no_gradient_from_padding():
    module = make()
    state = module(torch.randn(3, 2, 3, dtype=torch.float64)).state.detach()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False]] * 4)
    output = module(x, state, valid)
    for before, after in pairs((*state.h, *state.c, state.z), (*output.state.h, *output.state.c, output.state.z)):
        assert torch.equal(before[1], after[1])
    sum(h.sum() for h in output.hidden).backward()
    assert not x.grad[:, 1].any() and x.grad[:, 0].any()


@pytest.mark.parametrize("steps, batch", [(1, 1), (1, 3), (4, 1), (0, 2), (3, 0)])
def test_small_and_empty_inputs(steps, batch):
    module = make(layer_norm=True)
    output = module(torch.randn(steps, batch, 3, dtype=torch.float64))
    assert [tuple(h.shape) for h in output.hidden] == [(steps, batch, size) for size in SIZES]
    assert output.boundaries.shape == output.boundary_probs.shape == (steps, batch, 3)
    assert output.state.z.shape == (batch, 3)


def test_the_top_layer_has_a_detector_only_if_asked():
    x = torch.randn(50, 4, 3, dtype=torch.float64)
    for top_boundary in (False, True):
        module = make(top_boundary=top_boundary, detector_bias=5.0)
        assert module(x).boundaries[..., 2].any() == top_boundary and module.num_detectors == 2 + top_boundary


def test_every_parameter_gets_a_gradient_in_every_mode():
    modes = [{"boundary": "bernoulli"}, {"boundary": "soft"}, {"nested_boundaries": True}, {"top_boundary": True}]
    for options in ({}, {"layer_norm": True}, {"detector_hidden": 3}, *modes):
        module = make(**options)
        output = module(torch.randn(40, 8, 3, dtype=torch.float64))
        (output.hidden[2].sum() + output.hidden[0].sum()).backward()
        for parameter in module.parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any()


@pytest.mark.parametrize("options", [{}, {"boundary": "bernoulli"}, {"detector_bias": 1.0}], ids=str)
def test_gradients_are_tame_at_initialisation(options):
    """FLUSHes of layers that were never written keep h at zero, where layer normalisation amplifies most."""
    for seed in range(20):
        torch.manual_seed(seed)
        module = HMLSTM(8, [16, 12, 8], layer_norm=True, **options)
        output = module(torch.randn(60, 8, 8))
        (sum(h.pow(2).sum() for h in output.hidden) / 480).backward()
        norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
        assert norm < 50


def test_initialisation():
    """Gains of the products that close a loop over time begin small, but for the detector's in the last row."""
    module = HMLSTM(7, [100, 50], layer_norm=True, forget_bias=1.5, detector_bias=-0.5)
    for layer, size in pairs(module.layers(), (100, 50)):
        assert 0.9 / size**0.5 < layer.weight_recurrent.abs().max() <= 1 / size**0.5
        assert (layer.bias[:size] == 1.5).all() and not layer.bias[size : 4 * size].any() and layer.bias[-1] == -0.5
        assert (layer.gain_bottom_up == 1).all()
        for gain in (layer.gain_recurrent, layer.gain_top_down):
            assert gain is None or (gain[-1] == 1 and (gain[:-1] == 0.3).all())
    assert [layer.gain_top_down is None for layer in module.layers()] == [False, True]


def test_a_detectors_hidden_layer_changes_nothing_at_first():
    modules = []
    for units in (0, 4):
        torch.manual_seed(3)
        modules.append(HMLSTM(7, SIZES, layer_norm=True, detector_hidden=units))
    plain, hidden = modules
    values = hidden.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in plain.state_dict().items())
    assert [w.shape for w in hidden.detector_hidden_weight] == [(4, 5 + 7 + 3), (4, 3 + 5 + 4)]
    assert hidden.detector_hidden_weight[0].abs().max() <= 1 / 15**0.5 and hidden.detector_hidden_weight[0].std() > 0.1
    x = torch.randn(9, 2, 7)
    outputs = [module(x) for module in modules]
    assert torch.equal(outputs[0].boundary_probs, outputs[1].boundary_probs)
    outputs[1].boundary_probs.sum().backward()
    assert all(output.grad.any() for output in hidden.detector_output), "it must be able to begin to learn"


def test_variational_dropout_uses_one_mask_and_only_in_training():
    torch.manual_seed(1)
    module = HMLSTM(3, [400], recurrent_dropout=0.25)
    masks = module.draw_recurrent_masks(2)
    values = masks[0].unique().tolist()
    assert values == pytest.approx([0, 1 / 0.75]) and masks[0].shape == (2, 400)
    assert 0.15 < (masks[0] == 0).float().mean() < 0.35
    x = torch.randn(5, 2, 3)
    assert not torch.equal(module(x).hidden[0], module(x).hidden[0])
    module.eval()
    assert torch.equal(module(x).hidden[0], module(x).hidden[0])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(hidden_sizes=[]), "at least one hidden size"),
        (dict(hidden_sizes=[4, 0]), "positive"),
        (dict(boundary="hard"), "unknown boundary mode 'hard': choose from step, bernoulli, soft"),
        (dict(backend="tpu"), "unknown backend 'tpu'"),
        (dict(detector_grad_scale=2.0), "detector_grad_scale must lie in"),
        (dict(detector_hidden=-1), "detector_hidden must be a number of units"),
        (dict(recurrent_dropout=1.0), "recurrent_dropout must lie in"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HMLSTM(3, **{"hidden_sizes": [4], **options})


@pytest.mark.parametrize("sizes", [5, [2.5], None])
def test_sizes_that_are_no_numbers_of_units_are_named(sizes):
    with pytest.raises(TypeError, match="hidden_sizes must be whole numbers, such as"):
        HMLSTM(3, sizes)


@pytest.mark.parametrize("name", ["input_size", "detector_hidden", "recompute_chunks"])
def test_numbers_that_are_not_whole_are_named(name):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, not 2.5"):
        HMLSTM(**{"input_size": 3, "hidden_sizes": [4], name: 2.5})


def test_an_input_that_does_not_fit_is_named():
    module = HMLSTM(7, [8, 4])
    with pytest.raises(ValueError, match=r"x must be \(T, B, 7\) for these layers, got \(3, 2, 5\)"):
        module(torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match=r"x must be a tensor \(T, B, 7\), got list"):
        module([[[0.0] * 7]])
    with pytest.raises(ValueError, match="x and tokens must be tensors, got Tensor and list"):
        module(torch.zeros(5, 7), tokens=[[1, 2]])
    for slope in ("a", None, 0.0, float("nan")):
        with pytest.raises(ValueError, match="slope of the hard sigmoid must be a positive and finite number, not"):
            module(torch.zeros(3, 2, 7), slope=slope)
    masks = [torch.ones(2, size, requires_grad=True) for size in (8, 4)]
    with pytest.raises(ValueError, match="recurrent_masks that require a gradient are for .*backend='reference'"):
        module(torch.zeros(3, 2, 7), recurrent_masks=masks)
    HMLSTM(7, [8, 4], backend="reference")(torch.ones(3, 2, 7), recurrent_masks=masks).hidden[0].sum().backward()
    assert masks[0].grad.any()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_pruned_weights_are_trained_and_stay_pruned(backend):
    """torch.nn.utils.prune makes the weight in a hook before every call, as the older weight_norm does."""
    module, x = make(backend=backend), torch.randn(4, 2, 3, dtype=torch.float64)
    prune.random_unstructured(module.weight_recurrent, "0", amount=0.5)
    pruned = module.weight_recurrent[0].eq(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    outputs = []
    for _ in range(3):
        outputs.append(module(x).hidden[-1])
        optimizer.zero_grad()
        outputs[-1].pow(2).sum().backward()
        optimizer.step()
    assert 0.4 < pruned.double().mean() < 0.6 and torch.equal(module.weight_recurrent[0].eq(0), pruned)
    assert not torch.equal(module.weight_recurrent[0], getattr(module.weight_recurrent, "0_orig"))
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    before = module(x).hidden[0]
    prune.remove(module.weight_recurrent, "0")
    assert torch.equal(module(x).hidden[0], before)


def test_packed_steps_take_what_autocast_has_made():
    module = HMLSTM(3, [4]).eval()
    packed, x, state = module.pack(), torch.randn(2, 3), module.zero_state(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = module.step(x.bfloat16(), state, packed=packed), module.step(x.bfloat16(), state)
    torch.testing.assert_close(found.hidden, expected.hidden)


def test_packed_weights_sample_no_boundaries():
    module = HMLSTM(3, [4], boundary="bernoulli", top_boundary=True)
    packed, x, state = module.pack(), torch.randn(2, 3), module.zero_state(2)
    with pytest.raises(ValueError, match="packed weights sample no boundaries: call eval"):
        module.step(x, state, packed=packed)
    module.eval()
    found, expected = module.step(x, state, packed=packed), module.step(x, state)
    torch.testing.assert_close(found.hidden[0], expected.hidden[0])


def test_state_reorders_detaches_and_converts():
    state = make()(torch.randn(3, 4, 3, dtype=torch.float64)).state
    order = torch.tensor([2, 2, 0])
    reordered = state.reorder(order)
    assert torch.equal(reordered.h[1], state.h[1][order]) and torch.equal(reordered.z, state.z[order])
    assert state.h[0].requires_grad and not state.detach().h[0].requires_grad
    assert state.to(torch.float32).c[2].dtype == torch.float32
    assert HMLSTMState.zeros(2, [3, 4]).hidden_sizes == (3, 4)


def test_layer_output_equals_its_equation():
    torch.manual_seed(0)
    module = LayerOutput([3, 5], 4)
    h = [torch.randn(2, 3), torch.randn(2, 5)]
    gates = torch.sigmoid(torch.cat(h, 1) @ module.gates.weight.t())
    expected = gates[:, :1] * (h[0] @ module.projections[0].weight.t())
    expected = torch.relu(expected + gates[:, 1:] * (h[1] @ module.projections[1].weight.t()))
    torch.testing.assert_close(module(h), expected)
    assert (expected == 0).any() and (expected > 0).any()


def test_a_pruned_output_module_trains_and_equals_its_equation():
    torch.manual_seed(0)
    module, hidden = LayerOutput([4, 3], 5).double(), [torch.randn(6, 2, size, dtype=torch.float64) for size in (4, 3)]
    for linear in (module.gates, module.projections[1]):
        prune.random_unstructured(linear, "weight", amount=0.5)
    for _ in range(2):
        found = module.over_sequence(hidden, None)
        torch.testing.assert_close(found, module(hidden))
        found.sum().backward()


def test_a_pruned_bias_moves_with_its_module():
    module = HMLSTM(3, [4])
    prune.random_unstructured(module.bias, "0", amount=0.5)
    module.double()
    assert module(torch.ones(2, 1, 3, dtype=torch.float64)).state.z.dtype == torch.float64
