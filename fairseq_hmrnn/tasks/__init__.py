from .handwriting import HMLSTMHandwritingTask
from .hmlstm_language_modeling import HMLSTMLanguageModelingTask

__all__ = ["HMLSTMHandwritingTask", "HMLSTMLanguageModelingTask"]
