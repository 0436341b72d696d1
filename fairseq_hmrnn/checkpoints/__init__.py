"""Checkpoints: where they are, whether they are safe and whole, what they say of their model, and fairseq's functions
that load and write them."""

import fairseq.trainer
from fairseq import checkpoint_utils, file_io

from .. import compat
from ..fairseq_hooks import wrap_once
from .archive import UnsafeCheckpointError, check_checkpoint
from .configuration import check_overrides, drop_unnamed_codec, forget_files, settings
from .contents import check_finite, is_dictionary, naming
from .loading import is_loading_model, load_average, load_checked_files, load_for_use, load_models_for_use
from .paths import data_folder, find_checkpoint, split_checkpoints
from .resuming import load_to_train
from .writing import FULL, copy_whole_files

__all__ = [
    "FULL",
    "UnsafeCheckpointError",
    "check_checkpoint",
    "check_finite",
    "check_overrides",
    "data_folder",
    "drop_unnamed_codec",
    "find_checkpoint",
    "forget_files",
    "install",
    "is_dictionary",
    "is_loading_model",
    "load_for_use",
    "naming",
    "settings",
    "split_checkpoints",
]


def install() -> None:
    """Check every checkpoint that fairseq loads, and have it write whole ones. Called when the package is imported."""
    compat.allow_in_torch()
    wrap_once(checkpoint_utils, "load_checkpoint_to_cpu", load_checked_files)
    wrap_once(checkpoint_utils, "load_model_ensemble_and_task", load_models_for_use)
    wrap_once(checkpoint_utils, "load_ema_from_checkpoint", load_average)
    wrap_once(fairseq.trainer.Trainer, "load_checkpoint", load_to_train)
    wrap_once(file_io.PathManager, "copy", copy_whole_files)
