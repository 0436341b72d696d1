"""Which dictionary a checkpoint was trained with: an ensemble shares one, which is that of each of its models."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional

from fairseq.data import Dictionary

from ..checkpoints import settings
from ..data.dictionaries import read_dictionary
from ..data.folders import DICTIONARY


def folder_of_dictionary(path: str, state: Dict[str, Any]) -> Optional[str]:
    """The folder with the dict.txt of a checkpoint that does not carry its dictionary: its own, or that of its data;
    None for one that does. FileNotFoundError where there is none."""
    if _carried(state) is not None:
        return None
    folders = [os.path.dirname(os.path.abspath(path)), *str(settings(state).task.data).split(os.pathsep)[:1]]
    found = next((folder for folder in folders if os.path.exists(os.path.join(folder, DICTIONARY))), None)
    if found is None:
        raise FileNotFoundError(
            f"{path} does not carry its dictionary: give the folder that has its {DICTIONARY} as data"
        )
    return found


def check_dictionary(path: str, state: Dict[str, Any], task: Any, given: Optional[str], first: str) -> None:
    """ValueError if a checkpoint was trained with other dictionaries than those of the language modelling `task`: that
    of the folder `given` or, where that is None, of the checkpoint `first`. One that does not carry its own is taken to
    be of a folder that is given."""
    used, size = task.source_dictionary, getattr(settings(state).task, "output_dictionary_size", -1)
    predicted = len(used) if size < 0 else min(size, len(used))
    if predicted != len(task.target_dictionary):
        raise ValueError(
            f"{path} predicts {predicted} symbols, {first} {len(task.target_dictionary)} (--output-dictionary-size): "
            "an ensemble must share an output dictionary"
        )
    symbols = _carried(state)
    if symbols is None and given is not None:
        return
    if symbols is None:
        folder = str(folder_of_dictionary(path, state))
        symbols = _symbols(read_dictionary(type(used), os.path.join(folder, DICTIONARY)))
    if symbols == _symbols(used):
        return
    if given is None:
        raise ValueError(f"{path} has another dictionary than {first}: an ensemble must share one")
    named = os.path.join(given, DICTIONARY)
    raise ValueError(f"{path} has another dictionary than {named}: give the folder it was trained with, or none")


def _carried(state: Dict[str, Any]) -> Optional[List[str]]:
    """The symbols of the dictionary in a checkpoint; None if it has none."""
    entries = (state.get("task_state") or {}).get("dictionary")
    return None if entries is None else [entry[0] for entry in entries]


def _symbols(dictionary: Dictionary) -> List[str]:
    """The symbols but for those that every dictionary begins with."""
    return dictionary.symbols[dictionary.nspecial :]
