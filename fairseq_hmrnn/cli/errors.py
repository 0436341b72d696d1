"""Errors of every command: those that a user can fix end in one line on standard error and exit code 2.

Streams are put in order first: output is UTF-8 whatever the locale, and a descriptor that the caller closed is taken
by the null device, so that no file of the command is written to in its place.

A ValueError, a RuntimeError and the other USER_ERRORS are reported in one line, even where a library or a bug raised
them; every other error keeps its traceback. With FAIRSEQ_HMRNN_TRACEBACK=1 in the environment the former show theirs
too, before the line.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from typing import Callable, Optional, Tuple, Type

from ..checkpoints import FULL, UnsafeCheckpointError

EXIT_CODE = 2  # as argparse's
SHOW_TRACEBACK = "FAIRSEQ_HMRNN_TRACEBACK"  # a variable of the environment: set to anything but nothing
TOO_MUCH = "can't allocate memory"  # in the message of torch's RuntimeError


class UserError(Exception):
    """An input that cannot be used; the message is one line that says what to do."""


# Exceptions of the parts of a command where files, streams, encodings or arguments fail. torch and sentencepiece raise
# RuntimeError for them; two of its subclasses are errors of a program.
USER_ERRORS: Tuple[Type[BaseException], ...] = (UserError, argparse.ArgumentTypeError, OSError, ValueError)
USER_ERRORS += (ImportError, EOFError, MemoryError, OverflowError, RuntimeError)
PROGRAM_ERRORS = (NotImplementedError, RecursionError)


def run_command(main: Callable[[], Optional[int]], name: Optional[str] = None) -> None:
    """Call `main` and end the process unless all went well: with the exit code that it returns, with EXIT_CODE after a
    line "NAME: error: ..." for USER_ERRORS, and quietly, by the signal, where the reader of the output went away or
    after an interruption.

    name: of the command; None: that of the script.
    """
    try:
        _run_to_the_end(main, name or os.path.splitext(os.path.basename(sys.argv[0]))[0])
    except KeyboardInterrupt:  # also one that comes while an error is reported or a pipe has broken
        _end_by(signal.SIGINT)


def _run_to_the_end(main: Callable[[], Optional[int]], name: str) -> None:
    """As run_command, but for interruptions."""
    try:
        _order_streams()
        code = _exit_code(main)
        sys.stdout.flush()
    except PROGRAM_ERRORS:
        raise
    except BrokenPipeError:
        _end_by(signal.SIGPIPE)
    except USER_ERRORS as error:
        if os.environ.get(SHOW_TRACEBACK):
            _report(traceback.format_exc())
        _report(f"{name}: error: {describe(error)}")
        code = EXIT_CODE
    _flush_or_drop()
    if code:
        sys.exit(code)


def _exit_code(main: Callable[[], Optional[int]]) -> Optional[int]:
    """The exit code of main; a message in place of a code is reported, and 1."""
    try:
        return main()
    except SystemExit as stopped:
        if not isinstance(stopped.code, str):
            return stopped.code
        _report(stopped.code)
        return 1


def _report(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        pass


def report_in_fairseq_commands() -> None:
    """Have fairseq's own commands, if one of them runs, report this package's errors for users in one line too, with
    SHOW_TRACEBACK after their traceback; their exit code stays 1, and every other error is shown as before."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    name = os.path.basename((sys.argv or [""])[0]) if main is None else main.name
    before = sys.excepthook
    if not name.startswith(("fairseq-", "fairseq_cli.")) or before is not sys.__excepthook__:
        return

    def report(kind, error, trace):
        is_line = is_for_users(error, trace)
        if not is_line or os.environ.get(SHOW_TRACEBACK):
            before(kind, error, trace)
        if is_line:
            _report(f"{name}: error: {describe(error)}")

    sys.excepthook = report


def is_for_users(error: BaseException, trace) -> bool:
    """Whether this package's own code raised an error, with this trace, that a user of fairseq's commands can mend:
    one of bad input, a missing file or a checkpoint that must not be used."""
    if not isinstance(error, (ValueError, OSError, UnsafeCheckpointError)):
        return False
    return raised_in(trace).startswith("fairseq_hmrnn.")


def raised_in(trace) -> str:
    """The name of the module that raised the error with this traceback; empty if that is not known."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")


def describe(error: BaseException) -> str:
    """An error's message in one line."""
    if isinstance(error, (MemoryError, OverflowError)) or TOO_MUCH in str(error):
        first = str(error).strip().splitlines()[:1]
        return f"a size is too large for this machine: give smaller ones ({''.join(first) or type(error).__name__})"
    if isinstance(error, UnicodeError):
        return f"the text is not UTF-8: convert it first ({error})"
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"{error.filename} was not written" if error.filename else "the output was not written"
        return f"{where}: {error.strerror}: make room, or write it elsewhere"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _order_streams() -> None:
    """Take closed descriptors, have output written as UTF-8; UserError without a standard output."""
    logging.raiseExceptions = False  # a line of the log that cannot be written is no reason for a traceback
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
        raise UserError("standard output is closed: redirect it, for instance to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a caller put another object there
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")


def _drop_output() -> None:
    """Discards output that is still in buffers or comes later."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _flush_or_drop() -> None:
    """Empty the buffers, so that nothing can fail when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _drop_output()


def _end_by(number: int) -> None:
    """End as a process without a handler for the signal does; an interruption meanwhile ends it too."""
    for each in (signal.SIGINT, number):
        signal.signal(each, signal.SIG_DFL)
    _flush_or_drop()
    os.kill(os.getpid(), number)
