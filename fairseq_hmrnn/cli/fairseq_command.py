"""fairseq's own commands, called in this process: signals, exit codes and logs are as if they had been run alone."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
import warnings
from typing import Sequence

import torch
from hydra.errors import HydraException

from .errors import UserError, is_for_users, raised_in

MODULES = {"fairseq-train": "fairseq_cli.train", "fairseq-hydra-train": "fairseq_cli.hydra_train"}
# Modules whose ValueErrors are about an option: numpy's about a seed.
CHECK_OPTIONS = ("fairseq.", "fairseq_cli.", "hydra.", "numpy.random.")
# Beginnings of warnings of hydra and torch that are for fairseq's programmers, not for its users.
OF_FAIRSEQ = (
    "The version_base parameter",
    "'.*' is validated against ConfigStore",
    "Future Hydra versions will no longer",
    "hydra.experimental",
    "In '.*': Usage of deprecated keyword",
    "The strict flag in the compose API",
    "'pin_memory' argument is set as true",
    r"`torch\.cuda\.amp\.autocast",
)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def call(command: str, arguments: Sequence[str]) -> None:
    """Run one of fairseq's commands. What this package raises there for users is passed on, and what fairseq, hydra or
    numpy says of options is a UserError; any other error ends the process as it ends fairseq's."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else hydra shows the last line of an error alone
    logging.disable(logging.NOTSET)
    for beginning in OF_FAIRSEQ:
        warnings.filterwarnings("ignore", rf"\s*{beginning}")
    logging.root.handlers.clear()  # of fairseq's tasks: its commands have a form of their own, if they come first
    before, sys.argv = sys.argv, [command, *arguments]
    try:
        importlib.import_module(MODULES[command]).cli_main()
    except HydraException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if is_for_users(error, error.__traceback__):
            raise
        if isinstance(error, ValueError) and raised_in(error.__traceback__).startswith(CHECK_OPTIONS):
            raise UserError(str(error)) from error
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.argv = before
