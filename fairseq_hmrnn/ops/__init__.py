"""The recurrence itself: torch only, time-major, no modules. Start reading at `reference.py`."""

from .attention_lstm import attention_lstm
from .boundary import BOUNDARY_MODES
from .capture import capturing
from .cpu import PackedLayers
from .hm_lstm import BACKENDS, hm_lstm, pack_layers
from .host import is_on_host, valid_or_none
from .library import make_recordable
from .precision import autocast_is_on, state_dtype
from .products import gated_sum, has_many_rows, layer_output, linear
from .types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions, count_detectors

__all__ = [
    "BACKENDS",
    "BOUNDARY_MODES",
    "HMLSTMOutput",
    "HMLSTMState",
    "LayerParameters",
    "PackedLayers",
    "RecurrenceOptions",
    "attention_lstm",
    "autocast_is_on",
    "capturing",
    "count_detectors",
    "gated_sum",
    "has_many_rows",
    "hm_lstm",
    "is_on_host",
    "layer_output",
    "linear",
    "make_recordable",
    "pack_layers",
    "state_dtype",
    "valid_or_none",
]
