"""The model that reads a text for a command, and how late its boundaries come."""

from __future__ import annotations

import argparse
from typing import Any, Tuple

from ..criterions.boundary_terms import delay_of
from ..inference import hub
from ..inference.reader import CharacterReader
from .errors import UserError


def load_reader(args: argparse.Namespace) -> Tuple[CharacterReader, int, Any]:
    """A reader, by how many characters boundaries are put back, and the criterion's options in the checkpoint.

    args: those of add_text_to_read, and lookahead. UserError for a model without a detector.
    """
    model = hub.load([args.checkpoint], args.data)
    reader, criterion = model.reader(args.independent_lines), model.cfg.criterion
    if not reader.num_detectors:
        raise UserError(f"the one layer of {args.checkpoint} has no boundary detector: train two, or --top-boundary")
    return reader, delay_of(criterion) if args.lookahead is None else args.lookahead, criterion
