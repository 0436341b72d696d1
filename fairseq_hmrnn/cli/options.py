"""Print every option that the package adds to fairseq's commands, with the values it may have.

    fairseq-hmrnn options | less

`fairseq-train --help` stops before it comes to the options of models, tasks and criterions.
"""

from __future__ import annotations

import argparse

from fairseq.dataclass.utils import gen_parser_from_dataclass

from ..fairseq_hooks import registered_options
from ..options import CheckingParser
from .arguments import Parser


def add_arguments(parser: Parser) -> None:
    """Adds no arguments."""


def run(args: argparse.Namespace) -> None:
    for choice, config in registered_options().items():
        style = argparse.ArgumentDefaultsHelpFormatter
        parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, formatter_class=style)
        group = CheckingParser(parser.add_argument_group(f"with {choice}"), config)
        gen_parser_from_dataclass(group, config())
        print(parser.format_help())
