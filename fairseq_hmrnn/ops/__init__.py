"""The recurrence itself: torch only, time-major, no modules. Start reading at `reference.py`."""

from .boundary import BOUNDARY_MODES
from .capture import capturing, unless_all
from .cpu import PackedLayers
from .dispatch import BACKENDS, hm_lstm, pack_layers
from .parameters import LayerParameters
from .precision import state_dtype
from .products import layer_output, linear
from .recurrence import HMLSTMOutput, RecurrenceOptions
from .state import HMLSTMState

__all__ = [
    "BACKENDS",
    "BOUNDARY_MODES",
    "HMLSTMOutput",
    "HMLSTMState",
    "LayerParameters",
    "PackedLayers",
    "RecurrenceOptions",
    "capturing",
    "hm_lstm",
    "layer_output",
    "linear",
    "pack_layers",
    "state_dtype",
    "unless_all",
]
