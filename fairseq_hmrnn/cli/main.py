"""HM-LSTM for fairseq: prepare data, train, and use what was trained.

    fairseq-hmrnn prepare text mytext.txt --dest data/mytext
    fairseq-hmrnn train data/mytext
    fairseq-hmrnn sample checkpoints/mytext --prompt "Once upon"
    fairseq-hmrnn COMMAND --help

A command is a module with a text like this one, `add_arguments(parser)` and `run(arguments)`, and a line in COMMANDS.
"""

from __future__ import annotations

import logging
import sys
from typing import List, Optional, Sequence

from . import (
    average,
    evaluate,
    export,
    options,
    path,
    plot,
    plot_handwriting,
    prepare,
    sample,
    sample_handwriting,
    segment,
    train,
)
from .arguments import Parser, PrintCompletion, ShowVersion, split_rest
from .errors import UserError, run_command

NAME = "fairseq-hmrnn"
COMMANDS = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "segment": segment,
    "plot": plot,
    "export": export,
    "average": average,
    "sample-handwriting": sample_handwriting,
    "plot-handwriting": plot_handwriting,
    "options": options,
    "path": path,
}


def build_parser() -> Parser:
    """The parser of all commands; what it parses has the chosen command's `run`."""
    parser = Parser(prog=NAME, description="\n".join((__doc__ or "").splitlines()[:-2]))
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, metavar="SHELL", choices=("bash", "zsh", "tcsh"),
        help="print what makes a shell complete this command (requires shtab), for instance into "
        f"~/.local/share/bash-completion/completions/{NAME}, and exit",
    )  # fmt: skip
    parser.add_commands(COMMANDS, "COMMAND")
    return parser


def run(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command that the arguments name, those of the process if None, and end the process unless all is well."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = f"{NAME} {given[0]}" if given and given[0] in COMMANDS else NAME
    run_command(lambda: _main(given), name)


def _main(given: List[str]) -> None:
    logging.disable(logging.INFO)  # fairseq's tasks turn all on, of all libraries
    parser = build_parser()
    if not given:
        parser.print_help()
        return
    own, passed_on = split_rest(given) if given[0] == "train" else (given, [])
    args, unknown = parser.parse_known_args(own)
    if unknown:
        where = "options of fairseq go after --" if given[0] == "train" else "--help says more"
        raise UserError(f"unrecognized arguments: {' '.join(unknown)[:1000]} ({where})")
    args.passed_on = passed_on
    args.run(args)
