"""Draw what a trained HM-LSTM made of a text: the boundaries of each layer, as in the figures of the paper.

    fairseq-hmrnn plot checkpoints/mytext --text some.txt --out boundaries.png
    fairseq-hmrnn plot checkpoints/mytext --text some.txt --norms norms.png --log train.log --rates rates.png
    fairseq-hmrnn plot checkpoints/unspaced --text some.txt --html boundaries.html --gold some.words.txt

With --html a page for a browser, a single file: the text with the boundaries under it, gold ones beside them, and the
probabilities of the character pointed at. A text may have 100,000 bytes for a page, 20,000 for a picture. With --norms
also how large each layer's hidden state is; with --log its boundary rates during training. Several checkpoints decide
together; norms are those of the first.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from ..analysis import boundary_page, plot_boundaries, plot_norms, plot_training, read_log
from ..options import LARGEST_SIZE, whole
from . import arguments as kinds
from .errors import UserError
from .files import read_text, refuse_repeats, whole_file
from .gold import add_gold, check_separator, gold_boundaries
from .reading import load_reader

LARGEST_PICTURE = 20_000  # bytes of text: a picture of more cannot be read, nor drawn in a minute
LARGEST_PAGE = 100_000  # a browser takes seconds
WIDTH = 80
PICTURE, RATES = "boundaries.png", "rates.png"


def add_arguments(parser: kinds.Parser) -> None:
    kinds.add_text_to_read(parser)
    add = parser.add_argument
    add(
        "--out",
        metavar="FILE",
        nargs="+",
        type=kinds.picture,
        default=[],
        help=f".png, .svg or .pdf, or several, of at most {LARGEST_PICTURE:,} bytes of text (default: {PICTURE}, or "
        "none with --html)",
    )
    add(
        "--html",
        metavar="FILE",
        type=kinds.page,
        help=f"a page for a browser, which shows the probabilities too, of at most {LARGEST_PAGE:,} bytes of text",
    )
    add_gold(parser)
    add("--norms", metavar="FILE", type=kinds.picture, help="also draw a heat map of the norms of h, here")
    add(
        "--log",
        metavar="FILE",
        type=kinds.existing_file,
        help="what training printed (train ... 2>&1 | tee FILE; of a recipe hydra_train.log beside its checkpoints): "
        "also draw boundary rates over training, to --rates",
    )
    add("--rates", metavar="FILE", type=kinds.picture, help=f"with --log (default: {RATES})")
    add(
        "--lookahead",
        metavar="N",
        type=whole(0, LARGEST_SIZE),
        help="draw boundaries this many characters earlier (default: as `segment` does)",
    )
    add("--width", metavar="N", type=whole(1, 1000), help=f"the most characters in a picture's line (default: {WIDTH})")
    add("--title", metavar="TEXT", type=kinds.text, help="over the picture")


def run(args: argparse.Namespace) -> None:
    if args.rates and not args.log:
        raise UserError("--rates requires --log, what fairseq-train printed")
    if args.gold and not args.html:
        raise UserError("--gold requires --html: pictures have no row for it")
    if args.width and args.html and not args.out and not args.norms:
        raise UserError("--width applies to pictures, a page wraps at the browser's width: give --out too")
    check_separator(args)
    if args.separator and not args.gold:
        raise UserError("--separator requires --gold, a file with separators")
    args.out = args.out or ([] if args.html else [PICTURE])
    rates: Optional[str] = (args.rates or RATES) if args.log else None
    for name in filter(None, [*args.out, rates]):
        kinds.picture(name)  # argparse does not look at defaults
    refuse_repeats(filter(None, [*args.out, args.norms, rates, args.html]))
    text = read_text(args.text, LARGEST_PICTURE if args.out or args.norms else LARGEST_PAGE)
    if not text:
        raise UserError("the text is empty: there is nothing to draw")
    boundaries, written = _draw(args, text, rates)
    for layer, rate in enumerate(boundaries.mean(0), 1):
        print(f"layer {layer}: a boundary every {1 / rate:.1f} characters" if rate else f"layer {layer}: no boundary")
    print(f"written: {', '.join(written)}")


def _draw(args: argparse.Namespace, text: str, rates: Optional[str]) -> Tuple[np.ndarray, List[str]]:
    """Draw everything that was asked for; the boundaries and the names of the files."""
    curves = read_log(read_text(args.log).splitlines()) if args.log else None
    golds = gold_boundaries(args.gold, text, args.separator) if args.gold else {}
    reader, lookahead, _ = load_reader(args)
    reading = reader.read(text)
    boundaries, probs = (reader.closed_earlier(text, array, lookahead) for array in reading[:2])
    style = {"width": args.width or WIDTH, "title": args.title}
    pictures = [(path, lambda out: plot_boundaries(text, boundaries, out, **style)) for path in args.out]
    if args.norms:
        pictures.append((args.norms, lambda out: plot_norms(text, reading.norms, out, **style)))
    if rates and curves is not None:
        pictures.append((rates, functools.partial(plot_training, curves)))
    if args.html:
        html = boundary_page(text, boundaries, probs, next(iter(golds.values()), None), args.title)
        pictures.append((args.html, lambda out: Path(out).write_text(html, encoding="utf-8")))
    for path, plot in pictures:
        with whole_file(path) as unfinished:
            plot(unfinished)
    return boundaries, [path for path, _ in pictures]
