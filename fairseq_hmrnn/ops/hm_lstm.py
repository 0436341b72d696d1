"""The entry point of the recurrence: checks the arguments, then picks a backend."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import Callable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu, library
from .capture import capturing, exporting_onnx
from .checks import check_detectors, check_layers, check_options, check_tensors
from .cpu import kernel
from .host import shared_memory
from .precision import LOW_PRECISION, autocast_dtype, autocast_is_on, state_dtype
from .recompute import in_chunks, with_tokens
from .reference import hm_lstm_reference
from .types import HMLSTMOutput, HMLSTMState, LayerParameters, RecurrenceOptions

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "cpu", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TRITON_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies
TRITON_SHARED_MEMORY = 96 * 1024  # bytes of one block: two tiles of a product, with room to spare


def hm_lstm(
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    options: RecurrenceOptions,
    valid: Optional[Tensor] = None,
    noise: Optional[Tensor] = None,
    recurrent_masks: Optional[Sequence[Tensor]] = None,
    backend: str = "auto",
    recompute_chunks: int = 1,
    tokens: Optional[Tensor] = None,
    hidden_dtype: Optional[torch.dtype] = None,
) -> HMLSTMOutput:
    """Run an L-layer HM-LSTM over a sequence.

    x: (T, B, input_size), of the weights' dtype; T and B may be 0. With tokens a table (symbols, input_size).
    layers: bottom to top.
    state: the state before the first step.
    valid: (T, B) bool; where False the sample keeps its state bit for bit and emits no boundary, whatever x is there.
    noise: (T, B, L) uniform in [0, 1), for boundary="bernoulli" alone.
    recurrent_masks: tuple over layers of (B, H_l), multiplied into h before the recurrent product at every step
        (variational dropout, scaling included); COPY keeps h itself.
    backend: one of BACKENDS. reference: the equations under plain autograd, anywhere. cpu: the hand-written kernel
        on CPU, compiled if it was built. triton: the kernels for float32, float16 and bfloat16 on an NVIDIA GPU. auto:
        triton or cpu where it can run, else reference.
    recompute_chunks: pieces of the sequence of which the backward pass computes one after the other again, see
        `recompute`; 1 keeps everything.
    tokens: (T, B) int64, the row of the table x that each step reads. The compiled kernel then computes layer 1's
        bottom-up product once for each symbol instead of once for each step.
    hidden_dtype: of the output's `hidden`; None: that of the weights.

    With float16 or bfloat16 weights state, noise, masks, boundaries and boundary_probs are float32 and `hidden` has
    the weights' dtype; sums, gates and detectors are computed in float32. On CPU operands of products are bfloat16
    under bfloat16 weights (see RecurrenceOptions.bfloat16_products; not on the Python path) and float32 under float16
    ones.
    Under autocast x and float32 weights are cast to its dtype on a GPU; on CPU x is cast to that of the weights.
    While torch records a graph (torch.jit.trace, torch.export, torch.compile) it records one operator, see `library`;
    with backend="reference", for ONNX, and with torch before 2.4, the reference's operations of these T steps.
    Raises ValueError where kinds, shapes, dtypes, devices or options do not fit.
    """
    recorded = capturing()
    if isinstance(options.slope, Tensor) and not recorded:
        options = options._replace(slope=float(options.slope))
    check_layers(layers)
    if torch.jit.is_tracing() and isinstance(state, tuple) and len(state) == len(HMLSTMState._fields):
        state = HMLSTMState(*state)  # a tracer hands it over as a plain tuple
    if isinstance(x, Tensor) and autocast_is_on(x):
        dtype = autocast_dtype(x, layers[0].weight_recurrent)
        x, layers = x.to(dtype), [layer.to(dtype) for layer in layers]
        with torch.autocast(x.device.type, enabled=False):
            constants = (valid, noise, recurrent_masks, backend, recompute_chunks, tokens, hidden_dtype)
            return hm_lstm(x, layers, state, options, *constants)
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose from {', '.join(BACKENDS)}")
    check_options(options, noise)
    check_detectors(layers, options)
    check_tensors(x, layers, state, valid, noise, recurrent_masks, tokens)
    arguments = (x, layers, state, options, valid, noise, recurrent_masks)
    run = _record if recorded else compute
    return run(*arguments, backend, recompute_chunks, tokens, hidden_dtype)


def _record(
    x, layers, state, options, valid, noise, recurrent_masks, backend, recompute_chunks, tokens, hidden_dtype
) -> HMLSTMOutput:
    """`compute` while torch records a graph: one operator, or the reference's operations."""
    if tokens is not None:
        x = F.embedding(tokens, x)
    arguments = (x, layers, state, options, valid, noise, recurrent_masks)
    if captured is None or backend == "reference" or exporting_onnx():
        return _run(hm_lstm_reference, *arguments, hidden_dtype=hidden_dtype)
    output = captured(*arguments, backend, recompute_chunks)
    return output._replace(hidden=tuple(h.to(hidden_dtype or x.dtype) for h in output.hidden))


def compute(
    x: Tensor,
    layers: Sequence[LayerParameters],
    state: HMLSTMState,
    options: RecurrenceOptions,
    valid: Optional[Tensor],
    noise: Optional[Tensor],
    recurrent_masks: Optional[Sequence[Tensor]],
    backend: str,
    recompute_chunks: int,
    tokens: Optional[Tensor] = None,
    hidden_dtype: Optional[torch.dtype] = None,
) -> HMLSTMOutput:
    """`hm_lstm` after its checks: chooses the implementation for this backend, device and dtype, and runs it."""
    arguments = (x, layers, state, options, valid, noise, recurrent_masks)
    return _run(choose(backend, x.device, x.dtype), *arguments, recompute_chunks, tokens, hidden_dtype)


def _run(
    run, x, layers, state, options, valid, noise, recurrent_masks, recompute_chunks=1, tokens=None, hidden_dtype=None
) -> HMLSTMOutput:
    """Casts to the dtype in which `run` computes, cuts the sequence into recompute_chunks and calls `run`.
    hidden_dtype: of the output's `hidden`; None: that of x."""
    dtype = x.dtype
    if dtype in LOW_PRECISION and run in (cpu.hm_lstm_cpu, hm_lstm_reference):
        x, layers = x.float(), [layer.to(torch.float32) for layer in layers]
        options = options._replace(bfloat16_products=dtype == torch.bfloat16)
    elif options.bfloat16_products and run not in (cpu.hm_lstm_cpu, hm_lstm_reference):  # as autocast casts for it
        x, layers = x.to(torch.bfloat16), [layer.to(torch.bfloat16) for layer in layers]
    if tokens is not None and run is not cpu.hm_lstm_cpu:
        x, tokens = F.embedding(tokens, x), None
    if recompute_chunks > 1 and len(x if tokens is None else tokens) > 1 and torch.is_grad_enabled():
        run = functools.partial(in_chunks, run, recompute_chunks)
    output = run(x, layers, state, options, valid, noise, recurrent_masks, **with_tokens(tokens))
    return output._replace(hidden=tuple(h.to(hidden_dtype or dtype) for h in output.hidden))


@functools.lru_cache(maxsize=None)
def choose(backend: str, device: torch.device, dtype: torch.dtype) -> Callable[..., HMLSTMOutput]:
    """Who computes on this device and dtype. Says so once, for the answer is cached."""
    if backend == "reference":
        logger.info("HM-LSTM runs the reference, as asked for")
        return hm_lstm_reference
    fits_cpu = device.type == "cpu" and state_dtype(dtype) in cpu.DTYPES
    if backend == "cpu" and not fits_cpu:
        raise ValueError(f'backend="cpu" runs floating-point numbers on CPU, not {dtype} on {device}')
    if backend == "triton" or (backend == "auto" and device.type == "cuda"):
        missing = missing_for_triton(device, dtype)
        if not missing:
            logger.info("HM-LSTM runs the Triton kernels")
            return importlib.import_module(".triton", __package__).hm_lstm_triton
        if backend == "triton":
            raise ValueError(f'backend="triton" cannot run: {missing}')
        logger.warning("HM-LSTM runs the reference, which is slow: the Triton kernels cannot run, %s", missing)
    elif not fits_cpu:
        logger.info("HM-LSTM runs the reference: no kernel for %s on %s", dtype, device)
    elif kernel.compiled is None:
        kernel.warn_of_python_path()
    else:
        logger.info("HM-LSTM runs the compiled CPU kernel")
    return cpu.hm_lstm_cpu if fits_cpu else hm_lstm_reference


def missing_for_triton(device: torch.device, dtype: torch.dtype) -> str:
    """Why the Triton kernels cannot run on this device and dtype; empty where they can. Imports nothing of them
    before everything else is there."""
    if dtype not in TRITON_DTYPES:
        return f"they compute in float32, float16 and bfloat16, not {dtype}"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "the tensors are on CPU (set TRITON_INTERPRET=1 to try them there, slowly)"
    elif device.type != "cuda" or torch.version.hip is not None:
        return "they are for NVIDIA GPUs"
    elif tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 8):
        return f"they need torch 2.8 or later, this is {torch.__version__}"
    else:
        found = torch.cuda.get_device_properties(device)
        if (found.major, found.minor) < TRITON_CAPABILITY:
            return f"{found.name} has compute capability {found.major}.{found.minor}, they need 8.0"
        shared = shared_memory(found)
        if shared < TRITON_SHARED_MEMORY:
            return f"{found.name} has {shared} bytes of shared memory for a block, they need {TRITON_SHARED_MEMORY}"
    try:
        importlib.import_module(".triton", __package__)
    except ImportError as error:
        return f"importing them failed ({error}): pip install triton"
    return ""


def pack_layers(
    layers: Sequence[LayerParameters], backend: str = "auto", bfloat16: bool = False
) -> Optional[cpu.PackedLayers]:
    """The weights as they are now, packed for many single steps; None unless the CPU kernel runs them. bfloat16: pack
    weights of any dtype in it; the steps' tensors are then float32. ValueError as `hm_lstm`."""
    check_layers(layers)
    layers = [layer.to(torch.float32) for layer in layers] if bfloat16 else layers
    weight = layers[0].weight_recurrent
    fits = weight.dtype in cpu.DTYPES and choose(backend, weight.device, weight.dtype) is cpu.hm_lstm_cpu
    return cpu.PackedLayers(layers, bfloat16=bfloat16) if fits else None


captured = library.register(compute)
