#!/usr/bin/env python3
"""Pictures of what a trained HM-LSTM made of a text: the boundaries of each layer, as in the figures of the HM-LSTM
paper; with --norms, how large each layer's hidden state is; with --log, its boundary rates during training."""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_hmrnn.analysis import plot_boundaries, plot_norms, plot_training, read_log  # noqa: E402
from fairseq_hmrnn.analysis.plots import check_path  # noqa: E402
from fairseq_hmrnn.cli import arguments as kinds  # noqa: E402
from fairseq_hmrnn.cli.errors import run_command  # noqa: E402
from fairseq_hmrnn.cli.files import read_text, whole_file  # noqa: E402
from fairseq_hmrnn.inference.reader import CharacterReader  # noqa: E402
from fairseq_hmrnn.options import LARGEST_SIZE, whole  # noqa: E402

LARGEST_PICTURE = 20_000  # bytes of text: a picture of more cannot be read, nor drawn in a minute


def picture(argument):
    """The name of a picture to draw."""
    try:
        check_path(kinds.new_file(argument))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return argument


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=kinds.path, help="of an hmlstm_lm trained on characters")
    parser.add_argument(
        "data", nargs="?", type=kinds.prepared_folder,
        help="the prepared folder with its dict.txt (default: that of the training)",
    )
    parser.add_argument(
        "--text", default="-", type=kinds.file_or_input, help="a UTF-8 file; - reads standard input (default)"
    )
    parser.add_argument(
        "--out",
        nargs="+",
        type=picture,
        default=["boundaries.png"],
        help=".png, .svg or .pdf, or several (default: boundaries.png)",
    )
    parser.add_argument("--norms", metavar="OUT", type=picture, help="also draw a heat map of the norms of h, here")
    parser.add_argument(
        "--log",
        type=kinds.existing_file,
        help="what fairseq-train printed: also draw boundary rates over training, to --rates",
    )
    parser.add_argument("--rates", metavar="OUT", type=picture, help="with --log (default: rates.png)")
    parser.add_argument(
        "--lookahead",
        type=whole(0, LARGEST_SIZE),
        default=0,
        help="draw boundaries this many characters earlier, as segment.py does",
    )
    parser.add_argument("--width", type=whole(1, 1000), default=80, help="the most characters in a line (default: 80)")
    parser.add_argument("--title", type=kinds.text, help="over the picture")
    arguments = parser.parse_args()
    if arguments.rates and not arguments.log:
        parser.error("--rates requires --log, what fairseq-train printed")
    for name in arguments.out if arguments.rates else [*arguments.out, "rates.png"]:
        picture(name)  # argparse does not look at defaults
    arguments.rates = arguments.rates or "rates.png"
    return arguments


def draw(arguments, text):
    """Draw everything that was asked for; the boundaries and the names of the files."""
    curves = read_log(read_text(arguments.log).splitlines()) if arguments.log else None
    reading = CharacterReader(arguments.checkpoint, arguments.data).read(text).closed_earlier(arguments.lookahead)
    style = {"width": arguments.width, "title": arguments.title}
    pictures = [(path, lambda out: plot_boundaries(text, reading.boundaries, out, **style)) for path in arguments.out]
    if arguments.norms:
        pictures.append((arguments.norms, lambda out: plot_norms(text, reading.norms, out, **style)))
    if arguments.log:
        pictures.append((arguments.rates, lambda out: plot_training(curves, out)))
    for path, plot in pictures:
        with whole_file(path) as unfinished:
            plot(unfinished)
    return reading.boundaries, [path for path, _ in pictures]


def main():
    arguments = parse_arguments()
    logging.disable(logging.INFO)
    text = read_text(arguments.text, LARGEST_PICTURE)
    if not text:
        raise ValueError("the text is empty: there is nothing to draw")
    boundaries, written = draw(arguments, text)
    for layer, rate in enumerate(boundaries.mean(0), 1):
        print(f"layer {layer}: a boundary every {1 / rate:.1f} characters" if rate else f"layer {layer}: no boundary")
    print(f"written: {', '.join(written)}")


if __name__ == "__main__":
    run_command(main)
