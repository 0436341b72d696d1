"""Prepared folders: what any kind of preparation writes, and its replacement as a whole."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Iterable, Iterator, List

from ..text import InputError

SPLITS = ("train", "valid", "test")
DICTIONARY, DESCRIPTION = "dict.txt", "handwriting.json"  # by which a folder of text or handwriting is known
# Of text, of two languages, of handwriting. Another kind's file that was left would be taken for what the folder has.
# Of two languages there is the text in pieces, too, of those that have a MODEL.
MODEL = "spm.*.model"
WRITTEN = [
    *(f"{split}.{ending}" for split in SPLITS for ending in ("bin", "idx", "*-*.*.bin", "*-*.*.idx", "npz")),
    *(DICTIONARY, DESCRIPTION, "dict.*.txt", MODEL, "spm.*.vocab", "pieces.*.txt"),
    *("preprocess.log", "preprocess.stdout"),
]
# A folder of files that are being prepared, within the one that they are for.
WORK = ".prepare-"
# In it: what is to come, what is leaving, and what has left as a whole, so that the new may come.
NEW, LEAVING, LEFT = "new", "old", "replaced"


def how_to_prepare(folder: str) -> str:
    """What to do where this folder has no prepared text, for messages."""
    return f"prepare a text first: fairseq-hmrnn prepare text TEXT --dest {shlex.quote(folder)}"


def matching(folder: str, pattern: str) -> List[str]:
    """Paths of the files in a folder whose names fit a pattern, in their order."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))


@contextlib.contextmanager
def replaced_whole(folder: str) -> Iterator[Path]:
    """An empty folder to write to, within `folder`, which is made. When all is written it takes the place of what was
    prepared there before, of whatever kind; after an error the folder is as it was, after a kill once `recover` has
    been called. Other files stay: InputError if the new ones would replace one."""
    os.makedirs(folder, exist_ok=True)
    recover(folder)
    with contextlib.ExitStack() as work:
        with _held(folder, wait=True):  # else `recover` could take it for one that was left
            name = work.enter_context(tempfile.TemporaryDirectory(prefix=WORK, dir=folder))
            work.enter_context(_held(name))
        target, (new, old, gone) = Path(folder), (Path(name) / part for part in (NEW, LEAVING, LEFT))
        new.mkdir()
        old.mkdir()
        yield new
        written = _written(target)
        for file in _files(new):
            if file not in written and (target / file).exists():
                raise InputError(f"{target / file} was not written by a preparation: give another --dest")
        left: List[Path] = []
        came: List[Path] = []
        try:
            _move(written, target, old, left)
            old.rename(gone)
            _move(sorted(_files(new), key=_turn), new, target, came)
        except BaseException:
            _move(came, target, new, [])
            if gone.is_dir():
                gone.rename(old)
            _move(left, old, target, [])
            raise
        with contextlib.suppress(OSError):
            (target / "pieces").rmdir()  # if nothing is in it any more


def recover(folder: str) -> None:
    """Bring a folder back to its state before a preparation that was killed, and delete the files which that has left.
    What another process is preparing there stays."""
    target = Path(folder)
    with _held(folder, wait=True):  # nobody makes a folder meanwhile, which would not be held yet
        for work in (path for path in sorted(target.glob(f"{WORK}*")) if path.is_dir()):
            with _held(str(work)) as is_ours:
                if is_ours:
                    _undo(work, target)


def _undo(work: Path, target: Path) -> None:
    """Undo what a preparation that was killed has done to the target, and delete its folder `work`."""
    new, old, gone = (work / part for part in (NEW, LEAVING, LEFT))
    if gone.is_dir() and _files(new):  # not all of the new has come: none is to stay
        for file in _written(target):
            (target / file).unlink()
        gone.rename(old)
    _move(_files(old), old, target, [])
    shutil.rmtree(str(work))


def check_destination(dest: str, overwrite: bool) -> None:
    """Refuse a `dest` that is a file, that another process is preparing, or with something in it unless `overwrite`.
    What a preparation that was killed has left there is undone first."""
    if os.path.exists(dest) and not os.path.isdir(dest):
        raise InputError(f"{dest} is a file: give another folder as --dest")
    if os.path.isdir(dest):
        recover(dest)
        busy = next(filter(is_work, os.listdir(dest)), None)
        if busy is not None:
            raise InputError(
                f"another preparation is writing to {dest}: wait for it, or give another --dest (if none is, delete "
                f"{os.path.join(dest, busy)})"
            )
    if os.path.isdir(dest) and os.listdir(dest) and not overwrite:
        raise InputError(
            f"{dest} has data in it already: give another --dest, or --overwrite to replace the data there"
        )


def is_work(name: str) -> bool:
    """Whether a file of this name in a folder is not data but a place where data is being prepared."""
    return name.startswith(WORK)


@contextlib.contextmanager
def _held(folder: str, wait: bool = False) -> Iterator[bool]:
    """Whether no other process holds a folder; this one does meanwhile, until it ends. False where there are no
    locks. wait: until that one lets go."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _files(folder: Path) -> List[Path]:
    """All in a folder and its folders, relative to it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _written(folder: Path) -> List[Path]:
    """Files of a preparation, relative to the folder."""
    languages = [path.name.split(".", 1)[1].rsplit(".", 1)[0] for path in folder.glob(MODEL)]
    pieces = {Path("pieces") / f"{split}.{language}" for split in SPLITS for language in languages}
    written = {path.relative_to(folder) for pattern in WRITTEN for path in folder.glob(pattern)}
    return sorted(written | {file for file in pieces if (folder / file).exists()})


def _turn(file: Path) -> int:
    """The order in which files are moved: models before the files that `_written` finds by them; last the file that
    says what a folder holds."""
    return -1 if file.match(MODEL) else int(file.name in (DICTIONARY, DESCRIPTION))


def _move(files: Iterable[Path], source: Path, target: Path, moved: List[Path]) -> None:
    """Move files, named relative to both folders; `moved` gets each that has gone."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(source / file), str(target / file))
        moved.append(file)
