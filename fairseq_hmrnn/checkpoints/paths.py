"""Where checkpoints are, and the data folder that belongs to one."""

from __future__ import annotations

import glob
import os
from typing import List, Optional

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
