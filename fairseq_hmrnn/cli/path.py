"""Print the package's folder, for fairseq's own commands run from anywhere.

fairseq-train data/mytext --user-dir "$(fairseq-hmrnn path)" --task hmlstm_language_modeling ...
"""

from __future__ import annotations

import argparse

from .arguments import Parser
from .recipe import PACKAGE


def add_arguments(parser: Parser) -> None:
    """Adds no arguments."""


def run(args: argparse.Namespace) -> None:
    print(PACKAGE)
