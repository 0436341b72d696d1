"""IAM-OnDB (Liwicki and Bunke 2005): a file of XML for each written line.

`lineStrokes/a01/a01-000/a01-000u-01.xml` has the first line of the form a01-000u: a `Stroke` for each stroke, in it a
`Point` with x and y for each point, y downwards. `ascii/a01/a01-000/a01-000u.txt` has the texts of the form's lines
after a line "CSR:", and `original/a01/a01-000/strokesu.xml` its writer. The lists `trainset.txt`, `testset_t.txt`,
`testset_v.txt` and `testset_f.txt` have the forms of the published splits. Characters and words are not marked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple
from xml.etree import ElementTree

import numpy as np

from .lines import LARGEST_FILE, BrokenLine, Line, join_strokes, stroke_ends

# Of the published splits, testset_t is a second validation set: here it is for training, as in Graves 2013.
PUBLISHED = {"trainset.txt": "train", "testset_t.txt": "train", "testset_v.txt": "valid", "testset_f.txt": "test"}
_NAME = re.compile(r"([a-z]\d\d-\d\d\d)([a-z]?)-(\d\d)$")
_WRITER = re.compile(rb'writerID="([^"]*)"')


def is_corpus(folder: Path) -> bool:
    return (folder / "lineStrokes").is_dir()


class Corpus:
    """The lines of a folder with `lineStrokes/`. names: the files of lines, sorted. splits: the form of each published
    list -> the split, empty without the lists."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.broken: List[BrokenLine] = []
        self.names = sorted(str(path.relative_to(folder)) for path in (folder / "lineStrokes").rglob("*.xml"))
        self.splits: Dict[str, str] = {}
        for file, split in PUBLISHED.items():
            for path in folder.rglob(file):
                self.splits.update(dict.fromkeys(path.read_text(encoding="ascii", errors="replace").split(), split))
        self._texts: Dict[str, List[str]] = {}
        self._writers: Dict[str, str] = {}

    def published_split(self, name: str) -> Optional[str]:
        """The split that a line belongs to; None if no list has its form, with or without the letter after it."""
        form, _ = _form_and_number(name)
        return self.splits.get(form) or self.splits.get(form[:7])

    def read(self, name: str) -> Line:
        """The line in the file `name`. BrokenLine where it cannot be used."""
        path = self.folder / name
        if path.stat().st_size > LARGEST_FILE:
            raise BrokenLine(f"{name}: has more than {LARGEST_FILE:,} bytes, which no line has")
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise BrokenLine(f"{name}: defines entities, which no file of the corpus does")
        try:
            root = ElementTree.fromstring(data)
        except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two of its encoding
            raise BrokenLine(f"{name}: is empty or no XML ({error})") from error
        strokes = [_points(name, stroke) for stroke in root.iter("Stroke")]
        points = join_strokes(name, strokes) * (1, -1)
        form, number = _form_and_number(name)
        texts = self._texts_of(form)
        text = texts[number - 1] if 0 < number <= len(texts) else ""
        return Line(name, self._writer_of(form), text, points, stroke_ends(strokes))

    def _texts_of(self, form: str) -> List[str]:
        if form not in self._texts:
            path = self.folder / "ascii" / form[:3] / form[:7] / f"{form}.txt"
            found = path.read_text(encoding="latin-1").partition("CSR:")[2] if path.is_file() else ""
            self._texts[form] = [line for line in found.split("\n") if line.strip()]
        return self._texts[form]

    def _writer_of(self, form: str) -> str:
        """The writer by the form's file; without that file the form itself, though a writer wrote several."""
        if form not in self._writers:
            path = self.folder / "original" / form[:3] / form[:7] / f"strokes{form[7:]}.xml"
            found = _WRITER.search(path.read_bytes()) if path.is_file() else None
            self._writers[form] = found.group(1).decode("latin-1") if found else form
        return self._writers[form]


def _form_and_number(name: str) -> Tuple[str, int]:
    """The form that the line in a file of this name belongs to, and which of its lines it is, from 1."""
    matched = _NAME.search(Path(name).stem)
    if matched is None:
        raise BrokenLine(f"{name}: is not named as a line, such as a01-000u-01.xml")
    form, letter, number = matched.groups()
    return form + letter, int(number)


def _points(name: str, stroke) -> np.ndarray:
    try:
        found = [[float(point.get("x")), float(point.get("y"))] for point in stroke.iter("Point")]
    except (TypeError, ValueError) as error:
        raise BrokenLine(f"{name}: a Point needs numbers as x and y") from error
    return np.array(found).reshape(-1, 2)
