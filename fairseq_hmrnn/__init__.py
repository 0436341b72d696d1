"""Hierarchical Multiscale LSTM (arXiv 1609.01704) for fairseq. Importing registers all that the package adds."""

import importlib

from . import checkpoints, resumption, training_options
from .cli.errors import report_in_fairseq_commands

__version__ = "1.0.0"

checkpoints.install()
resumption.install()
training_options.install()
report_in_fairseq_commands()

_PARTS = ("criterions", "inference", "models", "optim", "tasks")  # imported now, for what they load must be checked
for _part in _PARTS:
    importlib.import_module(f"{__name__}.{_part}")

__all__ = ["checkpoints", "resumption", *_PARTS]
