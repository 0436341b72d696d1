from .hmlstm_lm import HMLSTMLanguageModel

__all__ = ["HMLSTMLanguageModel"]
