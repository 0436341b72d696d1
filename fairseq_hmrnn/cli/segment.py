"""Segment text with a trained HM-LSTM.

    fairseq-hmrnn segment checkpoints/mytext < some.txt                        # to|be|or ...
    fairseq-hmrnn segment checkpoints/mytext --format json < some.txt          # all layers
    fairseq-hmrnn segment checkpoints/mytext --independent-lines --text lines.txt
    fairseq-hmrnn segment checkpoints/mytext --gold whitespace < some.txt
    fairseq-hmrnn segment checkpoints/unspaced --text unspaced.txt --independent-lines --lexicon
    fairseq-hmrnn segment checkpoints/seed1 checkpoints/seed2 --text lines.txt --independent-lines   # decide together

Text of any length, read as it comes, the model's state carried on; with --independent-lines each line is read by
itself, many at a time, which is several times as fast. Output: the text with a separator after each segment; JSON
lines, one for each stretch that no layer cuts; or, with --gold, a table of how well the boundaries agree with gold
ones, beside random boundaries, every k-th character, and peaks of the model's own surprisal and entropy: precision (P),
recall (R) and F1 of boundaries (within lines; with the edges of lines; within one character, "+-1"), of tokens (whole
words at their place) and of types (the lexicon).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Iterable, Iterator, Sequence

import numpy as np

from ..analysis.comparison import comparison
from ..criterions.boundary_terms import teaches_first_layer
from ..inference.reader import Closings, Lookahead, Predictions, TextReader
from ..options import LARGEST_SIZE, whole
from ..segmentation.lexicon_search import resegmented
from ..text import code_points
from . import arguments as kinds
from .errors import UserError
from .files import PIECE, read_text, size_of, text_pieces
from .gold import SEPARATOR, add_gold, check_separator, gold_boundaries
from .progress import progress_bar
from .reading import load_reader

logger = logging.getLogger(__name__)


def add_arguments(parser: kinds.Parser) -> None:
    kinds.add_text_to_read(parser)
    add_gold(parser)
    add = parser.add_argument
    add("--format", choices=["text", "json"], default="text", help="of the output (default %(default)s)")
    add(
        "--layer",
        metavar="N",
        type=whole(1, 1000),
        help="whose boundaries, from 1 (default: 1; json and --gold have all)",
    )
    add(
        "--lookahead",
        metavar="N",
        type=whole(0, LARGEST_SIZE),
        help="characters of the next segment that a layer reads before it closes one: boundaries move back by as many "
        "(default: for each layer the delay that it learned)",
    )
    add(
        "--lexicon",
        action="store_true",
        help="place layer 1's boundaries by its detector and a lexicon inferred from this text: more accurate, .6 to "
        "1.3 times as many; for text without separators; reads all of it first",
    )
    add(
        "--no-peaks",
        action="store_true",
        help="with --gold: no rows of surprisal and entropy peaks, and so none of the predictions that they take",
    )
    add("--seed", metavar="N", type=kinds.GENERATOR_SEED, help="of --gold's random baseline (default 0)")


def run(args: argparse.Namespace) -> None:
    if args.gold and args.format == "json":
        raise UserError("--gold prints a table: leave --format json out")
    check_separator(args)
    if args.seed is not None and not args.gold:
        raise UserError("--seed is of the random baseline: it requires --gold")
    if args.separator and args.format == "json":
        raise UserError("--format json has no separators: leave --separator out")
    if args.layer is not None and (args.gold or args.format == "json"):
        raise UserError("--gold and --format json have all layers: leave --layer out")
    if args.lexicon and (args.layer or 1) > 1:
        raise UserError("--lexicon is of layer 1: leave --layer out")
    if args.no_peaks and not args.gold:
        raise UserError("--no-peaks requires --gold")
    (reader, lookahead, criterions), layer = load_reader(args), args.layer or 1
    if layer > reader.num_detectors:
        raise UserError(f"there is no layer {layer} with a detector: choose 1 to {reader.num_detectors}")
    if args.lexicon and not all(map(teaches_first_layer, criterions)):
        logger.warning(
            "layer 1 of this model was not trained to find segments, so --lexicon is unreliable: train with a "
            "regularizer that listens, such as lexicon, or with boundary-supervision"
        )
    if args.gold:
        _compare(args, reader, lookahead)
        return
    with progress_bar(size_of(args.text), "B", hidden=sys.stdout.isatty()) as progress:
        pieces = text_pieces(args.text, progress.update)
        closed = (
            _closings_with_lexicon(reader, pieces, lookahead) if args.lexicon else reader.closings(pieces, lookahead)
        )
        if args.format == "json":
            _write_json(closed)
        else:
            _write_text(closed, layer - 1, args.separator or SEPARATOR)


def _compare(args: argparse.Namespace, reader: TextReader, lookahead: Lookahead) -> None:
    text = read_text(args.text)
    if not text:
        raise UserError("the text is empty: there is nothing to compare")
    golds = gold_boundaries(args.gold, text, args.separator)
    found, probs, predicted = [], [], []
    with progress_bar(len(text), " characters") as progress:
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            if args.no_peaks and not args.lexicon:
                found.append(reader.boundaries(piece))
            else:
                if args.no_peaks:
                    reading = reader.read(piece)
                else:
                    reading, predictions = reader.read_with_predictions(piece)
                    predicted.append(predictions)
                found.append(reading.boundaries)
                probs.append(reading.boundary_probs)
            progress.update(len(piece))
    boundaries, signals = reader.closed_earlier(text, np.concatenate(found), lookahead) > 0.5, {}
    if predicted:
        predictions = Predictions(*map(np.concatenate, zip(*predicted)))
        signals = {"surprisal": predictions.next_surprisal, "entropy": predictions.entropy}
    if args.lexicon:
        signals["lexicon"] = _ends_with_lexicon(
            text, boundaries, reader.closed_earlier(text, np.concatenate(probs), lookahead)
        )
    for line in comparison(boundaries, golds, **signals, seed=args.seed or 0):
        print(line)


def _ends_with_lexicon(text: str, boundaries: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """bool (T,), where segments of layer 1 end by its z and z~, (T, detectors) each, and a lexicon of the text; where
    lines end, which the lexicon knows, by z alone."""
    symbols = code_points(text)
    newline = symbols == ord("\n")
    begins, z_tilde = (np.append(0, x[:-1, 0]) for x in (boundaries, probs))
    certain = newline | np.append(True, newline[:-1])
    found = np.where(certain, begins > 0.5, resegmented(symbols, begins > 0.5, z_tilde, certain))
    return np.append(found[1:], boundaries[-1, 0])


def _closings_with_lexicon(reader: TextReader, pieces: Iterable[str], lookahead: Lookahead) -> Iterator[Closings]:
    """As TextReader.closings, all at once."""
    texts, readings = [], []
    for piece in filter(None, pieces):
        texts.append(piece)
        readings.append(reader.read(piece)[:2])
    text = "".join(texts)
    if not text:
        return
    found, probs = (np.concatenate(arrays) for arrays in zip(*readings))
    boundaries, probs = (reader.closed_earlier(text, array, lookahead) for array in (found > 0.5, probs))
    boundaries[:, 0] = _ends_with_lexicon(text, boundaries, probs)
    yield Closings(text, boundaries)


def _write_text(closed: Iterable[Closings], layer: int, separator: str) -> None:
    for text, boundaries in closed:
        cuts = [0, *(np.flatnonzero(boundaries[:, layer]) + 1).tolist(), len(text)]
        sys.stdout.write(separator.join(text[start:stop] for start, stop in zip(cuts, cuts[1:])))
        sys.stdout.flush()


def _write_json(closed: Iterable[Closings]) -> None:
    """{"start", "stop", "text", "layers"}: characters start to stop of the text, and the layers that end there."""
    start, pending = 0, ""
    for text, boundaries in closed:
        begin = 0
        for stop in (np.flatnonzero(boundaries.any(1)) + 1).tolist():
            pending += text[begin:stop]
            _write_line(start, pending, (np.flatnonzero(boundaries[stop - 1]) + 1).tolist())
            start, pending, begin = start + len(pending), "", stop
        pending += text[begin:]
        sys.stdout.flush()
    if pending:
        _write_line(start, pending, [])


def _write_line(start: int, text: str, layers: Sequence[int]) -> None:
    record = {"start": start, "stop": start + len(text), "text": text, "layers": layers}
    print(json.dumps(record, ensure_ascii=False))
