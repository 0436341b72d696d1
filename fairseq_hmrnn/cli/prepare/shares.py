"""Arguments for the shares of a text, or of its writers, that become validation and test."""

from __future__ import annotations

import argparse
from typing import Collection, Dict

from ..arguments import SHARE, SHARE_OR_NONE, Parser
from ..errors import UserError


def add_shares(parser: Parser, valid: str, test: str, defaults: Dict[str, float], no_test: bool = False) -> None:
    """--valid-fraction and --test-fraction. valid, test: their help. defaults: by split. no_test: whether 0 is a share
    for testing."""
    for split, text, kind in (("valid", valid, SHARE), ("test", test, SHARE_OR_NONE if no_test else SHARE)):
        text = f"{text} (default {defaults[split]})"
        parser.add_argument(f"--{split}-fraction", type=kind, metavar="F", help=text)


def shares(args: argparse.Namespace, defaults: Dict[str, float], given: Collection[str] = ()) -> Dict[str, float]:
    """The shares by split, except for those `given`, which have texts of their own. UserError for a share of one of
    these, and for shares that leave nothing to train on."""
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
