"""UNIPEN (Guyon et al. 1994): files of statements, each a line that begins with "." and its keyword.

A corpus has `data/`, whose files mark segments of texts, and `include/`, whose files have the pen's points and what a
donor says of its tablet. The files of `data/` include those of `include/`. Several of them, for characters, words and
whole texts, mark the same points.

A component is a `.PEN_DOWN` or `.PEN_UP` with coordinates after it; components are counted from 0, and a bare
`.PEN_UP` only ends the one before. Components with the pen up are counted, but their points are not part of a stroke.
"""

from __future__ import annotations

import collections
import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from .lines import LARGEST_FILE, BrokenLine, Line, join_strokes, marks, stroke_ends, word_ends

DEEPEST_INCLUDE = 10
# Level, ranges, then a quality and a label in quotes, both of which may be missing.
_SEGMENT = re.compile(r'(\S+)\s+([^\s,]+(?:\s*,\s*[^\s,]+)*)(?:\s+[^\s"]\S*)?(?:\s+"((?:[^"\\]|\\.)*)")?\s*$')
_RANGE = re.compile(r"(\d+)(?::(\d+))?(?:-(\d+)(?::(\d+))?)?$")
_ESCAPED = re.compile(r"\\(.)")


class Segment(NamedTuple):
    """One `.SEGMENT`: its level (CHARACTER, WORD, TEXT), where it is, and its label."""

    level: str
    delineation: str
    label: str


class Statement(NamedTuple):
    keyword: str
    rest: str
    body: List[str]


class _Writing:
    """The content of the statements of one text, with those of all files that it includes."""

    def __init__(self):
        self.columns, self.scale = ["X", "Y"], {"X": 1.0, "Y": 1.0}
        self.writer = ""
        self.components: List[Tuple[bool, np.ndarray]] = []  # whether the pen is down, and points (n, 2)

    def take(self, name: str, statement: Statement) -> None:
        keyword, rest = statement.keyword, statement.rest
        if keyword == "COORD":
            self.columns = rest.split()
            if not {"X", "Y"}.issubset(self.columns):
                raise BrokenLine(f"{name}: .COORD {rest} has no X and Y")
        elif keyword in ("X_POINTS_PER_INCH", "Y_POINTS_PER_INCH"):
            self.scale[keyword[0]] = _positive(name, keyword, rest)
        elif keyword == "WRITER_ID":
            self.writer = rest.strip()
        elif keyword in ("PEN_DOWN", "PEN_UP") and any(line.strip() for line in statement.body):
            self.components.append((keyword == "PEN_DOWN", self._points(name, statement.body)))

    def _points(self, name: str, body: List[str]) -> np.ndarray:
        try:
            rows = np.array([list(map(float, line.split())) for line in body if line.strip()])
            return rows.reshape(len(rows), -1)[:, [self.columns.index("X"), self.columns.index("Y")]]
        except (ValueError, IndexError) as error:
            raise BrokenLine(f"{name}: pen points must be rows of numbers, {' '.join(self.columns)}") from error


def statements(text: str) -> Iterator[Statement]:
    """The statements of a file: keyword, what follows on its line, and the lines after it."""
    keyword, rest = "", ""
    body: List[str] = []
    for line in text.split("\n"):  # bytes of an encoding that is not known may look like other ends of lines
        if line.startswith("."):
            if keyword:
                yield Statement(keyword, rest, body)
            (keyword, rest), body = [*line[1:].strip().split(None, 1), "", ""][:2], []
        else:
            body.append(line)
    if keyword:
        yield Statement(keyword, rest, body)


def is_corpus(folder: Path) -> bool:
    return (folder / "data").is_dir() and (folder / "include").is_dir()


class Corpus:
    """The texts of a folder with `data/` and `include/`. names: the files with pen points, sorted."""

    def __init__(self, folder: Path):
        self.include = folder / "include"
        self.broken: List[BrokenLine] = []  # files of data/
        segments: Dict[str, Dict[Segment, None]] = collections.defaultdict(dict)
        self._includes: Dict[str, List[str]] = {}
        self._read: Dict[str, str] = {}  # what a donor says of the tablet is included by every text
        for path in sorted((folder / "data").rglob("*.dat")):
            try:
                included, found = _read_marks(str(path.relative_to(folder)), _text(path, str(path.relative_to(folder))))
            except BrokenLine as error:
                self.broken.append(error)
                continue
            segments[included[-1]].update(dict.fromkeys(found))
            self._includes.setdefault(included[-1], included)
        self._segments = segments
        self.names = sorted(segments)

    def read(self, name: str) -> Line:
        """The text whose pen points are in the file `name` of include/. BrokenLine where it cannot be used."""
        writing = _Writing()
        for included in self._includes[name]:
            self._include(writing, included, name, 0)
        if not writing.components:
            raise BrokenLine(f"include/{name}: has no pen points")
        strokes = [points for down, points in writing.components if down]
        points = join_strokes(f"include/{name}", strokes)
        scale = np.array([writing.scale["X"], writing.scale["Y"]])
        line = Line(
            name,
            writing.writer or str(Path(name).parent),
            "",
            points / scale,
            stroke_ends(strokes),
            spacing=(1 / scale[0], 1 / scale[1]),
        )
        return self._marked(line, _Components(name, writing.components))

    def _include(self, writing: _Writing, included: str, by: str, depth: int) -> None:
        if depth > DEEPEST_INCLUDE:
            raise BrokenLine(f"include/{by}: files include each other without end")
        for statement in statements(self._include_text(included, by)):
            if statement.keyword == "INCLUDE":
                self._include(writing, statement.rest.strip(), by, depth + 1)
            else:
                writing.take(f"include/{included}", statement)

    def _include_text(self, included: str, by: str) -> str:
        if included in self._read:
            return self._read[included]
        try:
            path = (self.include / included).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with a byte of 0
            raise BrokenLine(f"include/{included[:60]!r}: is not the name of a file ({error})") from error
        if self.include.resolve() not in path.parents:
            raise BrokenLine(f"include/{included}: is outside of the corpus")
        text = _text(path, f"include/{included}", f", which the marks of {by} include")
        if included != by:
            self._read[included] = text
        return text

    def _marked(self, line: Line, components: _Components) -> Line:
        found: Dict[str, List[Tuple[int, str]]] = {}
        for segment in self._segments[line.name]:
            found.setdefault(segment.level, []).append((components.last_point(segment), segment.label))
        for level in found.values():
            level.sort(key=lambda entry: entry[0])
        count = len(line.points)
        text = " ".join(label for _, label in found.get("TEXT", []) or found.get("WORD", []))
        characters = [place for place, _ in found.get("CHARACTER", [])]
        words: Optional[List[int]] = [place for place, _ in found.get("WORD", [])]
        if not words and characters:
            words = word_ends(text, [label for _, label in found["CHARACTER"]], characters)
        return line._replace(
            text=text,
            characters=marks(count, characters) if characters else None,
            words=marks(count, words) if words else None,
        )


class _Components:
    """Where a text's components lie among the points of its strokes."""

    def __init__(self, name: str, components: List[Tuple[bool, np.ndarray]]):
        self.name = name
        self.sizes = [len(points) for _, points in components]
        drawn = np.concatenate([np.full(len(points), down) for down, points in components])
        self.number = drawn.cumsum() - 1  # of each point, those with the pen up having that of the point before
        self.starts = np.cumsum([0, *self.sizes])

    def last_point(self, segment: Segment) -> int:
        """Number, among the points of strokes, of the last one that the segment covers."""
        try:
            return max(self._range_end(part, segment) for part in segment.delineation.split(","))
        except ValueError as error:
            raise BrokenLine(f"include/{self.name}: .SEGMENT {segment.level} {error}") from error

    def _range_end(self, text: str, segment: Segment) -> int:
        matched = _RANGE.match(text.strip())
        if matched is None:
            raise ValueError(f"{segment.delineation} is no range of components, such as 3, 0-5 or 0:2-1:7")
        first, first_point, last, last_point = matched.groups()
        component = int(first if last is None else last)
        if component >= len(self.sizes) or component < int(first):
            raise ValueError(f"{segment.delineation} marks components that are not among the {len(self.sizes)}")
        point = first_point if last is None else last_point
        place = self.sizes[component] - 1 if point is None else int(point)
        if place >= self.sizes[component]:
            raise ValueError(f"{segment.delineation} marks a point that component {component} does not have")
        return max(int(self.number[self.starts[component] + place]), 0)


def _read_marks(name: str, text: str) -> Tuple[List[str], List[Segment]]:
    """The files that a file of data/ includes, that of the pen points last, and the segments that it marks."""
    included, found = [], []
    for statement in statements(text):
        if statement.keyword == "INCLUDE":
            included.append(os.path.normpath(statement.rest.strip()))
        elif statement.keyword == "SEGMENT":
            matched = _SEGMENT.match(statement.rest)
            if matched is None:
                raise BrokenLine(f"{name}: .SEGMENT {statement.rest[:60]} has no level and range")
            level, delineation, label = matched.groups()
            found.append(Segment(level, delineation, _ESCAPED.sub(r"\1", label or "")))
    if not included:
        raise BrokenLine(f"{name}: is empty, or has no .INCLUDE of a file with pen points")
    return included, found


def _text(path: Path, name: str, why: str = "") -> str:
    """The text of a file; its encoding is not stated, and keywords and numbers are ASCII."""
    if not path.is_file():
        raise BrokenLine(f"{name}: there is no such file{why}")
    if path.stat().st_size > LARGEST_FILE:
        raise BrokenLine(f"{name}: has more than {LARGEST_FILE:,} bytes, which no text has")
    return path.read_text(encoding="latin-1")


def _positive(name: str, keyword: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise BrokenLine(f"{name}: .{keyword} {text} is no positive number")
    return value
