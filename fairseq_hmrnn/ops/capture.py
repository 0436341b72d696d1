"""Is what runs now being recorded? A recorder sees torch's operations, not what a kernel does with its memory."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor


def _nothing() -> bool:
    return False


# Absent from older torch, which then has neither torch.compile nor torch.export.
_is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", _nothing)
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", _nothing)


def capturing() -> bool:
    """Whether the call is recorded or run on tensors without data: by torch.jit.trace, torch.compile, torch.export,
    make_fx, FakeTensorMode or another dispatch mode."""
    return _is_compiling() or torch.jit.is_tracing() or bool(_dispatch_modes())


def unless_all(valid: Tensor) -> Optional[Tensor]:
    """None where everything is valid, which spares a kernel its work. A recorded graph cannot look: `valid`."""
    return None if not capturing() and valid.all() else valid


def exporting_onnx() -> bool:
    """Whether torch.onnx.export records the call: ONNX has no operators of ours."""
    return torch.onnx.is_in_onnx_export()


def refuse_capture(what: str) -> None:
    """RuntimeError where `what`, which reads memory that no recorder sees, would be recorded; torch.compile knows by
    itself what it cannot record."""
    if not _is_compiling() and capturing():
        raise RuntimeError(f"{what} cannot be traced or exported: call the module itself, with an explicit state")
