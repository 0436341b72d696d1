"""Prepared pen strokes on disk: a folder with `handwriting.json` and a NumPy archive (no pickles) of each split."""

from __future__ import annotations

import json
import os
import shlex
import zipfile
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from ..folders import DESCRIPTION, replaced_whole
from .lines import Line

VERSION = 1
CHARACTER, WORD = 1, 2  # bits of `marks` and `known`
_ARRAYS = {"steps": "f", "starts": "i", "marks": "u", "known": "u", "names": "U", "writers": "U", "texts": "U"}


class Normalization(NamedTuple):
    """Mean and standard deviation of the training split's offsets in x and y (Graves 2013, arXiv 1308.0850, section
    4.2). A line's first step, which has no offset, does not count."""

    mean: Tuple[float, float]
    std: Tuple[float, float]

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Normalization:
        """ValueError where all points of a coordinate are the same."""
        offsets = np.concatenate([np.diff(line.points, axis=0) for line in lines])
        mean, std = offsets.mean(0), offsets.std(0)
        if not (std > 0).all():
            raise ValueError("the pen never moves in one of its two directions: nothing to normalise by")
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    @classmethod
    def checked(cls, values: Any) -> Normalization:
        """From a file's or a checkpoint's [mean, std]; ValueError for anything else."""
        try:
            numbers = np.array(values, dtype=float)
        except (TypeError, ValueError):
            numbers = np.array(None, dtype=float)
        if numbers.shape != (2, 2) or not np.isfinite(numbers).all() or not (numbers[1] > 0).all():
            raise ValueError("it holds no mean and standard deviation of a pen's offsets")
        return cls(*map(tuple, numbers.tolist()))

    def steps(self, line: Line) -> np.ndarray:
        """(N, 3) of N points: the normalised offset from the point before, 0 for the first; 1 where a stroke ends."""
        steps = np.zeros((len(line.points), 3), dtype=np.float32)
        steps[1:, :2] = (np.diff(line.points, axis=0) - self.mean) / self.std
        steps[:, 2] = line.ends
        return steps

    def points(self, steps: np.ndarray) -> np.ndarray:
        """(N, 2), the points of normalised steps (N, 3), the first one at the origin."""
        offsets = np.asarray(steps, dtype=float)[:, :2] * self.std + self.mean
        offsets[:1] = 0
        return offsets.cumsum(0)


class Strokes(NamedTuple):
    """A split of n lines, N steps together.

    steps: (N, 3) float32, see `Normalization.steps`. starts: (n + 1,), where each line begins, and N. marks: (N,) with
    the bits CHARACTER and WORD at the last step of each; known: (n,), which of the two are marked in a line. names,
    writers, texts: (n,) strings.
    """

    steps: np.ndarray
    starts: np.ndarray
    marks: np.ndarray
    known: np.ndarray
    names: np.ndarray
    writers: np.ndarray
    texts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def line(self, index: int) -> slice:
        """The steps of a line."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))


def gather(lines: Sequence[Line], normalization: Normalization) -> Strokes:
    """Lines as a split."""
    marks = [
        _bits(line.characters, len(line.points)) * CHARACTER + _bits(line.words, len(line.points)) * WORD
        for line in lines
    ]
    known = [CHARACTER * (line.characters is not None) + WORD * (line.words is not None) for line in lines]
    return Strokes(
        np.concatenate([normalization.steps(line) for line in lines]),
        np.cumsum([0, *(len(line.points) for line in lines)]),
        np.concatenate(marks),
        np.array(known, dtype=np.uint8),
        *(np.array([getattr(line, name) for line in lines], dtype=str) for name in ("name", "writer", "text")),
    )


def _bits(marked, count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.uint8) if marked is None else marked.astype(np.uint8)


def write(folder: str, splits: Dict[str, Strokes], normalization: Normalization) -> None:
    """Write a prepared folder: all of it, or nothing."""
    description = {"version": VERSION, "mean": normalization.mean, "std": normalization.std}
    with replaced_whole(folder) as work:
        for name, strokes in splits.items():
            np.savez(work / f"{name}.npz", **strokes._asdict())
        (work / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_normalization(folder: str) -> Normalization:
    """The normalisation of a prepared folder. FileNotFoundError, or ValueError for a damaged one."""
    path = os.path.join(folder, DESCRIPTION)
    if not os.path.isfile(path):
        how = f"fairseq-hmrnn prepare handwriting FOLDER --dest {shlex.quote(folder)}"
        raise FileNotFoundError(f"no {path}: prepare a corpus with {how}")
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']} is not {VERSION}")
        return Normalization.checked([found["mean"], found["std"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or of another version ({error}): prepare the corpus again") from error


def split_names(folder: str) -> List[str]:
    """The splits of a prepared folder."""
    return sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".npz") and not name.startswith("."))


def load_split(folder: str, name: str) -> Strokes:
    """A split of a prepared folder. FileNotFoundError names those that there are; ValueError for a damaged one."""
    path = os.path.join(folder, f"{name}.npz")
    if not os.path.isfile(path):
        found = ", ".join(split_names(folder)) if os.path.isdir(folder) else ""
        raise FileNotFoundError(f"no {name}.npz in {folder}; it has: {found or 'no prepared handwriting'}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            strokes = Strokes(*(archive[field] for field in Strokes._fields))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is cut off or damaged: prepare the corpus again") from error
    if not _is_whole(strokes):
        raise ValueError(f"{path} is cut off or damaged: prepare the corpus again")
    return strokes


def _is_whole(strokes: Strokes) -> bool:
    if any(getattr(strokes, name).dtype.kind != kind for name, kind in _ARRAYS.items()):
        return False
    starts, lines = strokes.starts, len(strokes.names)
    if starts.ndim != 1 or len(starts) != lines + 1 or lines == 0 or starts[0] != 0 or np.diff(starts).min() < 2:
        return False
    if strokes.steps.shape != (starts[-1], 3) or strokes.marks.shape != (starts[-1],):
        return False
    if any(len(part) != lines for part in (strokes.known, strokes.writers, strokes.texts)):
        return False
    return bool(np.isfinite(strokes.steps).all() and np.isin(strokes.steps[:, 2], (0, 1)).all())
