"""enwik8: the first 90M bytes for training, 5M for validation, 5M for testing.

    fairseq-hmrnn prepare enwik8 enwik8 --dest data/enwik8

A symbol is a byte: byte b becomes the character U+00b, so that the codec of characters gives every byte a symbol.
"""

from __future__ import annotations

import argparse

from ...data.corpora import enwik8
from ..arguments import Parser, existing_file
from .corpus import binarise
from .destination import add_destination


def add_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=existing_file, help="the unpacked enwik8, of 100,000,000 bytes")
    add_destination(parser, "data/enwik8")


def run(args: argparse.Namespace) -> None:
    binarise(args, lambda: enwik8(args.file), "enwik8")
