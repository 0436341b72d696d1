"""The only file that knows differences between fairseq and torch versions, and what it takes to load safely and whole.

A checkpoint is a pickle, and a pickle can run any code. Newer torch refuses unknown globals by itself, older torch
does not. `install` therefore has fairseq look through a checkpoint before torch does, in every version alike, against
one allow-list; torch's own check stays on where it exists.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import contextvars
import functools
import io
import itertools
import os
import pickle
import re
import sys
import typing
import zipfile
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import omegaconf
import torch
from fairseq import checkpoint_utils, file_io
from fairseq.distributed.utils import _TensorPlaceholder

# What checkpoints of fairseq, of any model, are made of beside tensors and plain values.
ALLOWED_GLOBALS = {
    *(("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(("builtins", name) for name in ("dict", "list", "set", "int", "long", "float", "str")),
    *(("__builtin__", name) for name in ("dict", "list", "set", "int", "long", "float", "str")),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("typing", "Any"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    ("omegaconf.nodes", "AnyNode"),
    ("fairseq.distributed.utils", "_TensorPlaceholder"),
}


_TENSOR_TYPE = re.compile(r"torch\.(\w+Storage|Size|device|dtype|(b?float|int|uint)\d+|bool|storage\.\w+Storage)")


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint that holds more than data, or is damaged."""


class _Inert:
    """Stands for whatever a pickle imports: accepts anything, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _Recorder(pickle.Unpickler):
    """Goes through a pickle as the real one would, but notes what it wants to import instead of importing it."""

    def __init__(self, file):
        super().__init__(file)
        self.wanted: Set[Tuple[str, str]] = set()

    def find_class(self, module, name):
        self.wanted.add((module, name))
        return _Inert

    def persistent_load(self, pid):
        return _Inert()


def pickled_globals(pickled: bytes) -> Set[Tuple[str, str]]:
    """(module, name) of everything a pickle would import, found without importing or calling any of it."""
    recorder = _Recorder(io.BytesIO(pickled))
    recorder.load()
    return recorder.wanted


def check_checkpoint(path: str) -> None:
    """Raise UnsafeCheckpointError if the checkpoint would import anything beyond the allow-list.

    Files in torch's format from before 1.6, a bare pickle, are refused: older torch would run what is in them.
    """
    path = file_io.PathManager.get_local_path(path)  # of a remote one, where fairseq knows such
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch tells the formats apart
            raise UnsafeCheckpointError(
                f"{path} was not loaded: it is no checkpoint, or one in the format of torch before 1.6. If you trust "
                "where it comes from, load it with torch yourself and save it again."
            )
    unknown: Set[str] = set()
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UnsafeCheckpointError(f"{path} is cut off or damaged ({error}): use another checkpoint") from error
    with archive:
        for member in archive.infolist():  # by entry, for two may have one name
            if member.filename.endswith(".pkl"):
                for module, name in pickled_globals(archive.read(member)):
                    if (module, name) not in ALLOWED_GLOBALS and not _TENSOR_TYPE.fullmatch(f"{module}.{name}"):
                        unknown.add(f"{module}.{name}")
    if unknown:
        raise UnsafeCheckpointError(
            f"{path} was not loaded: it holds {', '.join(sorted(unknown))}, which a fairseq checkpoint has no need of "
            "and which could run code. If you trust where it comes from, load it with torch yourself and save only "
            "its tensors and settings again."
        )


def _allow_in_torch() -> None:
    """Tell torch's own check the same list, as far as this torch has one."""
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)
    if add_safe_globals is None:
        return
    add_safe_globals(
        [
            argparse.Namespace,
            collections.defaultdict,
            dict,
            list,
            int,
            typing.Any,
            omegaconf.DictConfig,
            omegaconf.ListConfig,
            omegaconf.base.ContainerMetadata,
            omegaconf.base.Metadata,
            omegaconf.nodes.AnyNode,
            _TensorPlaceholder,
        ]
    )


def hand_over_loss(checkpoint: Dict[str, Any]) -> None:
    """fairseq writes an epoch's last checkpoint before it tells the scheduler that epoch's validation loss, and when it
    resumes it never does: put the loss into the scheduler's own state, as `missed_loss`, if it is such a checkpoint."""
    extra = checkpoint.get("extra_state") or {}
    position = extra.get("train_iterator") or {}
    if position.get("iterations_in_epoch") == 0 and extra.get("val_loss") is not None:
        for entry in (checkpoint.get("optimizer_history") or [])[-1:]:
            if "lr_scheduler_state" in entry:
                entry["lr_scheduler_state"]["missed_loss"] = extra["val_loss"]


def _copy_whole(copy: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq copies one checkpoint over another, which a process that is killed meanwhile leaves cut off: write the
    copy beside and rename it."""

    @functools.wraps(copy)
    def copy_whole(src_path, dst_path, overwrite=False):
        if not (overwrite and file_io.PathManager.supports_rename(dst_path)):
            return copy(src_path, dst_path, overwrite=overwrite)
        done = copy(src_path, dst_path + ".tmp", overwrite=True)
        os.replace(dst_path + ".tmp", dst_path)
        return done

    return copy_whole


_loading = contextvars.ContextVar("loading", default=False)


def is_loading_model() -> bool:
    """Whether fairseq is setting up a task for a model that it loads from a checkpoint. Only newer versions say so."""
    return _loading.get()


def _tell_of_loading(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_and_tell(*args, **kwargs):
        token = _loading.set(True)
        try:
            return load(*args, **kwargs)
        finally:
            _loading.reset(token)

    return load_and_tell


def install() -> None:
    """Check every checkpoint that fairseq loads, and have it write whole ones. Called when the package is imported."""
    _allow_in_torch()
    load = checkpoint_utils.load_checkpoint_to_cpu
    if hasattr(load, "checked"):
        return

    @functools.wraps(load)
    def load_checked(path, *args, **kwargs):
        check_checkpoint(path)
        checkpoint = load(path, *args, **kwargs)
        hand_over_loss(checkpoint)
        return checkpoint

    load_checked.checked = True
    checkpoint_utils.load_checkpoint_to_cpu = load_checked
    checkpoint_utils.load_model_ensemble_and_task = _tell_of_loading(checkpoint_utils.load_model_ensemble_and_task)
    file_io.PathManager.copy = staticmethod(_copy_whole(file_io.PathManager.copy))


def read_prompts(source: str, buffer_size: int) -> Iterator[List[str]]:
    """Lines of a file, or of standard input for "-", without their newline, in lists of buffer_size."""
    with contextlib.ExitStack() as stack:
        file = sys.stdin if source == "-" else stack.enter_context(open(source, encoding="utf-8", newline="\n"))
        lines = (line[:-1] if line.endswith("\n") else line for line in file)
        while True:
            prompts = list(itertools.islice(lines, buffer_size))
            if not prompts:
                return
            yield prompts


def keep_prompt_spaces() -> None:
    """Have fairseq-interactive, if that is what runs, leave the spaces around a prompt alone: here they are text."""
    main = sys.modules["__main__"]  # run with -m, the module has this name
    spec = getattr(main, "__spec__", None)
    run_as_main = spec is not None and spec.name == "fairseq_cli.interactive"
    interactive = main if run_as_main else sys.modules.get("fairseq_cli.interactive")
    if interactive is not None:
        interactive.buffered_read = read_prompts
