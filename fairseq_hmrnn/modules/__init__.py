from .attention import Attention
from .hm_lstm import HMLSTM
from .layer_output import LayerOutput

__all__ = ["Attention", "HMLSTM", "LayerOutput"]
