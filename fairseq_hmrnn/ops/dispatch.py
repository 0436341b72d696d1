"""The one entry to the recurrence: checks the arguments, then chooses who computes it."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from . import cpu
from .boundary import BOUNDARY_MODES
from .parameters import LayerParameters, num_rows
from .precision import LOW_PRECISION, autocast_dtype, autocast_is_on, state_dtype
from .recompute import in_chunks
from .recurrence import HMLSTMOutput, RecurrenceOptions
from .reference import hm_lstm_reference
from .state import HMLSTMState

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "cpu", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TRITON_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies
TRITON_SHARED_MEMORY = 64 * 1024  # bytes of one block: three stages of a product's tiles, with room to spare


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
) -> HMLSTMOutput:
    """Run an L-layer HM-LSTM over a sequence.

    x: (T, B, input_size), of the weights' dtype; T and B may be 0.
    layers: bottom to top.
    state: the state before the first step.
    valid: (T, B) bool; where False the sample keeps its state bit for bit and emits no boundary.
    noise: (T, B, L) uniform in [0, 1), wanted by boundary="bernoulli" alone.
    recurrent_masks: tuple over layers of (B, H_l), multiplied into h before the recurrent product at every step
        (variational dropout, scaling included); COPY keeps h itself.
    backend: one of BACKENDS. reference: the equations under plain autograd, anywhere. cpu: the hand-written kernel
        on CPU, compiled if it was built. triton: the kernels for float32, float16 and bfloat16 on an NVIDIA GPU. auto:
        triton or cpu where it can run, else reference.
    recompute_chunks: pieces of the sequence of which the backward pass computes one after the other again, see
        `recompute`; 1 keeps everything.

    With float16 or bfloat16 weights state, noise, masks, boundaries and boundary_probs are float32 and `hidden` has
    the weights' dtype; sums, gates and detectors are computed in float32, by the reference and on CPU everything is.
    Under autocast x and float32 weights are cast to its dtype on a GPU; on CPU x is cast to that of the weights.
    Raises ValueError where shapes, dtypes, devices or options do not fit.
    """
    if autocast_is_on(x):
        dtype = autocast_dtype(x, layers[0].weight_recurrent)
        x, layers = x.to(dtype), [layer.to(dtype) for layer in layers]
        with torch.autocast(x.device.type, enabled=False):
            return hm_lstm(x, layers, state, options, valid, noise, recurrent_masks, backend, recompute_chunks)
    check_options(options, backend)
    check_layers(layers, x.size(-1))
    check_tensors(x, layers, state, valid, noise, recurrent_masks)
    if (noise is None) == (options.boundary == "bernoulli"):
        raise ValueError('noise is wanted with boundary="bernoulli", and only then')
    run, dtype = choose(backend, x.device.type, x.dtype), x.dtype
    if dtype in LOW_PRECISION and run in (cpu.hm_lstm_cpu, hm_lstm_reference):
        x, layers = x.float(), [layer.to(torch.float32) for layer in layers]
    if recompute_chunks > 1 and x.size(0) > 1 and torch.is_grad_enabled():
        run = functools.partial(in_chunks, run, recompute_chunks)
    output = run(x, layers, state, options, valid, noise, recurrent_masks)
    return output._replace(hidden=tuple(h.to(dtype) for h in output.hidden))


@functools.lru_cache(maxsize=None)
def choose(backend: str, device_type: str, dtype: torch.dtype) -> Callable[..., HMLSTMOutput]:
    """Who computes on this device and dtype. Says so once, for the answer is cached."""
    if backend == "reference":
        logger.info("HM-LSTM runs the reference, as asked for")
        return hm_lstm_reference
    fits_cpu = device_type == "cpu" and state_dtype(dtype) in cpu.DTYPES
    if backend == "cpu" and not fits_cpu:
        raise ValueError(f'backend="cpu" runs floating-point numbers on CPU, not {dtype} on {device_type}')
    if backend == "triton" or (backend == "auto" and device_type == "cuda"):
        missing = missing_for_triton(device_type, dtype)
        if not missing:
            logger.info("HM-LSTM runs the Triton kernels")
            return importlib.import_module(".triton", __package__).hm_lstm_triton
        if backend == "triton":
            raise ValueError(f'backend="triton" cannot run: {missing}')
        logger.warning("HM-LSTM runs the reference, which is slow: the Triton kernels cannot run, %s", missing)
    elif not fits_cpu:
        logger.info("HM-LSTM runs the reference: no kernel for %s on %s", dtype, device_type)
    elif cpu.compiled is None:
        logger.info("HM-LSTM runs the Python path of the CPU kernel: the compiled one is missing (%s)", cpu.MISSING)
    else:
        logger.info("HM-LSTM runs the compiled CPU kernel")
    return cpu.hm_lstm_cpu if fits_cpu else hm_lstm_reference


def missing_for_triton(device_type: str, dtype: torch.dtype) -> str:
    """Why the Triton kernels cannot run on this device and dtype; empty where they can. Imports nothing of them
    before everything else is there."""
    if dtype not in TRITON_DTYPES:
        return f"they compute in float32, float16 and bfloat16, not {dtype}"
    if device_type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "the tensors are on CPU (set TRITON_INTERPRET=1 to try them there, slowly)"
    elif device_type != "cuda" or torch.version.hip is not None:
        return "they are for NVIDIA GPUs"
    elif tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 8):
        return f"they need torch 2.8 or later, this is {torch.__version__}"
    else:
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        if (device.major, device.minor) < TRITON_CAPABILITY:
            return f"{device.name} has compute capability {device.major}.{device.minor}, they need 8.0"
        shared = getattr(device, "shared_memory_per_block_optin", TRITON_SHARED_MEMORY)
        if shared < TRITON_SHARED_MEMORY:
            return f"{device.name} has {shared} bytes of shared memory for a block, they need {TRITON_SHARED_MEMORY}"
    try:
        importlib.import_module(".triton", __package__)
    except ImportError as error:
        return f"importing them failed ({error}): pip install triton"
    return ""


def pack_layers(layers: Sequence[LayerParameters], backend: str = "auto") -> Optional[cpu.PackedLayers]:
    """The weights as they are now, packed for many single steps; None where not the CPU kernel runs them."""
    weight = layers[0].weight_recurrent
    fits = weight.dtype in cpu.DTYPES and choose(backend, weight.device.type, weight.dtype) is cpu.hm_lstm_cpu
    return cpu.PackedLayers(layers) if fits else None


def check_options(options: RecurrenceOptions, backend: str) -> None:
    if options.boundary not in BOUNDARY_MODES:
        raise ValueError(f"unknown boundary mode {options.boundary!r}: choose from {', '.join(BOUNDARY_MODES)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose from {', '.join(BACKENDS)}")
    if not options.slope > 0:
        raise ValueError(f"the slope of the hard sigmoid must be positive, not {options.slope}")


def check_layers(layers: Sequence[LayerParameters], input_size: int) -> None:
    """Every weight has the rows of its layer and the columns of what it reads."""
    sizes = [layer.hidden_size for layer in layers]
    for index, layer in enumerate(layers):
        rows = num_rows(sizes[index])
        above = sizes[index + 1] if index + 1 < len(sizes) else None
        wanted = {
            "weight_recurrent": (rows, sizes[index]),
            "weight_bottom_up": (rows, sizes[index - 1] if index else input_size),
            "weight_top_down": None if above is None else (rows, above),
            "bias": (rows,),
            "gain_recurrent": (rows,) if layer.layer_norm else None,
            "gain_bottom_up": (rows,) if layer.layer_norm else None,
            "gain_top_down": (rows,) if layer.layer_norm and above is not None else None,
        }
        for name, shape in wanted.items():
            tensor = getattr(layer, name)
            found = None if tensor is None else tuple(tensor.shape)
            if found != shape:
                raise ValueError(f"{name} of layer {index} has shape {found}, expected {shape}")


def check_tensors(x, layers, state, valid, noise, recurrent_masks) -> None:
    """Shapes against x and the layers; one device throughout, and the dtypes that `hm_lstm` says."""
    if x.dim() != 3:
        raise ValueError(f"x must be (T, B, input_size), got {tuple(x.shape)}")
    steps, batch_size = x.shape[:2]
    num_layers = len(layers)
    wanted = [("x", x, tuple(x.shape)), ("state.z", state.z, (batch_size, num_layers))]
    for name, tensors in (("state.h", state.h), ("state.c", state.c), ("recurrent_masks", recurrent_masks)):
        if tensors is None:
            continue
        if len(tensors) != num_layers:
            raise ValueError(f"{name} has {len(tensors)} layers, the model has {num_layers}")
        wanted += [(f"{name}[{i}]", t, (batch_size, p.hidden_size)) for i, (t, p) in enumerate(zip(tensors, layers))]
    if noise is not None:
        wanted.append(("noise", noise, (steps, batch_size, num_layers)))
    weight = layers[0].weight_recurrent
    for name, tensor, shape in wanted:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        dtype = weight.dtype if name == "x" else state_dtype(weight.dtype)
        if tensor.dtype != dtype or tensor.device != weight.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, but with weights of {weight.dtype} on {weight.device} "
                f"it must be {dtype} on {weight.device}"
            )
    if valid is not None:
        if tuple(valid.shape) != (steps, batch_size) or valid.dtype != torch.bool or valid.device != x.device:
            raise ValueError(
                f"valid must be bool of shape {(steps, batch_size)} on {x.device}, "
                f"got {valid.dtype} {tuple(valid.shape)} on {valid.device}"
            )
