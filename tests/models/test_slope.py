"""Slope schedules against the published ones."""

import pytest

from fairseq_hmrnn.models.slope import SlopeSchedule


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
