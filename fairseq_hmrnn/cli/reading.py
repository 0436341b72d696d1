"""The model that reads a text for a command, and how late its boundaries come."""

from __future__ import annotations

import argparse
from typing import Any, List, Tuple

from ..inference import loading
from ..inference.reader import Lookahead, TextReader
from .errors import UserError


def load_reader(args: argparse.Namespace) -> Tuple[TextReader, Lookahead, List[Any]]:
    """A reader, by how many characters boundaries are put back, of all layers or of each, and the criterion's options
    in every checkpoint.

    args: those of add_text_to_read, and lookahead. UserError for a model without a detector.
    """
    model = loading.load(args.checkpoint, args.data)
    reader = model.reader(args.independent_lines)
    if not reader.num_detectors:
        raise UserError(f"the one layer of {args.checkpoint[0]} has no boundary detector: train two, or --top-boundary")
    return reader, model.delays[0] if args.lookahead is None else args.lookahead, model.criterions
