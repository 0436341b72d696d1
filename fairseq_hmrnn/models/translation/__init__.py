from .hmlstm import HMLSTMModel
from .hmlstm_lstm import HMLSTMLSTMModel
from .hmlstm_transformer import HMLSTMTransformerModel

__all__ = ["HMLSTMLSTMModel", "HMLSTMModel", "HMLSTMTransformerModel"]
