"""Checks of the arguments of the recurrence: ValueErrors that say what is wrong."""

from __future__ import annotations

import math
import numbers
from typing import Optional, Sequence

import torch
from torch import Tensor

from .boundary import BOUNDARY_MODES
from .precision import state_dtype
from .types import HMLSTMState, LayerParameters, RecurrenceOptions, count_detectors, num_rows


def check_options(options: RecurrenceOptions, noise: Optional[Tensor]) -> None:
    """A known boundary mode, a positive slope, and noise where the mode requires it."""
    if options.boundary not in BOUNDARY_MODES:
        raise ValueError(f"unknown boundary mode {options.boundary!r}: choose from {', '.join(BOUNDARY_MODES)}")
    slope = options.slope
    if not (isinstance(slope, Tensor) or isinstance(slope, numbers.Real) and 0 < slope < math.inf):
        raise ValueError(f"the slope of the hard sigmoid must be a positive and finite number, not {slope!r}")
    if (noise is None) == (options.boundary == "bernoulli"):
        raise ValueError('boundary="bernoulli" requires noise, and nothing else takes it')


def check_layers(layers: Sequence[LayerParameters]) -> None:
    """At least one; every weight has the rows of its layer and the columns of what it reads (the input may have any
    size), gains in all layers or in none, and one floating-point dtype and one device for all. Which layers may have a
    detector with a hidden layer depends on the options: `check_detectors`."""
    if not layers or not all(isinstance(layer, LayerParameters) for layer in layers):
        raise ValueError(f"layers must be at least one LayerParameters, got {[type(p).__name__ for p in layers]}")
    input_size = layers[0].weight_bottom_up.size(-1)
    sizes = [layer.hidden_size for layer in layers]
    dtype, device = layers[0].weight_recurrent.dtype, layers[0].weight_recurrent.device
    layer_norm = layers[0].layer_norm  # of all or of none
    if not dtype.is_floating_point:
        raise ValueError(f"the weights must be floating-point numbers, not {dtype}")
    for index, layer in enumerate(layers):
        rows = num_rows(sizes[index])
        above = sizes[index + 1] if index + 1 < len(sizes) else None
        needed = {
            "weight_recurrent": (rows, sizes[index]),
            "weight_bottom_up": (rows, sizes[index - 1] if index else input_size),
            "weight_top_down": None if above is None else (rows, above),
            "bias": (rows,),
            "gain_recurrent": (rows,) if layer_norm else None,
            "gain_bottom_up": (rows,) if layer_norm else None,
            "gain_top_down": (rows,) if layer_norm and above is not None else None,
            **_detector_hidden_shapes(layer),
        }
        for name, shape in needed.items():
            tensor = getattr(layer, name)
            found = None if tensor is None else tuple(tensor.shape)
            if found != shape:
                raise ValueError(f"{name} of layer {index} has shape {found}, expected {shape}")
            if tensor is not None and (tensor.dtype != dtype or tensor.device != device):
                raise ValueError(
                    f"{name} of layer {index} is {tensor.dtype} on {tensor.device}, but weight_recurrent of layer 0 is "
                    f"{dtype} on {device}: a model has one dtype and one device (module.to)"
                )


def _detector_hidden_shapes(layer: LayerParameters) -> dict:
    """The shapes of a detector's hidden layer that fit the rest of its layer; empty where there is none."""
    given = (layer.detector_hidden_weight, layer.detector_hidden_bias, layer.detector_output)
    if all(tensor is None for tensor in given):
        return {}
    units = max([1, *(tensor.size(0) for tensor in given if tensor is not None and tensor.dim())])
    columns = sum(weight.size(-1) for weight in layer.weights if weight is not None)
    return {
        "detector_hidden_weight": (units, columns),
        "detector_hidden_bias": (units,),
        "detector_output": (units,),
    }


def check_detectors(layers: Sequence[LayerParameters], options: RecurrenceOptions) -> None:
    """A hidden layer in every detector or in none, and none in a layer without detector."""
    last = count_detectors(len(layers), options.top_boundary)
    hidden = [layer.detector_output is not None for layer in layers]
    if not any(hidden):  # every single step comes here
        return
    if any(hidden[last:]):
        raise ValueError("the top layer has no detector without top_boundary, so none that has a hidden layer")
    if len(set(hidden[:last])) > 1:
        raise ValueError(f"every detector has a hidden layer or none: of layers {list(range(last))} {hidden[:last]}")


def check_input(x: Tensor, input_size: int, tokens: Optional[Tensor] = None) -> None:
    """x is a tensor (T, B, input_size), or with tokens, int64 (T, B), the table (symbols, input_size)."""
    if tokens is None:
        if not isinstance(x, Tensor):
            raise ValueError(f"x must be a tensor (T, B, {input_size}), got {type(x).__name__}")
        if x.dim() != 3 or x.size(2) != input_size:
            raise ValueError(f"x must be (T, B, {input_size}) for these layers, got {tuple(x.shape)}")
        return
    if not isinstance(x, Tensor) or not isinstance(tokens, Tensor):
        raise ValueError(f"x and tokens must be tensors, got {type(x).__name__} and {type(tokens).__name__}")
    if x.dim() != 2 or x.size(1) != input_size:
        raise ValueError(f"with tokens x must be (symbols, {input_size}) for these layers, got {tuple(x.shape)}")
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.device != x.device:
        raise ValueError(
            f"tokens must be int64 (T, B) on {x.device}, got {tokens.dtype} {tuple(tokens.shape)} on {tokens.device}"
        )


def _check_tensor(name: str, layer: Optional[int], tensor, shape, dtype, of_weights, device) -> None:
    """ValueError for what is no tensor of this shape, dtype and device. Every single step comes here some ten times, so
    the message is made where one is due."""
    if isinstance(tensor, Tensor) and tensor.shape == shape and tensor.dtype == dtype and tensor.device == device:
        return
    name, shape = name if layer is None else f"{name}[{layer}]", tuple(shape)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor of shape {shape}, got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    raise ValueError(
        f"{name} is {tensor.dtype} on {tensor.device}, but with weights of {of_weights} on {device} it must be {dtype} "
        f"on {device}"
    )


def check_tensors(x, layers, state, valid, noise, recurrent_masks, tokens=None, projected: bool = False) -> None:
    """Shapes against x and the layers; one device throughout, and the dtypes that `hm_lstm` says. projected: x is
    what PackedLayers.project makes of it."""
    if not isinstance(state, HMLSTMState):
        raise ValueError(
            f"state must be an HMLSTMState(h, c, z), as a call returns it and zero_state makes one, got a "
            f"{type(state).__name__}"
        )
    lowest = layers[0].weight_bottom_up
    input_size = lowest.size(0) + layers[0].detector_units if projected else lowest.size(1)
    check_input(x, input_size, tokens)
    steps, batch_size = (x if tokens is None else tokens).shape[:2]
    num_layers, weight = len(layers), layers[0].weight_recurrent
    dtype, of_state, device = weight.dtype, state_dtype(weight.dtype), weight.device
    of_layers = [("state.h", state.h), ("state.c", state.c)]
    if recurrent_masks is not None:
        of_layers.append(("recurrent_masks", recurrent_masks))
    for name, tensors in of_layers:
        if len(tensors) != num_layers:
            raise ValueError(f"{name} has {len(tensors)} layers, the model has {num_layers}")
    _check_tensor("x", None, x, x.shape, dtype, dtype, device)
    _check_tensor("state.z", None, state.z, (batch_size, num_layers), of_state, dtype, device)
    for name, tensors in of_layers:
        for index, tensor in enumerate(tensors):
            shape = batch_size, layers[index].weight_recurrent.size(1)
            _check_tensor(name, index, tensor, shape, of_state, dtype, device)
    if noise is not None:
        _check_tensor("noise", None, noise, (steps, batch_size, num_layers), of_state, dtype, device)
    if valid is not None:
        if not isinstance(valid, Tensor):
            raise ValueError(f"valid must be a bool tensor of shape {(steps, batch_size)}, got {type(valid).__name__}")
        if tuple(valid.shape) != (steps, batch_size) or valid.dtype != torch.bool or valid.device != x.device:
            raise ValueError(
                f"valid must be bool of shape {(steps, batch_size)} on {x.device}, "
                f"got {valid.dtype} {tuple(valid.shape)} on {valid.device}"
            )
