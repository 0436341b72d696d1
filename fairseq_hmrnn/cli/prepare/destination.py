"""Where prepared data goes: its arguments, and what is printed when it is there."""

from __future__ import annotations

import os
import shlex
from typing import Optional

from ..arguments import Parser, data_to_write
from ..recipe import is_recipe


def add_destination(parser: Parser, default: Optional[str] = None) -> None:
    """--dest, required if it has no default, and --overwrite."""
    parser.add_argument(
        "--dest",
        metavar="DIR",
        type=data_to_write,
        required=default is None,
        default=default,
        help="where the data is written" + (" (default %(default)s)" if default else ""),
    )
    add_overwrite(parser)


def add_overwrite(parser: Parser, folder: str = "DIR") -> None:
    """folder: what help calls the one that --dest names."""
    parser.add_argument(
        "--overwrite", action="store_true", help=f"replace prepared data, of any kind, that is in {folder}"
    )


def print_written(dest: str, *recipe: str, what: str = "") -> None:
    """Print where the data is, and the command that trains on it. recipe: its name, if the data is for one. what: is
    written."""
    print(f"written to {dest}{what and ': '}{what}. To train on it:")
    folder = os.path.join(os.curdir, dest) if is_recipe(dest) and not recipe else dest
    print(" ".join(["fairseq-hmrnn train", *recipe, shlex.quote(folder)]))
