"""The work of the commands for published corpora."""

from __future__ import annotations

import argparse
from typing import Callable, Dict

from ...data.binarize import TextSource, prepare
from ...data.folders import check_destination
from .destination import print_written


def binarise(args: argparse.Namespace, load: Callable[[], Dict[str, TextSource]], recipe: str) -> None:
    """Prepare a corpus of three splits, which `load` returns, and say how to train on it."""
    check_destination(args.dest, args.overwrite)
    print("\n".join(prepare(load(), args.dest, {})))
    print_written(args.dest, recipe)
