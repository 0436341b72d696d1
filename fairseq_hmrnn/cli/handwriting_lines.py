"""Shared by the commands of handwriting: a line of a prepared folder, and its layers by name."""

from __future__ import annotations

import argparse
from typing import Dict, NamedTuple

import numpy as np

from ..data.handwriting import Normalization, load_normalization, load_split
from ..data.handwriting.store import CHARACTER, WORD
from ..options import whole
from .arguments import path
from .errors import UserError


class PreparedLine(NamedTuple):
    """steps: (N, 3), normalised. marks: label -> (N,) bool, the gold boundaries that are marked. text: of the line."""

    steps: np.ndarray
    marks: Dict[str, np.ndarray]
    text: str


def add_line(parser: argparse.ArgumentParser, required: bool) -> None:
    """--data, --split and --line."""
    parser.add_argument("--data", metavar="DIR", type=path, required=required, help="folder of prepared handwriting")
    parser.add_argument("--split", metavar="SPLIT", help="of that folder (default test)")
    parser.add_argument("--line", type=whole(), metavar="N", help="of that split, from 0 (default 0)")


def read_line(args: argparse.Namespace, normalization: Normalization) -> PreparedLine:
    """The line that the arguments name. UserError where there is none, or where it is normalised in another way than
    the model was trained on."""
    if load_normalization(args.data) != normalization:
        raise UserError(f"{args.data} is normalised in another way than the model was trained on: give that folder")
    split, number = args.split or "test", args.line or 0
    strokes = load_split(args.data, split)
    count = len(strokes.names)
    if number >= count:
        raise UserError(f"the split {split} has {count} lines, numbered from 0: give a smaller --line")
    place, known = strokes.line(number), int(strokes.known[number])
    kinds = {"characters": CHARACTER, "words": WORD}
    marks = {name: strokes.marks[place] & bit > 0 for name, bit in kinds.items() if known & bit}
    return PreparedLine(strokes.steps[place], marks, str(strokes.texts[number]))


def boundaries_by_layer(boundaries: np.ndarray) -> Dict[str, np.ndarray]:
    """(N, detectors) as label -> (N,). UserError for a model without boundaries."""
    if not boundaries.shape[1]:
        raise UserError("the model has no boundaries to draw")
    return {f"layer {layer + 1}": marks for layer, marks in enumerate(boundaries.T)}
