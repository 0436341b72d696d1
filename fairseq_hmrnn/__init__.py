"""Hierarchical Multiscale LSTM (arXiv 1609.01704) for fairseq. Importing registers all that the package adds."""

from . import checkpoints, resumption
from .cli.errors import tell_in_fairseq_commands

checkpoints.install()
resumption.install()
tell_in_fairseq_commands()

from . import criterions, inference, models, optim, tasks  # noqa: E402  (what they load must be checked)

__version__ = "0.1.0"
__all__ = ["checkpoints", "criterions", "inference", "models", "optim", "resumption", "tasks"]
