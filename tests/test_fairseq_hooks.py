"""Functions of fairseq's that the package wraps."""

import functools
import types

import fairseq.trainer
from fairseq import checkpoint_utils, file_io

from fairseq_hmrnn import checkpoints, fairseq_hooks, resumption, training_options
from fairseq_hmrnn.models import moving_average


def doubled(function):
    @functools.wraps(function)
    def twice(*args):
        return 2 * function(*args)

    return twice


def plus_one(function):
    @functools.wraps(function)
    def increased(*args):
        return function(*args) + 1

    return increased


def test_a_function_is_wrapped_once_by_each_whoever_else_wraps_it():
    owner = types.SimpleNamespace(value=lambda: 5)
    owner.value = plus_one(owner.value)  # another package's, which functools.wraps marks as a wrapper too
    for _ in range(2):
        fairseq_hooks.wrap_once(owner, "value", doubled)
    assert owner.value() == 12
    owner.value = plus_one(owner.value)
    for _ in range(2):
        fairseq_hooks.wrap_once(owner, "value", doubled)
        fairseq_hooks.wrap_once(owner, "value", plus_one)
    assert owner.value() == 14


def test_static_methods_stay_static():
    class Owner:
        @staticmethod
        def value():
            return 5

    fairseq_hooks.wrap_once(Owner, "value", doubled)
    assert Owner().value() == Owner.value() == 10


def test_installing_again_changes_nothing():
    owners = checkpoint_utils, file_io.PathManager, fairseq.trainer, fairseq.trainer.Trainer
    before = [dict(vars(owner)) for owner in owners]
    for module in (checkpoints, moving_average, resumption, training_options):
        module.install()
    assert [dict(vars(owner)) for owner in owners] == before
