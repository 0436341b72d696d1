"""Arguments and the work itself of the commands for published corpora."""

from __future__ import annotations

import argparse
import shlex
from typing import Callable, Dict

from ...data.binarize import TextSource, prepare
from ...data.folders import check_destination
from ..arguments import Parser, data_to_write


def add_destination(parser: Parser, default: str) -> None:
    """The arguments that say where the data goes."""
    parser.add_argument(
        "--dest",
        metavar="DIR",
        type=data_to_write,
        default=default,
        help="where the data is written (default %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace prepared data, of any kind, that is in DIR")


def binarise(args: argparse.Namespace, load: Callable[[], Dict[str, TextSource]], recipe: str) -> None:
    """Prepare a corpus of three splits, which `load` returns, and say how to train on it."""
    check_destination(args.dest, args.overwrite)
    print("\n".join(prepare(load(), args.dest, {})))
    print(f"written to {args.dest}. To train on it:\nfairseq-hmrnn train {recipe} {shlex.quote(args.dest)}")
