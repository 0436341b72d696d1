"""Whatever uses a trained model: reading and scoring text, sampling, search, export."""

from .hub import LanguageModelHub
from .loading import load

__all__ = ["LanguageModelHub", "load"]
