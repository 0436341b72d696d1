"""Questions about a tensor that the host can answer without waiting for a GPU, as reading a value would."""

from __future__ import annotations

from typing import Optional

from torch import Tensor

from .capture import capturing


def is_on_host(tensor: Tensor) -> bool:
    """Whether its values can be read at no cost. Code that reads them elsewhere makes training wait at every step."""
    return tensor.device.type == "cpu"


def valid_or_none(valid: Tensor) -> Optional[Tensor]:
    """`valid` as `hm_lstm` takes it, bool of any shape: None where nothing is padding, if that can be known at no
    cost. Kernels on a GPU take the mask in their stride, and a recorded graph cannot look."""
    return None if is_on_host(valid) and not capturing() and bool(valid.all()) else valid
