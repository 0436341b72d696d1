"""Arguments of commands: a parser whose errors are one line, and the kinds of argument that commands take.

A kind is a function for argparse's `type`. Numbers are ranges of `options.whole` and `options.number`.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import tempfile
from typing import Any, List, Mapping, Sequence, Tuple

from ..analysis.plots import check_path
from ..data.folders import DICTIONARY, how_to_prepare
from ..options import LARGEST_SIZE, PROBABILITY, number, whole
from .errors import UserError
from .recipe import check_folder

GENERATOR_SEED = whole(0, 2**63 - 1)  # of generators of random numbers
THREADS = whole(1, max(256, os.cpu_count() or 1))
COUNT = whole(1)
BATCH_SIZE = whole(1, 2**16)
STEPS = whole(1, LARGEST_SIZE)
SHARE = number(0, 1, open_below=True, open_above=True)
SHARE_OR_NONE = number(0, 1, open_above=True)
RATE = PROBABILITY


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of its description; an error is a UserError (errors.py)."""

    def __init__(self, *arguments, **keywords):
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **keywords)

    def print_help(self, file=None):
        print(self.format_help(), end="", file=file)  # argparse's own says nothing if it cannot be written

    def error(self, message):
        raise UserError(f"{message[:1000]} (--help says more)")

    def add_commands(self, commands: Mapping[str, Any], metavar: str) -> None:
        """Commands of their own names: modules with a text whose first line says what each does, `add_arguments` and
        `run`, which is called with what was parsed, as its attribute `run`."""
        group = self.add_subparsers(metavar=metavar, title="commands", required=True)
        for name, module in commands.items():
            text = module.__doc__ or ""
            parser = group.add_parser(name, help=text.partition("\n")[0].rstrip("."), description=text)
            if hasattr(module, "run"):
                parser.set_defaults(run=module.run)
            module.add_arguments(parser)


class ShowVersion(argparse.Action):
    """Prints the version of the package, and ends."""

    def __call__(self, parser, namespace, values, option_string=None):
        package = sys.modules[__name__.partition(".")[0]]
        print(f"{parser.prog} {package.__version__}")
        parser.exit()


class PrintCompletion(argparse.Action):
    """Prints a shell's completion of the whole command, made by shtab, and ends."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            import shtab
        except ImportError as error:
            raise UserError(f"{option_string} requires shtab: pip install shtab") from error
        print(shtab.complete(parser, values))
        parser.exit()


def split_rest(arguments: Sequence[str]) -> Tuple[List[str], List[str]]:
    """A command's own arguments, before --, and those after it, which it passes on."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:split]), list(arguments[split + 1 :])


def text(argument: str) -> str:
    """Text that a model reads, or that is written: UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("is not UTF-8") from error
    return argument


def separator(argument: str) -> str:
    """Text of at least one character."""
    if not argument:
        raise argparse.ArgumentTypeError("must not be empty")
    return text(argument)


def path(argument: str) -> str:
    """The name of a file or folder."""
    if not argument:
        raise argparse.ArgumentTypeError("must be the name of a file or folder, not empty")
    return argument


def language(argument: str) -> str:
    """The ending of the files of a language."""
    if not argument or os.sep in argument:
        raise argparse.ArgumentTypeError(f"must be the ending of the files of a language, such as de, not {argument!r}")
    return argument


def existing_file(argument: str) -> str:
    """A regular file: what can be read to an end, and again."""
    refuse_irregular(path(argument))
    if not os.path.exists(argument):
        raise argparse.ArgumentTypeError(f"there is no file {argument}")
    return argument


def file_or_input(argument: str) -> str:
    """A regular file, or - for standard input."""
    return argument if argument == "-" else existing_file(argument)


def new_file(argument: str) -> str:
    """A file to write: a name in a folder that is there; a regular file of that name is replaced."""
    refuse_irregular(path(argument))
    folder = os.path.dirname(os.path.abspath(argument))
    if argument.endswith(os.sep) or not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"there is no folder {folder} to write to")
    if os.path.exists(argument) and not os.access(argument, os.W_OK):
        raise argparse.ArgumentTypeError(f"{argument} cannot be written to: give another name")
    refuse_unwritable(folder)
    return argument


def picture(argument: str) -> str:
    """A picture to write, whose suffix says of which format."""
    try:
        check_path(new_file(argument))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return argument


def page(argument: str) -> str:
    """A page for a browser to write."""
    if not new_file(argument).lower().endswith((".html", ".htm")):
        raise argparse.ArgumentTypeError(f"{argument}: the suffix must be .html")
    return argument


def folder_to_write(argument: str) -> str:
    """A folder, made by the command if it is not there."""
    if os.path.exists(path(argument)) and not os.path.isdir(argument):
        raise argparse.ArgumentTypeError(f"{argument} is a file: give a folder")
    refuse_unwritable(argument)
    return argument


def data_to_write(argument: str) -> str:
    """A folder for prepared data: of a name that fairseq reads as that of one folder."""
    check_folder(path(argument))
    return folder_to_write(argument)


def existing_folder(argument: str) -> str:
    """A folder that is there."""
    if not os.path.isdir(path(argument)):
        raise argparse.ArgumentTypeError(f"there is no folder {argument}")
    return argument


def prepared_folder(argument: str) -> str:
    """A folder of a prepared text, as an absolute path: fairseq sees one that begins with "." from a checkpoint's.
    UserError for a name that fairseq would read as something else."""
    if not os.path.isfile(os.path.join(path(argument), DICTIONARY)):
        raise argparse.ArgumentTypeError(f"no {argument}/{DICTIONARY}: {how_to_prepare(argument)}")
    return check_folder(argument)


def refuse_unwritable(folder: str) -> None:
    """ArgumentTypeError unless a folder, or the one that it would be made in, can be written to."""
    there = os.path.abspath(folder)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    try:
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=there):
            pass
    except OSError as error:
        reason = f"{there} cannot be written to ({error.strerror})"
        raise argparse.ArgumentTypeError(f"{reason}: give another place") from error


def refuse_irregular(argument: str) -> None:
    """ArgumentTypeError for what is there but no regular file: a folder, a pipe, a device."""
    try:
        mode = os.stat(argument).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{argument[:200]}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise argparse.ArgumentTypeError(f"{argument} is a folder: give a file")
    if not stat.S_ISREG(mode):
        raise argparse.ArgumentTypeError(f"{argument} is not a regular file: save what it gives in one first")


def add_checkpoint(parser: Parser) -> None:
    """The argument CHECKPOINT, of a command that reads one."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=path, help="a checkpoint, or a folder with checkpoint_best.pt"
    )


def add_text_to_read(parser: Parser) -> None:
    """The arguments of a command that reads a text with a model of characters."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="+",
        type=path,
        help="of an hmlstm_lm trained on characters; several: an ensemble, by the mean of their z~",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=prepared_folder,
        help="the prepared folder with its dict.txt (default: that of the training)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        default="-",
        type=file_or_input,
        help="a UTF-8 file; - reads standard input (default)",
    )
    parser.add_argument(
        "--independent-lines",
        action="store_true",
        help="read each line by itself, many at a time: for lines that have nothing to do with each other",
    )
