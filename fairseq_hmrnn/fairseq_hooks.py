"""Where this package and fairseq meet: functions wrapped in place, what is registered, the command that runs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional

from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY

_WRAPPERS = "_fairseq_hmrnn_wrappers"  # an attribute, which functools.wraps copies to what wraps the function next


def wrap_once(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace the function `name` of a module or class by wrap(function), unless the same `wrap` has been there before.
    `wrap` must return a function made with functools.wraps; others may wrap it too, before or after."""
    function = getattr(owner, name)
    key, before = f"{wrap.__module__}.{wrap.__qualname__}", getattr(function, _WRAPPERS, ())
    if key in before:
        return
    wrapped = wrap(function)
    setattr(wrapped, _WRAPPERS, (*before, key))
    is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)


def is_of_this_package(*classes: Optional[type]) -> bool:
    """Whether one of the classes is, or derives from one that is."""
    bases = [base for cls in classes if cls is not None for base in cls.__mro__]
    return any(base.__module__.split(".")[0] == __package__ for base in bases)


def takes_part(trainer: Any) -> bool:
    """Whether the task, the model or the criterion of one of fairseq's trainers is of this package."""
    return is_of_this_package(*map(type, (trainer.task, trainer.get_model(), trainer.get_criterion())))


def registered_options() -> Dict[str, type]:
    """What this package has registered with fairseq, such as "--arch hmlstm_lm", and the dataclass of its options."""
    registries = {"task": TASK_DATACLASS_REGISTRY, "arch": MODEL_DATACLASS_REGISTRY}
    registries.update({kind: registry["dataclass_registry"] for kind, registry in REGISTRIES.items()})
    return {
        f"--{kind.replace('_', '-')} {name}": config
        for kind, registry in registries.items()
        for name, config in registry.items()
        if is_of_this_package(config)
    }


def running_command(name: str) -> Optional[ModuleType]:
    """The module of fairseq's command `name` ("train" of fairseq-train), if that is loaded."""
    main = sys.modules["__main__"]  # run with -m, the module has this name
    spec = getattr(main, "__spec__", None)
    run_as_main = spec is not None and spec.name == f"fairseq_cli.{name}"
    return main if run_as_main else sys.modules.get(f"fairseq_cli.{name}")


def keep_prompt_spaces() -> None:
    """Have fairseq-interactive, if that is what runs, leave the spaces around a prompt alone: here they are text."""
    interactive: Any = running_command("interactive")
    if interactive is not None:
        interactive.buffered_read = _read_prompts


def _read_prompts(source: str, buffer_size: int) -> Iterator[List[str]]:
    """Lines of a file, or of standard input for "-", without their newline, in lists of buffer_size."""
    with contextlib.ExitStack() as stack:
        file = sys.stdin if source == "-" else stack.enter_context(open(source, encoding="utf-8", newline="\n"))
        lines = (line[:-1] if line.endswith("\n") else line for line in file)
        while True:
            prompts = list(itertools.islice(lines, buffer_size))
            if not prompts:
                return
            yield prompts
