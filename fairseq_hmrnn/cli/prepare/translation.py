"""Prepare parallel text for fairseq's translation task: a sentencepiece model for each side, and the binarised splits.

    fairseq-hmrnn prepare translation de en data/pairs

DIR has train.SRC and train.TGT, and of valid (or val, or dev) and test what is there, one sentence a line. The models
are trained on the training text and written beside the data, as spm.SRC.model and spm.TGT.model.
"""

from __future__ import annotations

import argparse

from ...data.folders import check_destination
from ...data.parallel import KINDS, LARGE, LEAST, NAMES, SMALL, SMALL_TEXT, Side, prepare_parallel
from ...options import whole
from ..arguments import Parser, data_to_write, existing_folder, language
from .destination import add_overwrite, print_written


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SRC", type=language, help="ending of the source files, such as de")
    parser.add_argument("target", metavar="TGT", type=language, help="ending of the target files, such as en")
    parser.add_argument("folder", metavar="DIR", type=existing_folder, help="folder with the texts")
    for side in ("source", "target"):
        parser.add_argument(
            f"--{side}-type", choices=KINDS, default="unigram", help=f"symbols of the {side} (default %(default)s)"
        )
        parser.add_argument(
            f"--{side}-size",
            type=whole(LEAST),
            metavar="N",
            help=f"size of the {side}'s vocabulary (default {SMALL} below {SMALL_TEXT:,} lines, else {LARGE}; of char: "
            "all)",
        )
    parser.add_argument(
        "--dest", metavar="DEST", type=data_to_write, help="where the data is written (default DIR/bin)"
    )
    add_overwrite(parser, "DEST")


def run(args: argparse.Namespace) -> None:
    sides = [
        Side(args.source, args.source_type, args.source_size),
        Side(args.target, args.target_type, args.target_size),
    ]
    dest = args.dest or data_to_write(f"{args.folder}/bin")
    check_destination(dest, args.overwrite)
    prepared = prepare_parallel(args.folder, dest, *sides)
    for split in NAMES:
        files = prepared.splits.get(split)
        text = "no text" if files is None else f"{files.lines:,} lines of {files.name}.{args.source} and .{args.target}"
        print(f"{split:6}{text}")
    symbols = ", ".join(
        f"{count} {side.kind} symbols of {side.language}" for side, count in zip(sides, prepared.symbols)
    )
    print_written(dest, what=symbols)
