from . import moving_average
from .handwriting import HandwritingModel, HMLSTMHandwritingModel
from .hmlstm import HMLSTMModel
from .hmlstm_lm import HMLSTMLanguageModel
from .hmlstm_lstm import HMLSTMLSTMModel
from .hmlstm_transformer import HMLSTMTransformerModel

moving_average.install()

__all__ = [
    "HandwritingModel",
    "HMLSTMHandwritingModel",
    "HMLSTMLSTMModel",
    "HMLSTMLanguageModel",
    "HMLSTMModel",
    "HMLSTMTransformerModel",
]
