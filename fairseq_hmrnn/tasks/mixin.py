"""Common to the tasks of this package."""

from __future__ import annotations

import math

from omegaconf.errors import OmegaConfBaseException


def trained_split(cfg) -> str:
    """The split that fairseq trains; the usual one where the options of a task were not part of a whole
    configuration."""
    try:
        name = str(cfg.train_subset)
    except (AttributeError, OmegaConfBaseException):
        return "train"
    return "train" if name.startswith("${") else name  # of a dataclass by itself


class TaskMixin:
    """Mixin, listed before a fairseq task among the bases: passes the epoch to models, keeps batches of every size, and
    ends a training whose learning rate has no meaning."""

    passes_epoch = True  # to models that anneal slopes by it

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        if hasattr(model, "set_epoch"):  # not every model of official fairseq has it
            model.set_epoch(epoch)

    def get_batch_iterator(self, *args, **kwargs):
        """fairseq's, keeping batches whose size is no multiple of 8: ve-fairseq would drop them."""
        return super().get_batch_iterator(*args, **{**kwargs, "required_batch_size_multiple": 1})

    def optimizer_step(self, optimizer, model, update_num):
        """fairseq's; ValueError for a rate that is negative or not finite, as its schedules make of some options."""
        lr = optimizer.get_lr()
        if not 0 <= lr < math.inf:
            raise ValueError(f"the learning rate is {lr}: give other --lr or options of --lr-scheduler")
        super().optimizer_step(optimizer, model, update_num)
