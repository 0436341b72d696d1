"""State that fairseq loses when training is started again, for tasks, models and criterions of this package.

Saved or kept:
- the validation loss of the epoch at whose end training stopped
- for how long validation has not improved (--patience)
- whether training has already ended
- the batches with which training began
- what a criterion keeps beside its weights
- the optimizer's float32 weights, where the model's have 16 bits
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any, Callable, Dict, Optional

from fairseq import checkpoint_utils

from .fairseq_hooks import is_of_this_package, running_command, takes_part, wrap_once
from .optim import mixed_precision

logger = logging.getLogger(__name__)


def hand_over_loss(checkpoint: Dict[str, Any]) -> None:
    """fairseq writes an epoch's last checkpoint before it gives the scheduler that epoch's validation loss, and when it
    resumes it never does: put the loss into the state of this package's scheduler, as `missed_loss`, if it is such a
    checkpoint. Others ignore it."""
    extra = checkpoint.get("extra_state") or {}
    position = extra.get("train_iterator") or {}
    if position.get("iterations_in_epoch") == 0 and extra.get("val_loss") is not None:
        for entry in (checkpoint.get("optimizer_history") or [])[-1:]:
            if "lr_scheduler_state" in entry:
                entry["lr_scheduler_state"]["missed_loss"] = extra["val_loss"]


def keep_batches(task, get_batch_iterator: Callable[..., Any], dataset, epoch: int = 1, **options):
    """The iterator of `task.get_batch_iterator`, its batches those of a training that began with epoch 1.

    fairseq makes batches once and shuffles them in every epoch by seed and epoch; ve-fairseq makes them under the seed
    of the epoch in which the process starts, so that a resumed training would read others than an unbroken one.
    """
    made_anew = options.get("disable_iterator_cache") or options.get("update_epoch_batch_itr")
    if made_anew or not task.can_reuse_epoch_itr(dataset) or dataset in task.dataset_to_epoch_iter:
        return get_batch_iterator(dataset, epoch=epoch, **options)
    iterator = get_batch_iterator(dataset, epoch=1, **options)
    iterator.epoch = max(epoch, 1)
    dataset.set_epoch(iterator.epoch)
    return iterator


class _Ended:
    """In place of an iterator over epochs, with none left: NaN compares false with fairseq's last epoch."""

    next_epoch_idx = math.nan


def _why_ended(trainer) -> Optional[str]:
    """By which of its limits training ended before it was started again; None if it did not."""
    options, updates = trainer.cfg.optimization, trainer.get_num_updates()
    if 0 < (options.max_update or 0) <= updates:
        return f"{updates} updates of --max-update {options.max_update} were made"
    if 0 < (options.stop_time_hours or 0) < trainer.cumulative_training_time() / 3600:
        return f"--stop-time-hours {options.stop_time_hours} are over"
    patience, bad = trainer.cfg.checkpoint.patience, _early_stopping().get("num_runs", 0)
    if 0 < patience <= bad:
        return f"validation had not improved for {bad} times, --patience {patience}"
    return None


def _early_stopping() -> Dict[str, Any]:
    """The counts for --patience of fairseq-train: the best validation and the number since, if it has begun."""
    train = running_command("train")
    return {} if train is None else vars(train.should_stop_early)


def _saves_whole(save: Callable[..., Any], trainer) -> Callable[..., Any]:
    @functools.wraps(save)
    def save_checkpoint(filename, extra_state):
        counted = {key: value for key, value in _early_stopping().items() if key in ("best", "num_runs")}
        more = {"early_stopping": counted}
        if trainer.should_save_checkpoint_on_current_rank:
            if not trainer.cfg.checkpoint.no_save_optimizer_state:
                more["mixed_precision"] = mixed_precision.training_state(trainer.optimizer)
            if hasattr(trainer.get_criterion(), "training_state"):
                more["criterion"] = trainer.get_criterion().training_state()
        return save(filename, {**extra_state, **{name: state for name, state in more.items() if state}})

    return save_checkpoint


def _gather_first(save: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `save_checkpoint`, which every process calls and the first one writes: with what the others hold of the
    task's state, if it has `gather_carried`."""

    @functools.wraps(save)
    def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
        if hasattr(trainer.task, "gather_carried") and not cfg.no_save:
            trainer.task.gather_carried()
        return save(cfg, trainer, epoch_itr, val_loss)

    return save_checkpoint


def _resume_whole(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_checkpoint`, with which training begins, new or resumed."""

    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **kwargs):
        if not takes_part(trainer):
            return load(cfg, trainer, **kwargs)
        _prepare(trainer)
        try:
            extra_state, epoch_itr = load(cfg, trainer, **kwargs)
        except RuntimeError as error:
            if "dataloader mismatch" not in str(error):
                raise
            raise ValueError(
                "the checkpoint lies within an epoch of smaller batches or other data: give those that it was trained "
                "with, or --reset-dataloader to count epochs from 1 again"
            ) from error
        float32 = (extra_state or {}).pop("mixed_precision", {})  # fairseq keeps the rest to the end
        if trainer.get_num_updates() > 0:  # resumed, not begun with the weights of another model
            mixed_precision.load_training_state(trainer.optimizer, float32)
            epoch_itr = _restore(cfg, trainer, extra_state, epoch_itr)
        return extra_state, epoch_itr

    return load_checkpoint


def _prepare(trainer) -> None:
    """Have a trainer save whole checkpoints and read the batches that training began with. ValueError for an option
    with which it would not."""
    data, task = trainer.cfg.dataset, trainer.task
    if getattr(data, "update_ordered_indices_seed", False) and not data.update_epoch_batch_itr:
        raise ValueError(
            "--update-ordered-indices-seed alone only makes a resumed training read other batches: give "
            "--update-epoch-batch-itr true too, or leave it out"
        )
    trainer.save_checkpoint = _saves_whole(trainer.save_checkpoint, trainer)
    if not is_of_this_package(type(task)):
        task.get_batch_iterator = functools.partial(keep_batches, task, task.get_batch_iterator)


def _restore(cfg, trainer, extra_state: Dict[str, Any], epoch_itr):
    """Put back what fairseq left in a checkpoint; the iterator over epochs, one with none left if training has
    ended."""
    if not cfg.reset_meters:  # as fairseq does with the best validation
        _early_stopping().update(extra_state.get("early_stopping") or {})
    if extra_state.get("criterion") and hasattr(trainer.get_criterion(), "load_training_state"):
        trainer.get_criterion().load_training_state(extra_state["criterion"])
    reason = _why_ended(trainer)
    if reason is None:
        return epoch_itr
    logger.info(f"training has already ended: {reason}; raise it to go on")
    return _Ended()


def install() -> None:
    """Have fairseq-train save what resuming requires, and resume whole. Called when the package is imported."""
    wrap_once(checkpoint_utils, "load_checkpoint", _resume_whole)
    wrap_once(checkpoint_utils, "save_checkpoint", _gather_first)
