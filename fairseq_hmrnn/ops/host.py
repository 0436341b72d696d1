"""Questions that the host can answer without waiting for a GPU, as it would to read a value."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from .capture import capturing


def is_on_host(tensor: Tensor) -> bool:
    """Whether its values can be read at no cost. Code that reads them elsewhere makes training wait at every step."""
    return tensor.device.type == "cpu"


def valid_or_none(valid: Tensor) -> Optional[Tensor]:
    """`valid` as `hm_lstm` takes it, bool of any shape: None where nothing is padding, if that can be known at no
    cost. Kernels on a GPU take the mask in their stride, and a recorded graph cannot look."""
    return None if is_on_host(valid) and not capturing() and bool(valid.all()) else valid


def shared_memory(properties: Any) -> int:
    """Bytes of shared memory that a block may have, by a GPU's `torch.cuda.get_device_properties` of torch 2.8."""
    return properties.shared_memory_per_block_optin
