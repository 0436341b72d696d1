from . import moving_average
from .hmlstm_lm import HMLSTMLanguageModel
from .translation import HMLSTMLSTMModel, HMLSTMModel, HMLSTMTransformerModel

moving_average.install()

__all__ = ["HMLSTMLSTMModel", "HMLSTMLanguageModel", "HMLSTMModel", "HMLSTMTransformerModel"]
