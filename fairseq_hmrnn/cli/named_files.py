"""Files that the settings of a recipe name. fairseq-hydra-train changes to the folder of checkpoints before it opens
them, so their names become absolute here, where the user gave them."""

from __future__ import annotations

import os
import re
from typing import Any

from omegaconf import DictConfig

# Of fairseq's settings and this package's, those that are names of files to read; a log is written.
OF_FILES = re.compile(r"(?<!^log)_(path|from|model|file|vocab|bpe|codes|merges|json|supervision)$")
# fairseq's default, which it looks for in the folder of checkpoints, and a kind of boundary_supervision.
NO_FILES = ("checkpoint_last.pt", "whitespace")
BEFORE_NAME = "sentencepiece:"  # of a model, in boundary_supervision


def absolute(name: str, value: Any) -> Any:
    """The value of a setting of this name: where it names a file, seen from the current folder, its absolute name."""
    if not isinstance(value, str) or not OF_FILES.search(name) or value in NO_FILES:
        return value
    before = BEFORE_NAME if value.startswith(BEFORE_NAME) else ""
    path = value[len(before) :]
    return before + os.path.abspath(path) if os.path.isfile(path) else value


def make_absolute(recipe: DictConfig) -> None:
    """Have a recipe name its files absolutely."""
    for section in (values for _, values in recipe.items_ex(resolve=False) if isinstance(values, DictConfig)):
        for name, value in list(section.items_ex(resolve=False)):
            seen = absolute(str(name), value)
            if seen != value:
                section[name] = seen
