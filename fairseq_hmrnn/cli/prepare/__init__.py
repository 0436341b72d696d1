"""Prepare data for training: a text, a published corpus, parallel text, a synthetic language, handwriting.

    fairseq-hmrnn prepare text mytext.txt --dest data/mytext
    fairseq-hmrnn prepare ptb --help

Nothing is downloaded. A kind of data is a module of this folder, and a line in KINDS.
"""

from __future__ import annotations

from ..arguments import Parser
from . import enwik8, handwriting, ptb, synthetic, text, text8, translation

KINDS = {
    "text": text,
    "ptb": ptb,
    "text8": text8,
    "enwik8": enwik8,
    "translation": translation,
    "synthetic": synthetic,
    "handwriting": handwriting,
}


def add_arguments(parser: Parser) -> None:
    parser.add_commands(KINDS, "KIND")
