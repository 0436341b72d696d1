"""Checks of what a checkpoint holds, and one line about each fault."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any, Dict, Iterator

import torch
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .archive import EARLIER, UnsafeCheckpointError, first_line, misfit

MISFIT = "does not fit the options or the data that were given"


def check_structure(path: str, contents: Any) -> None:
    """UnsafeCheckpointError unless it is a dict with a model's weights."""
    if not isinstance(contents, dict):
        kind = type(contents).__name__ if isinstance(contents, (list, tuple, str, int, float)) else "single object"
        raise UnsafeCheckpointError(f"{path} is not a fairseq checkpoint: it holds a {kind}, not a dict with a model")
    if not isinstance(contents.get("model"), dict) or not contents["model"]:
        raise UnsafeCheckpointError(f'{path} is not a fairseq checkpoint: it has no "model" with weights')


def check_dictionary(path: str, task_state: Any) -> None:
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


def check_finite(path: str, weights: Dict[str, torch.Tensor]) -> None:
    """UnsafeCheckpointError if a weight is NaN or infinite: whatever is computed with it is nonsense."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UnsafeCheckpointError(f"{path} is of no use: its weights {name} are not all finite: {EARLIER}")


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
