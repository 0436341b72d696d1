"""Draw a written line whose strokes change colour where the layers of a trained model close their segments.

fairseq-hmrnn plot-handwriting checkpoints/handwriting --data data/handwriting --line 3 --out line.png
"""

from __future__ import annotations

import argparse

from ..analysis.strokes import plot_strokes
from ..inference.handwriting import Writer
from .arguments import Parser, add_checkpoint, picture
from .files import whole_file
from .handwriting_lines import add_line, boundaries_by_layer, read_line


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, type=picture, metavar="FILE", help="the picture: .svg, .png or .pdf")
    add_line(parser, required=True)
    parser.add_argument("--marks", action="store_true", help="draw the marked characters and words too")


def run(args: argparse.Namespace) -> None:
    """Write the picture and say the line's likelihood."""
    writer = Writer.load(args.checkpoint)
    line = read_line(args, writer.normalization)
    written = writer.read(line.steps)
    drawn = {**boundaries_by_layer(written.boundaries), **(line.marks if args.marks else {})}
    with whole_file(args.out) as unfinished:
        plot_strokes(writer.normalization.points(line.steps), line.steps[:, 2], drawn, unfinished)
    print(line.text)
    print(f"log-likelihood {written.log_probs.sum():.1f} nats over {len(line.steps) - 1:,} steps: {args.out}")
