"""The plateau rule over a checkpoint that was written at an epoch's end, before the scheduler heard of its loss."""

import copy
from argparse import Namespace

import pytest
import torch
from fairseq.optim.sgd import SGD

from fairseq_hmrnn.optim.lr_scheduler import ExactReduceLROnPlateau, ExactReduceLROnPlateauConfig
from fairseq_hmrnn.resumption import hand_over_loss


def make(patience=0):
    optimizer = SGD(Namespace(momentum=0.0, weight_decay=0.0, lr=[0.5]), [torch.nn.Parameter(torch.zeros(1))])
    config = ExactReduceLROnPlateauConfig(lr=[0.5], lr_shrink=0.02, lr_patience=patience)
    config.maximize_best_checkpoint_metric = False
    return ExactReduceLROnPlateau(config, optimizer), optimizer


@pytest.mark.parametrize(
    "patience, losses, expected",
    [
        (0, [3.0, 2.0, 2.5, 1.5, 1.6], [0.5, 0.5, 0.01, 0.01, 0.0002]),
        (1, [3.0, 2.0, 2.5, 1.5, 1.6], [0.5, 0.5, 0.5, 0.5, 0.5]),
        (2, [2.0, 2.5, 2.6, 2.7, 1.0], [0.5, 0.5, 0.5, 0.01, 0.01]),
    ],
)
def test_divides_by_50_where_it_stops_improving_however_often_it_is_resumed(patience, losses, expected):
    (whole, optimizer), (parts, resumed) = make(patience), make(patience)
    for epoch, loss in enumerate(losses, start=1):
        assert whole.step(epoch, loss) == pytest.approx(expected[epoch - 1])
        state = {
            "extra_state": {"val_loss": loss, "train_iterator": {"iterations_in_epoch": 0}},
            "optimizer_history": [{"lr_scheduler_state": parts.state_dict()}],
        }
        weights = copy.deepcopy(resumed.optimizer.state_dict())
        hand_over_loss(state)
        parts, resumed = make(patience)
        parts.load_state_dict(state["optimizer_history"][-1]["lr_scheduler_state"])
        resumed.optimizer.load_state_dict(weights)
        for _ in range(2):  # fairseq does so twice when it resumes
            parts.step(epoch + 1)
        assert resumed.get_lr() == optimizer.get_lr()
        assert parts.state_dict()["num_bad_epochs"] == whole.state_dict()["num_bad_epochs"]


@pytest.mark.parametrize("reset", [False, True])
def test_the_learning_rate_of_a_loaded_optimizer_stays_unless_the_schedule_is_reset(reset):
    schedule, optimizer = make()
    schedule.step_update(0)  # fairseq does so when it has built the optimizer
    if not reset:
        schedule.load_state_dict({"best": 1.0, "last_epoch": 2})
    optimizer.set_lr(0.01)  # of the checkpoint
    assert schedule.step_update(700) == (0.5 if reset else 0.01)
    schedule.step(3, 2.0)
    schedule.step(4, 3.0)
    lr = optimizer.get_lr()
    assert lr < 0.5 and schedule.step_update(701) == lr


def test_goes_on_from_fairseqs_own_rule_which_keeps_no_count():
    schedule, _ = make()
    schedule.load_state_dict({"best": 1.0, "last_epoch": 2})
    assert schedule.state_dict() == {"best": 1.0, "last_epoch": 2, "num_bad_epochs": 0}


def test_only_a_checkpoint_of_an_epochs_end_hands_over_its_loss():
    for position, loss in ((7, 1.0), (0, None)):
        state = {"extra_state": {"val_loss": loss, "train_iterator": {"iterations_in_epoch": position}}}
        state["optimizer_history"] = [{"lr_scheduler_state": {}}]
        hand_over_loss(state)
        assert state["optimizer_history"] == [{"lr_scheduler_state": {}}]
    hand_over_loss({"model": {}})
