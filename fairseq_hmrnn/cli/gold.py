"""Gold boundaries that commands compare with: the arguments that name them, and where they are."""

from __future__ import annotations

from typing import Dict, Optional

from ..analysis import segments
from . import arguments as kinds
from .errors import UserError
from .files import read_text

SEPARATOR = "|"
NAMED = ("whitespace", "lines")  # gold boundaries that no file is read for


def add_gold(parser: kinds.Parser) -> None:
    parser.add_argument(
        "--gold",
        metavar="GOLD",
        type=_gold,
        help="compare with: whitespace (word ends), lines (sentence ends), or a file, the same text with separators; "
        "each row twice: against the separator and the letter before it, or against the file and one symbol late",
    )
    parser.add_argument(
        "--separator",
        metavar="TEXT",
        type=kinds.separator,
        help="after each segment, in the output of `segment` and in the file of --gold (default: |)",
    )


def check_separator(args) -> None:
    """UserError for a --separator of a --gold that is no file."""
    if args.separator and args.gold in NAMED:
        raise UserError(f"--separator requires a file as --gold, not {args.gold}: leave it out")


def gold_boundaries(name: str, text: str, separator: Optional[str] = None) -> Dict[str, segments.Gold]:
    """Gold boundaries of a text, by alignment; the first one is where they stand in the text. UserError where there are
    none."""
    if name == "whitespace":
        golds = segments.word_gold(text)
    elif name == "lines":
        golds = {"newline": segments.line_gold(text)}
    else:
        marks = segments.segmented_gold(text, read_text(name), separator or SEPARATOR)
        golds = {"file": marks, "file, late": segments.late(marks)}
    if not any(gold.boundary.any() for gold in golds.values()):
        raise UserError(f"--gold {name}: there is no boundary in the text but its ends: give another")
    return golds


def _gold(argument: str) -> str:
    """whitespace, lines, or a file."""
    return argument if argument in NAMED else kinds.existing_file(argument)
