from .hmlstm_language_modeling import HMLSTMLanguageModelingTask

__all__ = ["HMLSTMLanguageModelingTask"]
