"""The multiply-adds that a language model needs, by part, for each symbol that it reads.

A product of a weight (R, C) with one vector is R C multiply-adds forward. Its backward pass is two products as large,
one for the gradient of the vector and one for that of the weight, over the same steps: PASSES. What is not a product
(gates, normalisation, softmax itself, the optimizer) does not count, so that no program quite reaches the limit.

HM-LSTM: a layer's products are needed where its boundaries say so,

    U[l] h[l]_t-1     once for every state: where the step is UPDATE or FLUSH. During a run of COPY steps the state and
                      with it the product are the same; the step that ends the run needs it, and so do the gates that
                      the straight-through gradient looks at during the run
    V[l] h[l+1]_t-1   at FLUSH, z' = 1
    W[l] h[l-1]_t     where the layer below closes a segment, z_below = 1; in layer 1 at every step
    W_e[l] h[l]       and layer l's columns of the output module's gates: once for every state, as U

Two things are left out on purpose, so that the limit is rather too strict: the closed products that the
straight-through gradient of a closed z asks for, and that layer 1's input has no more values than there are symbols
("layer 1's input" is counted at every step).
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Sequence

from calibration import closest_size

PASSES = 3  # forward, gradient of the input, gradient of the weight


class LayerShares(NamedTuple):
    """Shares of a layer's steps: its operations, and those at which the layer below closes a segment (layer 1: 1)."""

    update: float
    copy: float
    flush: float
    below: float


def dense(num_layers: int) -> Sequence[LayerShares]:
    """Nothing can be left out: what soft boundaries need."""
    return [LayerShares(1.0, 0.0, 1.0, 1.0)] * num_layers


def hmlstm_multiply_adds(
    input_size: int,
    hidden_sizes: Sequence[int],
    output_size: int,
    num_symbols: int,
    shares: Sequence[LayerShares],
    detector_hidden: int = 0,
) -> Dict[str, float]:
    """Of hmlstm_lm forward, a symbol, by part. shares: of every layer, bottom to top. detector_hidden: units of the
    detectors' hidden layers; the top layer has no detector."""
    names = ("recurrent", "top-down", "bottom-up", "layer 1's input", "detectors", "output module", "softmax layer")
    parts = dict.fromkeys(names, 0.0)
    below, above = (input_size, *hidden_sizes[:-1]), (*hidden_sizes[1:], 0)
    for index, (size, share) in enumerate(zip(hidden_sizes, shares)):
        rows, states = 4 * size + 1, 1 - share.copy
        parts["recurrent"] += rows * size * states
        parts["top-down"] += rows * above[index] * share.flush
        parts["bottom-up" if index else "layer 1's input"] += rows * below[index] * share.below
        read = size * states + above[index] * share.flush + below[index] * share.below
        parts["detectors"] += detector_hidden * (read + 1) if above[index] else 0
        parts["output module"] += (output_size + len(hidden_sizes)) * size * states
    parts["softmax layer"] += output_size * num_symbols
    return parts


def lstm_multiply_adds(
    input_size: int, hidden_size: int, num_layers: int, output_size: Optional[int], num_symbols: int
) -> Dict[str, float]:
    """Of a language model over an LSTM forward, a symbol, by part. output_size: of a linear layer between the LSTM and
    the softmax layer, None for none."""
    inner = 4 * hidden_size * hidden_size
    return {
        "recurrent": num_layers * inner,
        "bottom-up": (num_layers - 1) * inner,
        "layer 1's input": 4 * hidden_size * input_size,
        "output module": hidden_size * (output_size or 0),
        "softmax layer": (output_size or hidden_size) * num_symbols,
    }


def lstm_parameters(
    input_size: int, hidden_size: int, num_layers: int, output_size: Optional[int], num_symbols: int
) -> int:
    """Parameters of the same, two biases a gate as torch has them."""
    products = lstm_multiply_adds(input_size, hidden_size, num_layers, output_size, num_symbols)
    biases = 8 * hidden_size * num_layers + (output_size or 0) + num_symbols
    return num_symbols * input_size + sum(products.values()) + biases


def equal_hidden_size(
    parameters: int, input_size: int, num_layers: int, output_size: Optional[int], num_symbols: int
) -> int:
    """The size of layers that makes an LSTM language model come closest to so many parameters."""

    def parameters_of(size: int) -> int:
        return lstm_parameters(input_size, size, num_layers, output_size, num_symbols)

    return closest_size(parameters, parameters_of)
