"""Every checkpoint that fairseq loads is looked through first, and its weights and names before they are used for
anything but training."""

from __future__ import annotations

import contextlib
import functools
import logging
from contextvars import ContextVar
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from fairseq import checkpoint_utils

from ..fairseq_hooks import is_of_this_package
from ..resumption import hand_over_loss
from .archive import EARLIER, UnsafeCheckpointError, check_checkpoint
from .configuration import drop_unnamed_codec, forget, forget_files, registered_classes, settings
from .contents import check_dictionary, check_finite, check_structure, naming

logger = logging.getLogger(__name__)

# What of a checkpoint is to be set up as it says: "model", and "task" unless there is one.
_needed: ContextVar[Tuple[str, ...]] = ContextVar("needed", default=())
# What a training that goes on asks of the task's state in its checkpoint.
_asked: ContextVar[Optional[Callable[[Any], None]]] = ContextVar("asked", default=None)


@contextlib.contextmanager
def _for_use(*needed: str) -> Iterator[None]:
    """Checkpoints loaded meanwhile are to be used with the model (and task) that they name."""
    token = _needed.set(needed)
    try:
        yield
    finally:
        _needed.reset(token)


@contextlib.contextmanager
def asking(check: Optional[Callable[[Any], None]]) -> Iterator[None]:
    """The task's state in a checkpoint that is loaded meanwhile is given to `check`, which may raise."""
    token = _asked.set(check)
    try:
        yield
    finally:
        _asked.reset(token)


def is_loading_model() -> bool:
    """Whether fairseq is loading a model, and so sets up its task, unless it was given one, as the checkpoint says."""
    return bool(_needed.get())


def load_for_use(path: str, overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """A checkpoint whose model and task are to be set up as it says. UnsafeCheckpointError if that cannot be."""
    with _for_use("model", "task"):
        return checkpoint_utils.load_checkpoint_to_cpu(path, overrides)


def _prepare_use(path: str, checkpoint: Dict[str, Any], overrides: Dict[str, Any], needed: Tuple[str, ...]) -> None:
    """UnsafeCheckpointError if its model and task cannot be set up, or its dictionary is not data."""
    cfg = settings(checkpoint)
    if cfg is None:
        raise UnsafeCheckpointError(f'{path} does not say how its model is built: it has neither "cfg" nor "args"')
    classes = registered_classes(cfg)
    for kind in needed:
        if classes[kind] is None:
            name = getattr(getattr(cfg, kind, None), "_name", None)
            raise UnsafeCheckpointError(f"{path} names an unknown {kind}, {ascii(name)}: give its plugin's --user-dir")
    if "task" in needed and is_of_this_package(classes["task"]):
        check_dictionary(path, checkpoint.get("task_state"))
        try:
            getattr(classes["task"], "check_state", lambda state: None)(checkpoint.get("task_state"))
        except ValueError as error:
            raise UnsafeCheckpointError(f"{path} is of no use: {error}: {EARLIER}") from error
    if is_of_this_package(classes["model"]):
        forget_files(cfg, overrides)


def load_checked_files(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_checkpoint_to_cpu`, which looks through a checkpoint before it loads it."""

    @functools.wraps(load)
    def load_checked(path, arg_overrides=None, *args, **kwargs):
        check_structure(path, check_checkpoint(path))
        with naming(path):
            checkpoint = load(path, arg_overrides, *args, **kwargs)
            hand_over_loss(checkpoint)
            check, needed = _asked.get(), _needed.get()
            if check is not None:
                check(checkpoint.get("task_state"))
            if needed:
                _prepare_use(path, checkpoint, arg_overrides or {}, needed)
        return checkpoint

    return load_checked


def load_models_for_use(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_model_ensemble_and_task`, through which weights come into use for anything but training."""

    @functools.wraps(load)
    def load_models(filenames, arg_overrides=None, task=None, *args, **kwargs):
        needed = ["model"] if task is not None else ["model", "task"]
        fault = "is not a whole fairseq checkpoint, or no model can be built as its settings say"
        with _for_use(*needed), naming(", ".join(filenames), fault):
            models, cfg, task = load(filenames, arg_overrides, task, *args, **kwargs)
        for path, model in zip(filenames, models):
            check_finite(path, dict(model.named_parameters()))
        if is_of_this_package(type(task), *map(type, models)):
            if "task" in needed:  # for fairseq-validate, whose criterion teaches nothing
                forget(cfg, arg_overrides or {}, "criterion", ("boundary_supervision",), "")
            codec = drop_unnamed_codec(cfg, arg_overrides or {})
            if codec is not None and "task" in needed:  # otherwise a command takes what it is given with --bpe
                logger.warning(f"ignored the codec {codec} that {filenames[-1]} names: to use it, give bpe={codec}")
        return models, cfg, task

    return load_models


def load_average(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_ema_from_checkpoint`, which opens a checkpoint by itself."""

    @functools.wraps(load)
    def load_ema(path):
        check_checkpoint(path)
        try:
            return load(path)
        except KeyError as error:
            raise ValueError(f"{path} has no moving average: give one of a training with --store-ema") from error

    return load_ema
