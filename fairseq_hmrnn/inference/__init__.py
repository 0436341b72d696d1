"""Whatever uses a trained model: reading and scoring text, sampling, search, export."""

from .hub import LanguageModelHub

__all__ = ["LanguageModelHub"]
