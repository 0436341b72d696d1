"""Have a model of handwriting write: strokes as SVG, PNG or PDF.

fairseq-hmrnn sample-handwriting checkpoints/handwriting --out line.svg --bias 1
fairseq-hmrnn sample-handwriting checkpoints/handwriting --out line.png --data data/handwriting
"""

from __future__ import annotations

import argparse
from typing import Optional

import numpy as np
import torch

from ..analysis.strokes import plot_strokes
from ..inference.handwriting import Writer
from ..options import number, whole
from .arguments import GENERATOR_SEED, STEPS, Parser, add_checkpoint, picture
from .errors import UserError
from .files import whole_file
from .handwriting_lines import add_line, boundaries_by_layer, read_line


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, type=picture, metavar="FILE", help="the picture: .svg, .png or .pdf")
    parser.add_argument("--steps", type=STEPS, default=600, metavar="N", help="points to write (default %(default)s)")
    parser.add_argument(
        "--bias",
        type=number(0, 100),
        default=0.0,
        metavar="B",
        help="from 0, how much tidier than what was read (Graves' b; default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=GENERATOR_SEED, default=1, metavar="N", help="of the sample (default %(default)s)"
    )
    parser.add_argument(
        "--boundaries",
        action="store_true",
        help="draw it once for each layer, colours changing where the layer closes a segment",
    )
    add_line(parser, required=False)
    parser.add_argument(
        "--beginning",
        type=whole(1),
        metavar="N",
        help="with --data: points of the line that the sample goes on from (default 100)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the picture of one sample."""
    if args.data is None and any(value is not None for value in (args.split, args.line, args.beginning)):
        raise UserError("--split, --line and --beginning are of a line to go on from: they require --data")
    writer = Writer.load(args.checkpoint)
    beginning: Optional[np.ndarray] = None
    if args.data is not None:
        beginning = read_line(args, writer.normalization).steps[: args.beginning or 100]
    torch.manual_seed(args.seed)
    written = writer.write(args.steps, args.bias, beginning)
    points = writer.normalization.points(written.steps)
    if not np.isfinite(points).all():
        raise UserError("the model wrote numbers that are not finite: train it longer, or give --bias 1")
    drawn = boundaries_by_layer(written.boundaries) if args.boundaries else None
    with whole_file(args.out) as unfinished:
        plot_strokes(points, written.steps[:, 2], drawn, unfinished)
    print(f"{len(points):,} points in {int(written.steps[:, 2].sum()):,} strokes: {args.out}")
