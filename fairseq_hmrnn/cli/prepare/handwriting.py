"""Prepare a corpus of handwriting for the task hmlstm_handwriting.

FOLDER has UNIPEN's layout (data/ and include/) or that of IAM-OnDB (lineStrokes/, and ascii/, original/ and the
published lists if there are). Files that cannot be used are named and left out.

    fairseq-hmrnn prepare handwriting unipen --dest data/handwriting
"""

from __future__ import annotations

import argparse
import sys

from ...data.folders import check_destination
from ...data.handwriting import prepare
from ..arguments import GENERATOR_SEED, Parser, existing_folder
from .destination import add_destination, print_written
from .shares import add_shares, shares

FRACTIONS = {"valid": 0.1, "test": 0.15}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=existing_folder, help="of the corpus")
    add_destination(parser)
    add_shares(
        parser,
        "share of the writers for validation; where characters are marked, valid and test have lines with marked "
        "characters alone",
        "share of the writers for testing; published lists go first",
        FRACTIONS,
    )
    parser.add_argument(
        "--seed", type=GENERATOR_SEED, default=1, metavar="N", help="of the choice of writers (default %(default)s)"
    )
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="add uniform noise within the tablet's spacing to each point: without it the likelihood of "
        "whole-number offsets is unbounded",
    )


def run(args: argparse.Namespace) -> None:
    """Prepare the folder and say how to train on it."""
    fractions = shares(args, FRACTIONS)
    check_destination(args.dest, args.overwrite)
    report = prepare(args.folder, args.dest, fractions, args.seed, args.dequantize)
    for error in report.skipped:
        print(f"skipped: {error}", file=sys.stderr)
    print("\n".join(report.written))
    if report.skipped:
        print(f"{len(report.skipped):,} files were skipped, as said above")
    print_written(args.dest, "handwriting")
