from .attention import Attention
from .hm_lstm import HMLSTM
from .layer_output import LayerOutput
from .mixture_density import MixtureDensity, StepDistribution

__all__ = ["Attention", "HMLSTM", "LayerOutput", "MixtureDensity", "StepDistribution"]
