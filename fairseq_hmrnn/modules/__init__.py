from .hm_lstm import HMLSTM
from .layer_output import LayerOutput

__all__ = ["HMLSTM", "LayerOutput"]
