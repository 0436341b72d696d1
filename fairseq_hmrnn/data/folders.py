"""Prepared folders: what any kind of preparation writes, and its replacement as a whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Iterable, Iterator, List

SPLITS = ("train", "valid", "test")
DICTIONARY, DESCRIPTION = "dict.txt", "handwriting.json"  # by which a folder of text or handwriting is known
# Of text, of two languages, of handwriting. Another kind's file that was left would be taken for what the folder has.
WRITTEN = [
    *(f"{split}.{ending}" for split in SPLITS for ending in ("bin", "idx", "*-*.*.bin", "*-*.*.idx", "npz")),
    *(f"pieces/{split}.*" for split in SPLITS),
    *(DICTIONARY, DESCRIPTION, "dict.*.txt", "spm.*.model", "spm.*.vocab", "pieces.*.txt"),
    *("preprocess.log", "preprocess.stdout"),
]


@contextlib.contextmanager
def replaced_whole(folder: str) -> Iterator[Path]:
    """An empty folder to write to, within `folder`, which is made. When all is written it takes the place of what was
    prepared there before, of whatever kind; after an error the folder is as it was. Other files stay."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=folder) as name:
        target, new, old = Path(folder), Path(name) / "new", Path(name) / "old"
        new.mkdir(), old.mkdir()
        yield new
        left: List[Path] = []
        came: List[Path] = []
        try:
            _move(_written(target), target, old, left)
            made = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
            _move(sorted(made, key=lambda path: path.name in (DICTIONARY, DESCRIPTION)), new, target, came)
        except BaseException:
            _move(came, target, new, [])
            _move(left, old, target, [])
            raise
        with contextlib.suppress(OSError):
            (target / "pieces").rmdir()  # if nothing is in it any more


def _written(folder: Path) -> Iterable[Path]:
    """Files of a preparation, relative to the folder."""
    return sorted({path.relative_to(folder) for pattern in WRITTEN for path in folder.glob(pattern)})


def _move(files: Iterable[Path], source: Path, target: Path, moved: List[Path]) -> None:
    """Move files, named relative to both folders; `moved` gets each that has gone."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(source / file), str(target / file))
        moved.append(file)
