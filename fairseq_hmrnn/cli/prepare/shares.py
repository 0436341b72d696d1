"""Arguments for the shares of a text, or of its writers, that become validation and test."""

from __future__ import annotations

import argparse
from typing import Collection, Dict

from ..arguments import SHARE, Parser
from ..errors import UserError


def add_shares(parser: Parser, valid: str, test: str, defaults: Dict[str, float]) -> None:
    """--valid-fraction and --test-fraction. valid, test: their help. defaults: by split."""
    for split, text in (("valid", valid), ("test", test)):
        text = f"{text} (default {defaults[split]})"
        parser.add_argument(f"--{split}-fraction", type=SHARE, metavar="F", help=text)


def shares(args: argparse.Namespace, defaults: Dict[str, float], given: Collection[str] = ()) -> Dict[str, float]:
    """By split, but those that are given as they are. UserError for a share of one of these, and for shares that leave
    nothing to train on."""
    found = {}
    for split, default in defaults.items():
        share = getattr(args, f"{split}_fraction")
        if split not in given:
            found[split] = default if share is None else share
        elif share is not None:
            raise UserError(f"{split.upper()} is given, nothing is cut off for it: leave --{split}-fraction out")
    if sum(found.values()) >= 1:
        raise UserError("--valid-fraction and --test-fraction leave nothing to train on: give smaller numbers")
    return found
