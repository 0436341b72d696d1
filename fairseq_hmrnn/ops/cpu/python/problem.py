"""The input of one call of the Python path, and the values that its forward pass saves for its backward pass."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...reference import LAYER_NORM_EPS
from ...types import NUM_PRODUCTS, HMLSTMState, LayerParameters, RecurrenceOptions, count_detectors

PRODUCTS = range(NUM_PRODUCTS)
WORTH_PACKING = 64  # rows of all steps together


class Inputs(NamedTuple):
    """Contiguous arguments of one call, shapes as in `ops.hm_lstm`."""

    x: Tensor
    layers: Tuple[LayerParameters, ...]
    state: HMLSTMState
    valid: Optional[Tensor]
    noise: Optional[Tensor]
    masks: Optional[Tuple[Tensor, ...]]
    options: RecurrenceOptions
    skip: bool

    def weight(self, index: int, product: int) -> Optional[Tensor]:
        return self.layers[index].weights[product]

    def gain(self, index: int, product: int) -> Optional[Tensor]:
        return self.layers[index].gains[product]

    @property
    def layer_norm(self) -> bool:
        return self.layers[0].layer_norm

    @property
    def copy_has_gate_gradients(self) -> bool:
        """Layer normalisation mixes the detector's gradient into all rows: then no step is without gate gradients."""
        return self.layer_norm and self.options.detector_grad_scale != 0

    def has_detector(self, index: int) -> bool:
        return index < count_detectors(len(self.layers), self.options.top_boundary)


class Product:
    """x to x weight^T with the weight packed once, by oneDNN where torch has it."""

    def __init__(self, weight: Tensor, reorder: bool):
        self.weight, self.packed = weight, None
        operators = torch.ops.mkldnn
        if weight.dtype == torch.float32 and reorder and hasattr(operators, "_linear_pointwise"):
            self.packed = operators._reorder_linear_weight(weight.contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None or x.size(0) == 0:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class Normalised(NamedTuple):
    """A product of some rows before its gain: n (N, 4H+1), and with layer norm 1 / deviation (N, 1)."""

    n: Tensor
    rstd: Optional[Tensor]


def normalise(p: Tensor, layer_norm: bool) -> Normalised:
    if not layer_norm:
        return Normalised(p, None)
    variance, mean = torch.var_mean(p, dim=1, unbiased=False, keepdim=True)
    rstd = (variance + LAYER_NORM_EPS).rsqrt()
    return Normalised((p - mean) * rstd, rstd)


class Cell(NamedTuple):
    """The values of one cell that the backward pass needs. The last two are None where no sample is idle; c_prev and c
    where nothing is kept, for lack of rows or of a backward pass."""

    rows: Tensor  # (N,) samples computed in full
    gates: Tuple[Tensor, ...]  # f, i, o, g, each (N, H)
    c_prev: Optional[Tensor]  # (N, H), as c
    c: Optional[Tensor]
    products: List[Optional[Normalised]]  # with layer norm
    z_prev: Tensor  # (B,), as z_below
    z_below: Tensor
    u: Tensor  # (B,)
    idle: Optional[Tensor]  # (M,) samples of COPY steps not among `rows`
    runs: Optional[Tensor]  # (M,) where in `Saved.coefficients` their runs stand


class Saved(NamedTuple):
    cells: List[List[Cell]]  # [t][layer]
    coefficients: List[List[Tensor]]  # [layer]: of runs of COPY steps, pieces of (., 3, H)
    copy_statistics: List[List[Tensor]]  # [layer]: pieces of (., 2), with layer norm: 1 / deviation, detector row


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows in ascending order, without duplicates: all of them is x itself."""
    return x if rows.numel() == x.size(0) else x.index_select(0, rows)
