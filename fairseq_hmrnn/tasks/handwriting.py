"""Handwriting: lines of pen strokes, each a sequence of its own."""

import math
from dataclasses import dataclass
from typing import Optional

from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II

from ..data.handwriting import HandwritingDataset, Normalization, load_normalization, load_split
from ..options import SEED, CheckedOptions, check_config, option, whole
from ..resumption import keep_batches
from .mixin import TaskMixin, trained_split


@dataclass
class HMLSTMHandwritingTaskConfig(FairseqDataclass):
    data: str = option("", "folder that fairseq-hmrnn prepare handwriting wrote")
    max_line_steps: Optional[int] = option(
        None, "leave out lines of training with more steps, for memory; none: keep all", whole(1, optional=True)
    )
    seed: int = option(II("common.seed"), "seed of the order of lines", SEED)
    train_subset: str = II("dataset.train_subset")


@register_task("hmlstm_handwriting", dataclass=HMLSTMHandwritingTaskConfig)
class HMLSTMHandwritingTask(CheckedOptions, TaskMixin, FairseqTask):
    """Predict each step of a pen from those before it, in lines of handwriting."""

    @classmethod
    def setup_task(cls, cfg, task_state=None, **kwargs):
        """The task of a prepared folder, or of a checkpoint whose `task_state` is given. FileNotFoundError where the
        folder is no prepared one."""
        check_config(cfg, HMLSTMHandwritingTaskConfig)
        task = super().setup_task(cfg, **kwargs)
        found = cls.check_state(task_state)
        task.normalization = load_normalization(task.folder) if found is None else found
        return task

    @staticmethod
    def check_state(task_state) -> Optional[Normalization]:
        """The normalisation in a checkpoint's `task_state`, None where that is empty; ValueError for one without it."""
        return Normalization.checked(task_state.get("normalization")) if task_state else None

    @property
    def folder(self) -> str:
        return (utils.split_paths(self.cfg.data) or [""])[0]

    # There are no symbols; official fairseq raises NotImplementedError unless a task says so.
    source_dictionary = None
    target_dictionary = None

    def load_dataset(self, split, combine=False, **kwargs):
        """Load a split; the error for a missing one names those that there are."""
        strokes = load_split(self.folder, split)
        trained = split == trained_split(self.cfg)
        longest = self.cfg.max_line_steps if trained else None
        self.datasets[split] = HandwritingDataset(strokes, longest or math.inf, shuffle=trained)

    def build_criterion(self, cfg, *args, **kwargs):
        criterion = super().build_criterion(cfg, *args, **kwargs)
        if not getattr(criterion, "scores_steps", False):
            raise ValueError("the task hmlstm_handwriting requires --criterion handwriting_likelihood")
        return criterion

    def build_model(self, cfg, *args, **kwargs):
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        kind = ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)
        if kind is not None and not hasattr(kind, "distribution"):
            raise ValueError("the task hmlstm_handwriting requires a model of it, such as --arch hmlstm_handwriting")
        return super().build_model(cfg, *args, **kwargs)

    def get_batch_iterator(self, dataset, **kwargs):
        """fairseq's, of the batches that training began with."""
        return keep_batches(self, super().get_batch_iterator, dataset, **kwargs)

    def state_dict(self):
        """With the normalisation: samples then have the corpus' units without the data folder."""
        return {**super().state_dict(), "normalization": [list(row) for row in self.normalization]}

    def check_resumed(self, task_state) -> None:
        """ValueError where the folder was prepared with other training lines than that of a checkpoint."""
        if self.check_state(task_state) != self.normalization:
            raise ValueError(
                f"the checkpoint was trained on strokes that were normalised in another way than {self.folder}: give "
                "the folder that it was trained on"
            )

    def load_state_dict(self, state_dict):
        """Load a checkpoint's state; ValueError as `check_resumed` raises it."""
        self.check_resumed(state_dict)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "normalization"})
