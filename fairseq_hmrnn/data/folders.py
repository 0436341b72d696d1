"""Prepared folders: what any kind of preparation writes, and its replacement as a whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

SPLITS = ("train", "valid", "test")
DICTIONARY, DESCRIPTION = "dict.txt", "handwriting.json"  # by which a folder of text or handwriting is known
# Of text, of two languages, of handwriting. Another kind's file that was left would be taken for what the folder has.
WRITTEN = [
    *(f"{split}.{ending}" for split in SPLITS for ending in ("bin", "idx", "*-*.*.bin", "*-*.*.idx", "npz")),
    *(DICTIONARY, DESCRIPTION, "dict.*.txt", "spm.*.model", "spm.*.vocab", "pieces", "pieces.*.txt"),
    *("preprocess.log", "preprocess.stdout"),
]


@contextlib.contextmanager
def replaced_whole(folder: str) -> Iterator[Path]:
    """An empty folder to write to, within `folder`, which is made. When all is written it takes the place of what was
    prepared there before, of whatever kind; after an error the folder is as it was. Other files stay."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=folder) as name:
        work, target = Path(name), Path(folder)
        yield work
        for old in {path for pattern in WRITTEN for path in target.glob(pattern)}:
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(str(old))
            else:
                old.unlink()
        for path in sorted(work.iterdir(), key=lambda path: path.name in (DICTIONARY, DESCRIPTION)):
            shutil.move(str(path), str(target / path.name))
