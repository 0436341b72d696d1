"""Is what runs now being recorded? A recorder sees torch's operations, not what a kernel does with its memory."""

from __future__ import annotations

import torch


def _nothing() -> bool:
    return False


# Absent from older torch, which then has neither torch.compile nor torch.export.
_is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", _nothing)
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", _nothing)
_included = getattr(torch._C, "_dispatch_tls_is_dispatch_key_included", None)
_PRE_DISPATCH = getattr(getattr(torch._C, "DispatchKey", None), "PreDispatch", None)


def _before_dispatch() -> bool:
    """Whether operations are recorded before autograd takes them apart, by modes that have a stack of their own."""
    return _PRE_DISPATCH is not None and _included is not None and _included(_PRE_DISPATCH)


def capturing() -> bool:
    """Whether the call is recorded or run on tensors without data: by torch.jit.trace, torch.compile, torch.export,
    make_fx, FakeTensorMode or another dispatch mode."""
    return _is_compiling() or torch.jit.is_tracing() or bool(_dispatch_modes()) or _before_dispatch()


def exporting_onnx() -> bool:
    """Whether torch.onnx.export records the call: ONNX has no operators of ours."""
    return torch.onnx.is_in_onnx_export()


def refuse_capture(what: str) -> None:
    """RuntimeError where `what`, which reads memory that no recorder sees, would be recorded. torch.compile knows by
    itself what it cannot record, and other modes, such as one that counts operations, do no harm."""
    if _is_compiling() or not capturing():
        return
    modes = (torch._C._get_dispatch_mode(mode) for mode in _recorders())
    if torch.jit.is_tracing() or _before_dispatch() or any(mode is not None for mode in modes):
        raise RuntimeError(f"{what} cannot be traced or exported: call the module itself, with an explicit state")


def _recorders():
    """Keys of the modes that record a graph or run on tensors without data."""
    keys = getattr(torch._C, "_TorchDispatchModeKey", None)
    return () if keys is None else (keys.PROXY, keys.FAKE)
