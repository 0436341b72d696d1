"""What a failing comparison of kernels says."""

from operator import attrgetter

import pytest
import torch
from problems import assert_close, assert_every_option_varies, make_problem, tensors

from fairseq_hmrnn.ops import RecurrenceOptions
from fairseq_hmrnn.ops.reference import hm_lstm_reference


def named(label, root):
    """The tensor of a label, such as `gradient of layers[1].bias`, looked up from the root."""
    name, _, index = label.rpartition(" ")[2].partition("[")
    if not index:
        return attrgetter(name)(root)
    index, _, field = index.partition("]")
    found = attrgetter(name)(root)[int(index)]
    return getattr(found, field[1:]) if field else found


@pytest.mark.parametrize("more", [{}, {"layer_norm": True, "detector_hidden": 3}], ids=["plain", "everything"])
def test_every_tensor_has_its_name(more):
    problem = make_problem(1, 2, 3, [5, 4, 6], RecurrenceOptions(), **more)
    output = hm_lstm_reference(*problem)
    for labels, found, root in (
        (problem.outputs, tensors(output), output), (problem.gradients, problem.leaves(), problem)
    ):  # fmt: skip
        assert len(labels) == len(found) == len(set(labels))
        assert all(named(label, root) is tensor for label, tensor in zip(labels, found))


def test_a_difference_names_its_tensor():
    problem = make_problem(1, 2, 3, [5, 4], RecurrenceOptions())
    leaves = problem.leaves()
    found = [leaf + 1.0 * (leaf is problem.layers[1].weight_recurrent) for leaf in leaves]
    with pytest.raises(AssertionError, match=r"gradient of layers\[1\].weight_recurrent: "):
        assert_close(found, leaves, 1e-3, problem.gradients)
    with pytest.raises(AssertionError, match="tensor 0: 1.0 of 1.0"):
        assert_close([torch.ones(2)], [torch.zeros(2)], 1e-3)


def test_an_option_that_no_problem_varies_is_named():
    names = set(RecurrenceOptions._fields)
    assert_every_option_varies(names)
    with pytest.raises(AssertionError, match="no problem varies slope, .*test_recurrence.py.*triton_problems.py"):
        assert_every_option_varies(names - {"slope"})
