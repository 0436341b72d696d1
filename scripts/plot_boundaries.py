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
from fairseq_hmrnn.checkpoints import UnsafeCheckpointError  # noqa: E402
from fairseq_hmrnn.reader import CharacterReader  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="of an hmlstm_lm trained on characters")
    parser.add_argument("data", nargs="?", help="the prepared folder with its dict.txt (default: that of the training)")
    parser.add_argument("--text", default="-", help="a UTF-8 file; - reads standard input (default)")
    parser.add_argument(
        "--out", nargs="+", default=["boundaries.png"], help=".png, .svg or .pdf, or several (default: boundaries.png)"
    )
    parser.add_argument("--norms", metavar="OUT", help="also draw a heat map of the norms of h, here")
    parser.add_argument("--log", help="what fairseq-train printed: also draw boundary rates over training, to --rates")
    parser.add_argument("--rates", metavar="OUT", help="with --log (default: rates.png)")
    parser.add_argument(
        "--lookahead", type=int, default=0, help="draw boundaries this many characters earlier, as segment.py does"
    )
    parser.add_argument("--width", type=int, default=80, help="the most characters in a line (default: 80)")
    parser.add_argument("--title", help="over the picture")
    arguments = parser.parse_args()
    if arguments.rates and not arguments.log:
        parser.error("--rates wants --log, what fairseq-train printed")
    arguments.rates = arguments.rates or "rates.png"
    return arguments


def draw(arguments, text):
    """Draw everything that was asked for; the boundaries and the names of the files."""
    written = [*arguments.out, *([arguments.norms] if arguments.norms else [])]
    written += [arguments.rates] if arguments.log else []
    for path in written:
        check_path(path)
    if arguments.log:
        with open(arguments.log, encoding="utf-8") as log:
            curves = read_log(log)
    reading = CharacterReader(arguments.checkpoint, arguments.data).read(text).closed_earlier(arguments.lookahead)
    for path in arguments.out:
        plot_boundaries(text, reading.boundaries, path, width=arguments.width, title=arguments.title)
    if arguments.norms:
        plot_norms(text, reading.norms, arguments.norms, width=arguments.width, title=arguments.title)
    if arguments.log:
        plot_training(curves, arguments.rates)
    return reading.boundaries, written


def main():
    arguments = parse_arguments()
    logging.disable(logging.INFO)
    try:
        text = (sys.stdin.buffer.read() if arguments.text == "-" else Path(arguments.text).read_bytes()).decode()
        if not text:
            raise ValueError("the text is empty: there is nothing to draw")
        boundaries, written = draw(arguments, text)
    except (OSError, ImportError, ValueError, UnsafeCheckpointError) as error:
        sys.exit(f"plot_boundaries: {error}")
    for layer, rate in enumerate(boundaries.mean(0), 1):
        print(f"layer {layer}: a boundary every {1 / rate:.1f} characters" if rate else f"layer {layer}: no boundary")
    print(f"written: {', '.join(written)}")


if __name__ == "__main__":
    main()
