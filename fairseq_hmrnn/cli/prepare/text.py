"""Binarise plain text for language models of characters: every character is one token.

    fairseq-hmrnn prepare text mytext.txt --dest data/mytext
    fairseq-hmrnn prepare text train.txt valid.txt test.txt --dest data/mytext

Missing splits are cut from the end of the training text at line borders. Any UTF-8 text comes back byte for byte.
"""

from __future__ import annotations

import argparse
from typing import Dict

from ...data.binarize import TextSource, prepare
from ...data.embedded import embedded_text
from ...data.folders import check_destination
from ..arguments import Parser, existing_file
from ..errors import UserError
from .destination import add_destination, print_written
from .shares import add_shares, shares

FRACTIONS = {"valid": 0.05, "test": 0.05}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("train", nargs="?", metavar="TRAIN", type=existing_file, help="training text, UTF-8")
    parser.add_argument("valid", nargs="?", metavar="VALID", type=existing_file, help="validation text")
    parser.add_argument("test", nargs="?", metavar="TEST", type=existing_file, help="test text")
    parser.add_argument(
        "--embedded", action="store_true", help="use CPython's own documentation topics instead of TRAIN"
    )
    add_destination(parser)
    parser.add_argument(
        "--dict", metavar="FILE", type=existing_file, help="use this dict.txt instead of one from the training split"
    )
    add_shares(
        parser,
        "share of TRAIN cut off for validation if there is no VALID",
        "share of TRAIN cut off for testing if there is no TEST; 0: no test split",
        FRACTIONS,
        no_test=True,
    )


def run(args: argparse.Namespace) -> None:
    sources = _sources(args)
    fractions = shares(args, FRACTIONS, sources)
    check_destination(args.dest, args.overwrite)
    print("\n".join(prepare(sources, args.dest, fractions, args.dict)))
    print_written(args.dest)


def _sources(args: argparse.Namespace) -> Dict[str, TextSource]:
    """The texts that the command line names."""
    if args.embedded:
        if args.train is not None:
            raise UserError("--embedded brings its own text: leave TRAIN, VALID and TEST out")
        return {"train": TextSource.from_text("the embedded text", embedded_text())}
    if args.train is None:
        raise UserError("no text: give a TRAIN file, or --embedded")
    paths = {"train": args.train, "valid": args.valid, "test": args.test}
    return {name: TextSource.from_file(path) for name, path in paths.items() if path is not None}
