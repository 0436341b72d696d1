"""Penn Treebank as characters, from Mikolov's files.

    fairseq-hmrnn prepare ptb simple-examples/data --dest data/ptb

The folder has ptb.train.txt, ptb.valid.txt and ptb.test.txt (words), or ptb.char.train.txt and so on (characters with
spaces between, "_" for a space). As published: lines without the spaces around them, one symbol per character, the
newline is one too. The splits must have the published sizes.
"""

from __future__ import annotations

import argparse

from ...data.corpora import penn_treebank
from ..arguments import Parser, existing_folder
from .corpus import binarise
from .destination import add_destination


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=existing_folder, help="the folder with the three files")
    add_destination(parser, "data/ptb")


def run(args: argparse.Namespace) -> None:
    binarise(args, lambda: penn_treebank(args.folder), "ptb")
