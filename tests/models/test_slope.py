"""Slope schedules against the published ones."""

import copy

import pytest
import torch

from fairseq_hmrnn.models.slope import SlopeProgress, SlopeSchedule


def test_the_schedule_of_penn_treebank():
    schedule = SlopeSchedule(1, 5, per_epoch=0.04)
    assert schedule(0, 999) == 1
    assert schedule(25, 0) == pytest.approx(2)
    assert schedule(100, 0) == 5
    assert schedule(1000, 0) == 5


def test_by_update():
    assert SlopeSchedule(0.5, 3, per_update=0.001)(7, 500) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", [SlopeSchedule(0), SlopeSchedule(6, 5), SlopeSchedule(per_epoch=-1)])
def test_impossible_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match="slope"):
        schedule.check()


@pytest.mark.parametrize("write", ["in place", "another buffer", "load", "from a copy"])
def test_the_slope_is_that_of_the_buffer_whoever_writes_to_it(write):
    """As torch's averages of models and its distributed wrapper do."""
    trained, other = (SlopeProgress(SlopeSchedule(1, 5, per_epoch=0.5)) for _ in range(2))
    trained.set_epoch(4)
    trained.set_num_updates(30)
    assert (trained.slope, other.slope, other.num_updates) == (2.5, 1.0, 0)
    if write == "in place":
        other.progress.copy_(trained.progress)
    elif write == "another buffer":
        other.progress = trained.progress.clone()
    elif write == "load":
        other.load_state_dict(trained.state_dict())
    else:
        other = copy.deepcopy(trained)
    assert (other.slope, other.num_updates) == (2.5, 30)
    other.set_num_updates(31)
    assert other.progress.tolist() == [3, 31] and trained.progress.tolist() == [3, 30]


def test_a_buffer_that_cannot_be_read_follows_what_is_set():
    """As one on a GPU, which would be waited for."""
    progress = SlopeProgress(SlopeSchedule(1, 5, per_update=0.5)).to("meta")
    for update in range(3):
        progress.set_num_updates(update)
        assert progress.slope == 1 + update / 2 and progress.num_updates == update


def test_the_slope_is_loaded_in_inference_mode():
    trained = SlopeProgress(SlopeSchedule(1, 5, per_epoch=0.5))
    trained.set_epoch(4)
    with torch.inference_mode():
        loaded = SlopeProgress(SlopeSchedule(1, 5, per_epoch=0.5))
        loaded.load_state_dict(trained.state_dict())
        assert loaded.slope == 2.5
        assert loaded.state_dict(prefix="a.")["a.progress"].tolist() == [3, 0]
