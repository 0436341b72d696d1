from . import moving_average
from .handwriting import HandwritingModel, HMLSTMHandwritingModel
from .hmlstm_lm import HMLSTMLanguageModel
from .translation import HMLSTMLSTMModel, HMLSTMModel, HMLSTMTransformerModel

moving_average.install()

__all__ = [
    "HandwritingModel",
    "HMLSTMHandwritingModel",
    "HMLSTMLSTMModel",
    "HMLSTMLanguageModel",
    "HMLSTMModel",
    "HMLSTMTransformerModel",
]
