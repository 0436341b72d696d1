"""Checks of a checkpoint before it is used, and writing that leaves none half done.

`install` has fairseq look through every checkpoint before it loads it (`archive.py`), and through its weights and names
before they are used for anything but training.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import glob
import logging
import os
import pickle
import traceback
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import fairseq.trainer
import torch
from fairseq import checkpoint_utils, file_io
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.optim.lr_scheduler import FairseqLRScheduler
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from . import compat
from .archive import EARLIER, UnsafeCheckpointError, check_checkpoint, first_line, misfit
from .fairseq_hooks import is_of_this_package, registered_options, takes_part, wrap_once
from .options import nearest
from .resumption import hand_over_loss

logger = logging.getLogger(__name__)

# Codecs that need no file, and so can be taken from a checkpoint as they are.
_CODECS_WITHOUT_FILES = {"bytes", "characters"}

MISFIT = "does not fit the options or the data that were given"
CHECKPOINT_NAMES = ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt")


def find_checkpoint(path: str) -> str:
    """The checkpoint itself, or the best one of a folder."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"no {path}: give a checkpoint file, or a folder with one")
        if not os.path.isfile(path):
            raise ValueError(f"{path} is not a regular file: give a checkpoint file, or a folder with one")
        return path
    for name in CHECKPOINT_NAMES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise FileNotFoundError(f"no {', '.join(CHECKPOINT_NAMES)} in {path}: name the checkpoint file")


def split_checkpoints(path: str, names: Optional[str]) -> List[str]:
    """Paths of a checkpoint `path`, or of those in the folder `path` whose names have ":" between them."""
    return [os.path.join(path, name) if name else path for name in (names or "").split(os.pathsep)]


def data_folder(data: str, checkpoint: str) -> str:
    """`data`, or where it begins with "." the folder of that name seen from the checkpoint's, as in fairseq's hub, if
    it has a dictionary."""
    seen_from_there = os.path.join(os.path.dirname(os.path.abspath(checkpoint)), data)
    there = data.startswith(".") and glob.glob(os.path.join(glob.escape(seen_from_there), "dict*.txt"))
    return seen_from_there if there else data


def _check_structure(path: str, contents: Any) -> None:
    """UnsafeCheckpointError unless it is a dict with a model's weights."""
    if not isinstance(contents, dict):
        kind = type(contents).__name__ if isinstance(contents, (list, tuple, str, int, float)) else "single object"
        raise UnsafeCheckpointError(f"{path} is not a fairseq checkpoint: it holds a {kind}, not a dict with a model")
    if not isinstance(contents.get("model"), dict) or not contents["model"]:
        raise UnsafeCheckpointError(f'{path} is not a fairseq checkpoint: it has no "model" with weights')


# The parts that `load_checkpoint_to_cpu` checks of a whole checkpoint: "model", and "task" if its own is set up.
_needed: List[str] = []


@contextlib.contextmanager
def _for_use(*needed: str) -> Iterator[None]:
    """Checkpoints loaded meanwhile are to be used with the model (and task) that they name."""
    before = _needed[:]
    _needed[:] = needed
    try:
        yield
    finally:
        _needed[:] = before


def is_loading_model() -> bool:
    """Whether fairseq is loading a model, and so sets up its task, unless it was given one, as the checkpoint says."""
    return bool(_needed)


def load_for_use(path: str, overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """A checkpoint whose model and task are to be set up as it says. UnsafeCheckpointError if that cannot be."""
    with _for_use("model", "task"):
        return checkpoint_utils.load_checkpoint_to_cpu(path, overrides)


def settings(checkpoint: Dict[str, Any]):
    """The configuration that a model was trained with, whichever way the checkpoint has it; None if it has none."""
    if checkpoint.get("cfg") is not None:
        return checkpoint["cfg"]
    return convert_namespace_to_omegaconf(checkpoint["args"]) if checkpoint.get("args") is not None else None


def _registered(cfg) -> Dict[str, Any]:
    """The classes of the model and the task that a configuration names; None where no such name is known."""
    model, task = getattr(cfg, "model", None), getattr(cfg, "task", None)
    model = getattr(model, "_name", None) or getattr(model, "arch", None)
    task = getattr(task, "_name", None) or getattr(task, "task", None)
    return {
        "model": ARCH_MODEL_REGISTRY.get(model) or MODEL_REGISTRY.get(model),
        "task": TASK_REGISTRY.get(task),
    }


def _prepare_use(path: str, checkpoint: Dict[str, Any], overrides: Dict[str, Any]) -> None:
    """UnsafeCheckpointError if its model and task cannot be set up, or its dictionary is not data."""
    cfg = settings(checkpoint)
    if cfg is None:
        raise UnsafeCheckpointError(f'{path} does not say how its model is built: it has neither "cfg" nor "args"')
    classes = _registered(cfg)
    for kind in _needed:
        if classes[kind] is None:
            name = getattr(getattr(cfg, kind, None), "_name", None)
            raise UnsafeCheckpointError(f"{path} names an unknown {kind}, {ascii(name)}: give its plugin's --user-dir")
    if "task" in _needed and is_of_this_package(classes["task"]):
        _check_dictionary(path, checkpoint.get("task_state"))
        try:
            getattr(classes["task"], "check_state", lambda state: None)(checkpoint.get("task_state"))
        except ValueError as error:
            raise UnsafeCheckpointError(f"{path} is of no use: {error}: {EARLIER}") from error
    if is_of_this_package(classes["model"]):
        forget_files(cfg, overrides)


def forget_files(cfg, overrides: Dict[str, Any]) -> None:
    """Have no file be opened that a checkpoint names and the user (`overrides`) does not: those that its model was
    started from, whose weights it has, and one for replacing unknown words."""
    _forget(cfg, overrides, "model", ("_from", "_path"), "")
    _forget(cfg, overrides, "generation", ("replace_unk",), None)


def _forget(cfg, overrides: Dict[str, Any], group: str, endings: Tuple[str, ...], nothing: Optional[str]) -> None:
    part = getattr(cfg, group, None)
    with open_dict(cfg):
        for field in list(part.keys() if OmegaConf.is_config(part) else vars(part or argparse.Namespace())):
            value = getattr(part, field) if field.endswith(endings) else None
            if isinstance(value, str) and overrides.get(field) != value:
                setattr(part, field, nothing)


def _check_dictionary(path: str, task_state: Any) -> None:
    """A dictionary in a checkpoint is data, never the name of a file to open."""
    if task_state is None or (isinstance(task_state, dict) and "dictionary" not in task_state):
        return
    entries = task_state["dictionary"] if isinstance(task_state, dict) else None
    if not is_dictionary(entries):
        kind = type(entries).__name__
        raise UnsafeCheckpointError(f"{path} has a {kind} where symbols and counts of its dictionary belong: {EARLIER}")


def is_dictionary(entries: Any) -> bool:
    """Whether it is a list of (symbol, count)."""
    return isinstance(entries, list) and all(
        isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], int)
        for entry in entries
    )


def check_overrides(path: str, cfg, overrides: Dict[str, Any]) -> None:
    """TypeError for an override that no section of a checkpoint's configuration has, nor any codec or tokenizer:
    fairseq would leave it out without a word."""
    sections = [vars(part) if isinstance(part, argparse.Namespace) else part for part in [cfg, *cfg.values()]]
    known = {str(name) for part in sections if isinstance(part, (dict, DictConfig)) for name in part}
    for kind in ("bpe", "tokenizer"):
        for codec in REGISTRIES[kind]["dataclass_registry"].values():
            known.update(field.name for field in dataclasses.fields(codec))
    newer = {field.name for config in registered_options().values() for field in dataclasses.fields(config)}
    for name in sorted(overrides.keys() - known):
        if name in newer:
            raise TypeError(f"{path} was trained before there was an option {name}, and has none")
        raise TypeError(f"unknown option {name}: {nearest(name, known)}")


def drop_unnamed_codec(cfg, overrides: Dict[str, Any]) -> Optional[str]:
    """Have `cfg.bpe` be the codec that the user named in `overrides`, with defaults beside what the user named.

    One that the checkpoint alone names stays if it needs no file, or only local ones that the user named; otherwise it
    is dropped, and its name is returned.
    """
    bpe = getattr(cfg, "bpe", None)
    asked, found = overrides.get("bpe"), bpe if isinstance(bpe, str) else getattr(bpe, "_name", None)
    name = asked if isinstance(asked, str) else found
    if name is None:
        return None
    registry = REGISTRIES["bpe"]["dataclass_registry"]
    fields = OmegaConf.structured(registry[name]) if name in registry else OmegaConf.create({})
    with open_dict(fields):
        fields._name = name
        names = list(fields.keys())  # of fields without a value too, which are not `in` it
        files = {field: overrides[field] for field in names if field in overrides}
        fields.update(files)
    named = name in _CODECS_WITHOUT_FILES or any(os.path.isfile(str(value)) for value in files.values())
    with open_dict(cfg):
        cfg.bpe = fields if asked is not None or named else None
    return None if cfg.bpe is not None else name


@contextlib.contextmanager
def naming(path: str, fault: str = "is not a whole fairseq checkpoint") -> Iterator[None]:
    """Turns errors about the contents of a checkpoint into one line with its name and the fault."""
    try:
        yield
    except (UnsafeCheckpointError, MissingMandatoryValue):  # the latter is for the user to name
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        difference = misfit(error)
        if difference is not None:
            raise UnsafeCheckpointError(
                f"{path} {MISFIT}: {difference}; leave out options that change its weights, and give its own "
                "dictionary and, if it had one, --output-dictionary-size"
            ) from error
        raise UnsafeCheckpointError(f"{path} {fault} ({first_line(error)})") from error
    except (pickle.UnpicklingError, OmegaConfBaseException) as error:
        raise UnsafeCheckpointError(f"{path} cannot be used by fairseq ({first_line(error)})") from error


def check_finite(path: str, weights: Dict[str, torch.Tensor]) -> None:
    """UnsafeCheckpointError if a weight is NaN or infinite: whatever is computed with it is nonsense."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UnsafeCheckpointError(f"{path} is of no use: its weights {name} are not all finite: {EARLIER}")


def _load_checked(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_checkpoint_to_cpu`, which looks through a checkpoint before it loads it."""

    @functools.wraps(load)
    def load_checked(path, arg_overrides=None, *args, **kwargs):
        _check_structure(path, check_checkpoint(path))
        with naming(path), compat.loading_data_only():
            checkpoint = load(path, arg_overrides, *args, **kwargs)
            hand_over_loss(checkpoint)
            for check in _asked:
                check(checkpoint.get("task_state"))
            if _needed:
                _prepare_use(path, checkpoint, arg_overrides or {})
        return checkpoint

    return load_checked


def _load_for_use(load: Callable[..., Any]) -> Callable[..., Any]:
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
                _forget(cfg, arg_overrides or {}, "criterion", ("boundary_supervision",), "")
            codec = drop_unnamed_codec(cfg, arg_overrides or {})
            if codec is not None and "task" in needed:  # otherwise a command takes what it is given with --bpe
                logger.warning(f"ignored the codec {codec} that {filenames[-1]} names: to use it, give bpe={codec}")
        return models, cfg, task

    return load_models


def _look_first(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_ema_from_checkpoint`, which opens a checkpoint by itself."""

    @functools.wraps(load)
    def load_ema(path):
        check_checkpoint(path)
        try:
            with compat.loading_data_only():
                return load(path)
        except KeyError as error:
            raise ValueError(f"{path} has no moving average: give one of a training with --store-ema") from error

    return load_ema


# What a training that goes on asks of the task's state in the checkpoint that is being loaded.
_asked: List[Callable[[Any], None]] = []


def _load_to_train(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load_checkpoint` of fairseq's trainer: where this package takes part, a checkpoint of another model, dictionary,
    criterion or optimizer is a ValueError of one line, of which fairseq and torch say less in more lines. A task with
    `check_resumed(task_state)` is asked before training goes on, but not before one that begins from weights alone."""

    @functools.wraps(load)
    def load_checkpoint(trainer, filename, reset_optimizer=False, *args, **kwargs):
        if not takes_part(trainer):
            return load(trainer, filename, reset_optimizer, *args, **kwargs)
        check = getattr(trainer.task, "check_resumed", None)
        _asked[:] = [] if check is None or reset_optimizer else [check]
        try:
            return load(trainer, filename, reset_optimizer, *args, **kwargs)
        except UnsafeCheckpointError:
            raise
        except AssertionError as error:  # fairseq's, for another criterion or optimizer
            raise ValueError(f"{filename} {MISFIT}: {error}") from error
        except Exception as error:
            if _raised_within(error, FairseqLRScheduler):
                raise ValueError(
                    f"{filename} was trained with another --lr-scheduler: give that one, or --reset-lr-scheduler to "
                    "begin with this one"
                ) from error
            why = _why_not_loaded(error)
            if why is None:
                raise
            finetuned = trainer.cfg.checkpoint.finetune_from_model
            anew = "without --finetune-from-model" if finetuned else "in another --save-dir"
            raise ValueError(f"{filename} {why}, or begin anew, {anew}") from error
        finally:
            _asked.clear()

    return load_checkpoint


def _raised_within(error: Exception, kind: type) -> bool:
    """Whether the error came out of a method of an object of that kind."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), kind) for frame in frames)


def _why_not_loaded(error: Exception) -> Optional[str]:
    """Why fairseq's trainer could not use a checkpoint, and what to give; None if that is unknown."""
    cause = error.__context__  # what it says that there was
    if type(error) is Exception and isinstance(cause, ValueError):  # of this package's modules
        return f"does not fit: {cause}"
    difference = misfit(cause) if "optimizer's group" not in str(error) else "its optimizer has other parameters"
    return None if difference is None else f"{MISFIT}: {difference}; give those that it was trained with"


def _copy_whole(copy: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq copies one checkpoint over another, which a process that is killed meanwhile leaves cut off: write the
    copy beside and rename it."""

    @functools.wraps(copy)
    def copy_whole(src_path, dst_path, overwrite=False):
        if not (overwrite and file_io.PathManager.supports_rename(dst_path)):
            return copy(src_path, dst_path, overwrite=overwrite)
        part = dst_path + ".tmp"
        try:
            done = copy(src_path, part, overwrite=True)
            os.replace(part, dst_path)
        except BaseException:  # such as a full disk, which would stay full
            with contextlib.suppress(OSError):
                os.remove(part)
            raise
        return done

    return copy_whole


def install() -> None:
    """Check every checkpoint that fairseq loads, and have it write whole ones. Called when the package is imported."""
    compat.allow_in_torch()
    wrap_once(checkpoint_utils, "load_checkpoint_to_cpu", _load_checked)
    wrap_once(checkpoint_utils, "load_model_ensemble_and_task", _load_for_use)
    wrap_once(checkpoint_utils, "load_ema_from_checkpoint", _look_first)
    wrap_once(fairseq.trainer.Trainer, "load_checkpoint", _load_to_train)
    wrap_once(file_io.PathManager, "copy", _copy_whole)
