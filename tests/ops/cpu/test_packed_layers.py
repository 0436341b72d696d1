"""Weights that are packed once for many calls, against the reference."""

import copy

import pytest
import torch
from kernel_paths import both_paths, options
from problems import assert_close, make_problem, tensors

from fairseq_hmrnn.ops import cpu
from fairseq_hmrnn.ops.reference import hm_lstm_reference


@both_paths
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("projected", [False, True], ids=["x", "table"])
@pytest.mark.parametrize("detector_hidden", [0, 3], ids=["row", "hidden"])
def test_packed_layers_step_like_the_sequence(detector_hidden, layer_norm, projected, path):
    problem = make_problem(5, 25, 4, [33, 20, 9], options(), layer_norm=layer_norm, detector_hidden=detector_hidden)
    packed, state = cpu.PackedLayers(problem.layers, path), problem.state
    expected = tensors(hm_lstm_reference(*problem))
    x = packed.project(problem.x) if projected else problem.x
    for t in range(25):
        output = packed(x[t : t + 1], state, problem.options, projected=projected)
        state = output.state
        assert_close([output.hidden[1][0], output.boundaries[0]], [expected[1][t], expected[3][t]], 1e-10)
    assert not state.z.requires_grad
    for steps in (2, 7):  # fewer symbols than the table has, and more
        tokens = torch.randint(25, (steps, 4), generator=torch.Generator().manual_seed(1))
        whole = packed(x[:, 0], problem.state, problem.options, projected=projected, tokens=tokens)
        read = problem._replace(x=problem.x[:, 0][tokens])
        assert_close(tensors(whole), tensors(hm_lstm_reference(*read)), 1e-10)
    with pytest.raises(ValueError, match="with tokens x must be"):
        packed(x, problem.state, problem.options, projected=projected, tokens=tokens)
    with pytest.raises(ValueError, match="state.z has shape"):
        packed(x[:1, :2], state, problem.options, projected=projected)
    with pytest.raises(ValueError, match="x must be"):
        packed(x[:1, :, :3], state, problem.options, projected=projected)
    with pytest.raises(ValueError, match="valid must be"):
        packed(x[:1], state, problem.options, torch.tensor([[True]]), projected=projected)


@both_paths
def test_packed_layers_are_copied_with_what_holds_them(path):
    problem = make_problem(1, 3, 2, [5, 6], options())
    packed = cpu.PackedLayers(problem.layers, path)
    given = problem.x, problem.state.detach(), problem.options
    assert_close(tensors(copy.deepcopy([packed])[0](*given)), tensors(packed(*given)), 0)


def test_packed_layers_are_checked():
    problem = make_problem(1, 3, 2, [5, 6], options())
    layers = problem.layers
    for make in (lambda: cpu.PackedLayers(layers, "compile"), lambda: cpu.hm_lstm_cpu(*problem, path="compile")):
        with pytest.raises(ValueError, match='path must be "compiled" or "python"'):
            make()
    with pytest.raises(ValueError, match="bias of layer 1 has shape"):
        cpu.PackedLayers([layers[0], layers[1]._replace(bias=layers[0].bias)])


@both_paths
def test_packed_layers_refuse_a_hidden_layer_without_detector(path):
    problem = make_problem(1, 3, 2, [5, 6], options(top_boundary=True), detector_hidden=3)
    packed = cpu.PackedLayers(problem.layers, path)
    packed(problem.x, problem.state, problem.options)
    with pytest.raises(ValueError, match="top layer has no detector"):
        packed(problem.x, problem.state, options())


@both_paths
@pytest.mark.parametrize("steps, batch", [(1, 1), (3, 2)], ids=["one row", "rows"])
@pytest.mark.parametrize("detector_hidden", [0, 3], ids=["row", "hidden"])
def test_packed_layers_leave_a_table_as_it_is(detector_hidden, steps, batch, path):
    """Layer normalisation changes a copy of it, also of a single row, which is contiguous in any case."""
    problem = make_problem(1, steps, batch, [5, 6], options(), layer_norm=True, detector_hidden=detector_hidden)
    packed = cpu.PackedLayers(problem.layers, path)
    x = packed.project(problem.x)
    before = x.clone()
    found = packed(x, problem.state, problem.options, projected=True)
    assert torch.equal(x, before)
    assert_close(tensors(found), tensors(hm_lstm_reference(*problem)), 1e-10)


@both_paths
def test_packed_layers_take_a_mask_that_is_not_contiguous(path):
    problem = make_problem(6, 4, 5, [12, 9], options())
    valid = torch.rand(5, 4).lt(0.5).t()
    expected = hm_lstm_reference(*problem._replace(valid=valid))
    found = cpu.PackedLayers(problem.layers, path)(problem.x, problem.state, problem.options, valid)
    assert_close(tensors(found), tensors(expected), 1e-10)
