"""Whatever uses a trained model: reading and scoring text, sampling, search, export."""

from . import repetition, shallow_fusion
from .hub import LanguageModelHub
from .loading import load

__all__ = ["LanguageModelHub", "load"]

repetition.install()
shallow_fusion.install()
