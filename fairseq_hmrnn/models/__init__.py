from . import moving_average
from .hmlstm import HMLSTMModel
from .hmlstm_lm import HMLSTMLanguageModel
from .hmlstm_lstm import HMLSTMLSTMModel
from .hmlstm_transformer import HMLSTMTransformerModel

moving_average.install()

__all__ = ["HMLSTMLSTMModel", "HMLSTMLanguageModel", "HMLSTMModel", "HMLSTMTransformerModel"]
