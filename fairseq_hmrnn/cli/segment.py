"""Segment text with a trained HM-LSTM.

    fairseq-hmrnn segment checkpoints/mytext < some.txt                        # to|be|or ...
    fairseq-hmrnn segment checkpoints/mytext --format json < some.txt          # all layers
    fairseq-hmrnn segment checkpoints/mytext --gold whitespace < some.txt

Text of any length, read as it comes, the model's state carried on. Output: the text with a separator behind each
segment; JSON lines, one for each stretch that no layer cuts; or, with --gold, a table of how well the boundaries agree
with gold ones, beside random boundaries, every k-th character, and peaks of the model's own surprisal and entropy.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Dict, Iterable, Sequence

from ..analysis import segments
from ..analysis.comparison import comparison
from ..inference import hub
from ..inference.reader import CharacterReader, Closings, closed_earlier
from ..options import LARGEST_SIZE, whole
from . import arguments as kinds
from .errors import UserError
from .files import read_text, text_pieces


def add_arguments(parser: kinds.Parser) -> None:
    kinds.add_text_to_read(parser)
    add = parser.add_argument
    add("--format", choices=["text", "json"], default="text", help="of the output (default %(default)s)")
    add(
        "--layer",
        metavar="N",
        type=whole(1, 1000),
        help="whose boundaries, from 1 (default: 1; json and --gold have all)",
    )
    add(
        "--separator",
        metavar="TEXT",
        default="|",
        type=kinds.separator,
        help="behind each segment, here and in --gold (default: |)",
    )
    add(
        "--gold",
        metavar="GOLD",
        type=_gold,
        help="compare with: whitespace (word ends), lines (sentence ends), or a file, the same text with separators",
    )
    add(
        "--lookahead",
        metavar="N",
        type=whole(0, LARGEST_SIZE),
        default=0,
        help="characters that a layer reads of the next segment before it closes one: boundaries are put that far back "
        "(default: 0; 1 for layers trained with bidirectional)",
    )
    add("--seed", metavar="N", type=kinds.SEED, default=0, help="of the random baseline (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    if args.gold and args.format == "json":
        raise UserError("--gold prints a table: leave --format json out")
    if args.layer is not None and (args.gold or args.format == "json"):
        raise UserError("--gold and --format json have all layers: leave --layer out")
    reader, layer = hub.load([args.checkpoint], args.data).reader(), args.layer or 1
    if layer > reader.num_detectors:
        raise UserError(f"there is no layer {layer} with a detector: choose 1 to {reader.num_detectors}")
    if args.gold:
        _compare(args, reader)
        return
    closed = reader.closings(text_pieces(args.text), args.lookahead)
    if args.format == "json":
        _write_json(closed)
    else:
        _write_text(closed, layer - 1, args.separator)


def _gold(argument: str) -> str:
    """whitespace, lines, or a file."""
    return argument if argument in ("whitespace", "lines") else kinds.existing_file(argument)


def _compare(args: argparse.Namespace, reader: CharacterReader) -> None:
    text = read_text(args.text)
    if not text:
        raise UserError("the text is empty: there is nothing to compare")
    golds = _golds(args.gold, text, args.separator)
    reading, foretold = reader.read_with_predictions(text)
    boundaries = closed_earlier(reading.boundaries, args.lookahead) > 0.5
    for line in comparison(boundaries, foretold.next_surprisal, foretold.entropy, golds, args.seed):
        print(line)


def _golds(name: str, text: str, separator: str) -> Dict[str, segments.Gold]:
    """Gold boundaries by alignment."""
    if name == "whitespace":
        return segments.word_gold(text)
    if name == "lines":
        return {"newline": segments.line_gold(text)}
    marks = segments.segmented_gold(text, read_text(name), separator)
    return {"file": marks, "file, late": segments.late(marks)}


def _write_text(closed: Iterable[Closings], layer: int, separator: str) -> None:
    for text, boundaries in closed:
        sys.stdout.write("".join(c + separator if mark else c for c, mark in zip(text, boundaries[:, layer])))
        sys.stdout.flush()


def _write_json(closed: Iterable[Closings]) -> None:
    """{"start", "stop", "text", "layers"}: characters start to stop of the text, and the layers that end there."""
    start, pending = 0, ""
    for text, boundaries in closed:
        for character, closing in zip(text, boundaries.tolist()):
            pending += character
            if any(closing):
                _write_line(start, pending, [layer for layer, closes in enumerate(closing, 1) if closes])
                start, pending = start + len(pending), ""
        sys.stdout.flush()
    if pending:
        _write_line(start, pending, [])


def _write_line(start: int, text: str, layers: Sequence[int]) -> None:
    record = {"start": start, "stop": start + len(text), "text": text, "layers": layers}
    print(json.dumps(record, ensure_ascii=False))
