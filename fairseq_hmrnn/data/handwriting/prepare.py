"""From a corpus to a prepared folder: read, split by writer, normalise, write."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from ..folders import SPLITS
from . import iam, store, unipen
from .lines import BrokenLine, Line

LAYOUTS = (
    "UNIPEN (folders data/ and include/) and IAM-OnDB (a folder lineStrokes/, with ascii/, original/ and the lists "
    "trainset.txt, testset_t.txt, testset_v.txt and testset_f.txt beside it if there are)"
)


class Report(NamedTuple):
    """Lines that say what was written, and the errors of the files that were skipped."""

    written: List[str]
    skipped: List[str]


def open_corpus(folder: str):
    """The corpus in a folder, of whichever layout. ValueError for another one."""
    path = Path(folder)
    for layout in (unipen, iam):
        if layout.is_corpus(path):
            return layout.Corpus(path)
    raise ValueError(f"{folder} has no layout that is known: {LAYOUTS}")


def prepare(
    folder: str, dest: str, fractions: Dict[str, float], seed: int = 1, dequantize: bool = False, progress: bool = True
) -> Report:
    """Read the corpus in `folder` and write the splits train, valid and test to `dest`.

    fractions: of "valid" and "test", shares of writers; see `split_by_writer`. The published lists of IAM-OnDB take
    their place. dequantize: move each point by a uniform random amount within the tablet's spacing, so that a density
    of offsets is one of areas, not of the few values that differences of whole numbers have. Raises ValueError where
    nothing can be used.
    """
    corpus = open_corpus(folder)
    lines, skipped = [], [str(error) for error in corpus.broken]
    for name in tqdm(corpus.names, desc="reading", unit="line", disable=None if progress else True):
        try:
            lines.append(corpus.read(name))
        except (BrokenLine, OSError) as error:
            skipped.append(str(error))
    if not lines:
        first = f", the first because {skipped[0]}" if skipped else ""
        raise ValueError(f"no line of {folder} can be used ({len(skipped)} files were skipped{first})")
    if dequantize:
        lines = spread(lines, seed)
    splits = _published(corpus, lines) or split_by_writer(lines, fractions, seed)
    normalization = store.Normalization.of(splits["train"])
    gathered = {name: store.gather(found, normalization) for name, found in splits.items()}
    store.write(dest, gathered, normalization)
    written, left = _written(splits), len(lines) - sum(map(len, splits.values()))
    if left:
        why = "without marked characters, of writers of valid and test, or in no published list"
        written.append(f"left out: {left:,} lines {why}")
    return Report(written, skipped)


def spread(lines: List[Line], seed: int) -> List[Line]:
    """The lines with each point moved evenly within half a spacing of the tablet's points in every direction."""
    draw = np.random.default_rng(seed)
    return [
        line._replace(points=line.points + draw.uniform(-0.5, 0.5, line.points.shape) * line.spacing) for line in lines
    ]


def split_by_writer(lines: List[Line], fractions: Dict[str, float], seed: int) -> Dict[str, List[Line]]:
    """No writer is in two splits. If some lines have marked characters, valid and test hold nothing but such lines, and
    are drawn among their writers, whose other lines are left out; else among all writers. ValueError where there are
    too few."""
    marked = [line for line in lines if line.characters is not None] or lines
    writers = sorted({line.writer for line in marked})
    if len(writers) < 3:
        raise ValueError(f"a split by writer needs three writers at least, the corpus has {len(writers)}")
    random.Random(seed).shuffle(writers)
    splits, place = {}, 0
    for name, fraction in fractions.items():
        count = max(1, round(fraction * len(writers)))
        chosen, place = set(writers[place : place + count]), place + count
        splits[name] = [line for line in marked if line.writer in chosen]
    held_out = set(writers[:place])
    splits["train"] = [line for line in lines if line.writer not in held_out]
    if not splits["train"] or not all(splits.values()):
        raise ValueError(f"{len(writers)} writers are too few for these fractions: give smaller ones")
    return splits


def _published(corpus, lines: List[Line]) -> Optional[Dict[str, List[Line]]]:
    if not getattr(corpus, "splits", None):
        return None
    splits: Dict[str, List[Line]] = {}
    for line in lines:
        splits.setdefault(corpus.published_split(line.name) or "none", []).append(line)
    splits.pop("none", None)
    if set(splits) != set(SPLITS):
        warnings.warn("the published lists leave a split empty: writers are drawn instead", stacklevel=2)
        return None
    return splits


def _written(splits: Dict[str, List[Line]]) -> List[str]:
    found = []
    for name in SPLITS:
        lines = splits[name]
        points = sum(len(line.points) for line in lines)
        dots = sum(line.single_points for line in lines)
        marked = [sum(getattr(line, kind) is not None for line in lines) for kind in ("characters", "words")]
        writers, strokes = len({line.writer for line in lines}), sum(line.ends.sum() for line in lines)
        found.append(
            f"{name}: {len(lines):,} lines of {writers} writers, {points:,} points, {strokes:,} strokes ({dots:,} of a "
            f"single point); characters are marked in {marked[0]:,} lines, words in {marked[1]:,}"
        )
    return found
