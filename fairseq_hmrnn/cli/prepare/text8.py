"""text8: the first 90M characters for training, 5M for validation, 5M for testing.

fairseq-hmrnn prepare text8 text8 --dest data/text8
"""

from __future__ import annotations

import argparse

from ...data.corpora import text8
from ..arguments import Parser, existing_file
from .corpus import binarise
from .destination import add_destination


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=existing_file, help="the unpacked text8, of 100,000,000 bytes")
    add_destination(parser, "data/text8")


def run(args: argparse.Namespace) -> None:
    binarise(args, lambda: text8(args.file), "text8")
