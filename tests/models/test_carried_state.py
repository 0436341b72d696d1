"""State between windows: who sees which, what is cut off, and what happens out of order."""

import weakref

import pytest
import small_language_model
import torch
from pairs import same_bits
from small_language_model import DICTIONARY

from fairseq_hmrnn.ops import HMLSTMState

X = torch.randint(4, len(DICTIONARY), (3, 12), generator=torch.Generator().manual_seed(2))


def make():
    """In training mode, in which it keeps the state for the next window."""
    return small_language_model.make().train()


def window(index, length=4):
    return X[:, index * length : (index + 1) * length]


def read(model, index, stream="train", **more):
    return model(window(index), stream=stream, window=index, **more)[0]


def test_windows_continue_each_other_and_gradients_stop_between_them():
    model = make()
    whole = model(X)[0]
    parts = [read(model, index) for index in range(3)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    kept = model.carried_in_training.state
    assert not any(tensor.requires_grad for tensor in (*kept.h, *kept.c, kept.z))
    torch.testing.assert_close(read(model, 0), whole[:, :4], rtol=0, atol=1e-12)  # a new epoch starts from zeros


def test_training_and_evaluation_never_see_each_other():
    model, alone = make(), make()
    for index in range(3):
        assert torch.equal(read(model, index), read(alone, index))
        model.eval()
        evaluated = [model(window(other).flip(1), stream="train", window=other)[0] for other in range(index + 1)]
        model.train()
    whole = model.eval()(torch.cat([window(other).flip(1) for other in range(3)], dim=1))[0]
    torch.testing.assert_close(torch.cat(evaluated, dim=1), whole, rtol=0, atol=1e-12)
    assert torch.equal(read(model, 0, "valid"), model(window(0))[0])


def test_the_windows_of_an_update_can_be_read_again():
    model = make()
    model.set_num_updates(4)
    read(model, 0)
    model.set_num_updates(5)
    first = [read(model, index) for index in (1, 2)]
    again = [read(model, index) for index in (1, 2)]
    assert same_bits(first, again)


@torch.no_grad()
def test_no_state_is_kept_longer_than_it_may_be_asked_for():
    model, ends = make(), []
    model.eval()
    for index in range(3):
        read(model, index)
        ends.append(weakref.ref(model.carried_in_evaluation.state.z))
    assert [end() is None for end in ends] == [True, True, False]
    model.train()
    ends = []
    for index in range(3):
        model.set_num_updates(index)
        read(model, index)
        ends.append(weakref.ref(model.carried_in_training.state.z))
    assert [end() is None for end in ends] == [True, False, False]  # the second is the start of the last window


def test_another_text_does_not_go_on_from_this_one(caplog):
    model = make_after(0)
    torch.testing.assert_close(read(model, 1, "train2"), model(window(1))[0], rtol=0, atol=1e-12)
    assert "window 1 of train2 starts from zeros" in caplog.text


def test_reset_rows_start_from_zeros_in_training_only():
    model = make()
    read(model, 0)
    zeros, carried = model(window(1))[0], read(make_after(0), 1)
    mixed = read(model, 1, reset=torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed[::2], zeros[::2], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed[1], carried[1], rtol=0, atol=1e-12)
    assert not torch.allclose(mixed[0], carried[0])
    model.eval()
    read(model, 0)
    torch.testing.assert_close(read(model, 1, reset=torch.ones(3, dtype=torch.bool)), carried, rtol=0, atol=1e-12)


def make_after(last):
    model = make()
    for index in range(last + 1):
        read(model, index)
    return model


def test_a_window_whose_predecessor_was_not_read_starts_from_zeros_with_a_warning(caplog):
    model = make()
    read(model, 0)
    torch.testing.assert_close(read(model, 2), model(window(2))[0], rtol=0, atol=1e-12)
    assert "window 2 of train starts from zeros" in caplog.text


def test_state_can_be_saved_and_restored_bit_for_bit():
    model, other = make_after(0), make()
    assert other.carried_in_training.save() is None
    other.carried_in_training.restore(model.carried_in_training.save())
    assert torch.equal(read(model, 1), read(other, 1))
    packed = model.carried_in_training.save()["rows"]
    assert packed.shape == (3, 2 * (8 + 5 + 7) + 3)
    with pytest.raises(ValueError, match=r"layers \[8, 5\] has 28 columns, not 43"):
        HMLSTMState.unpack(packed, [8, 5])
