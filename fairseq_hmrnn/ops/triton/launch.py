"""Both passes over given buffers: the launches of the kernels, and the products of tall matrices around them."""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import triton
from torch import Tensor

from ..boundary import BOUNDARY_MODES
from ..detector import hidden_gradients, read_by
from ..host import shared_memory
from ..reference import LAYER_NORM_EPS
from ..types import BOTTOM_UP, NUM_GATES, NUM_PRODUCTS, RECURRENT, TOP_DOWN, DetectorHidden, LayerParameters, num_rows
from .backward import backward_cell, backward_products
from .buffers import SORTED_ROWS, Buffers
from .common import SPLIT
from .forward import forward_cell, forward_products


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, whatever they are."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


Launch = Tuple[Any, Tuple[int, ...], Dict[str, Any]]  # a kernel, its grid, all its arguments but the phase


class Card(NamedTuple):
    """What the launches depend on; an H100 is assumed where there is no GPU."""

    multiprocessors: int = 132
    shared_memory: int = 227 * 1024  # bytes of one block at most
    capability: int = 9


def card_of(device: torch.device) -> Card:
    if device.type != "cuda":
        return Card()
    found = torch.cuda.get_device_properties(device)
    return Card(found.multi_processor_count, shared_memory(found), found.major)


class Launcher:
    """The launches over some buffers. A kernel's arguments are the buffers of their names, sizes and constants."""

    def __init__(self, buffers: Buffers):
        shape = buffers.shape
        self.buffers, self.shape, self.layers = buffers, shape, len(shape.sizes)
        self.cells_per_phase = -(-self.layers // 2)  # cells of one phase
        self.tiles = shape.rows // shape.block_m
        self.last_phase = 2 * (shape.steps - 1) + self.layers - 1
        block = triton.next_power_of_2(buffers.size_padded)
        both = dict(LAYERS=self.layers, PADDED=shape.padded, SIZE=buffers.size_padded, NORM=shape.layer_norm)
        self.product_constants = dict(
            ROWS=triton.next_power_of_2(shape.rows) if self.sort else shape.block_m,
            SORT=self.sort,
            UPCAST=shape.dtype == torch.bfloat16 and shape.device.type == "cpu",
            BLOCK_M=shape.block_m,
            BLOCK_K=self.block_k,
            num_warps=8 if self.wide and shape.block_m == 64 else 4,
            **both,
        )
        self.cell_constants = dict(
            SIZES=shape.sizes,
            BLOCK=block,
            HIDDEN=shape.hidden_padded,
            KEEP=buffers.keep,
            MODE=BOUNDARY_MODES.index(shape.boundary),
            NESTED=shape.nested_boundaries,
            TOP=shape.top_boundary,
            MASKED=shape.masked,
            num_warps=max(1, min(16, block // 64)),
            **both,
        )
        self.skipping = dict(TRAINING=shape.training, SKIP=shape.skip and not shape.copy_has_gate_gradients)

    @property
    def sort(self) -> bool:
        """Whether a product sorts its samples: with one tile there is nothing to gain."""
        return self.shape.skip and self.tiles > 1 and self.shape.rows <= SORTED_ROWS

    @property
    def wide(self) -> bool:
        """Whether products are computed in float32, without tensor cores."""
        return self.shape.dtype == torch.float32

    @property
    def block_k(self) -> int:
        widest = 64 if self.wide else 128
        return next(width for width in (widest, 64, 32, 16) if all(size % width == 0 for size in self.shape.padded))

    @property
    def chunk(self) -> int:
        """Columns of D that a program multiplies at once: at most 16 numbers of a thread, and no more than a warp loads
        of a row, so that sums stay within warps."""
        at_once = 16 * 32 * self.cell_constants["num_warps"] // max(1, self.shape.hidden_padded)
        fitting = (width for width in (128, 64, 32) if all(size % width == 0 for size in self.shape.padded))
        return next((width for width in fitting if width <= at_once), 16)

    def stages(self, block_n: int, programs: int) -> int:
        """How many stages let at most four tiles of a product be under way at once: fewer if the other programs of a
        multiprocessor then have room too, but two at least. Triton has as many tiles as stages where a warp group
        multiplies (wgmma and later), else one fewer."""
        card = card_of(self.shape.device)
        tile = (self.shape.block_m + block_n) * self.block_k * (4 if self.wide else 2)
        resident = -(-programs // card.multiprocessors)
        by_warp_groups = card.capability >= 9 and self.shape.block_m == 64 and not self.wide
        return max(2, min(4, card.shared_memory // (tile * resident))) + (not by_warp_groups)

    @property
    def products_of_a_phase(self) -> int:
        """How many there are at most: none from below in the first layer, none from above in the top layer."""
        return max(sum(1 + (layer > 0) + (layer + 1 < self.layers) for layer in range(first, self.layers, 2))
                   for first in range(min(2, self.layers)))  # fmt: skip

    def arguments(self, kernel) -> Dict[str, Any]:
        """Arguments common to all launches of a kernel: steps, samples, and the buffers that it names."""
        buffers = {name: value for name, value in vars(self.buffers).items() if name in kernel.arg_names}
        return dict(**buffers, steps=self.shape.steps, rows_padded=self.shape.rows)

    def launches_forward(self) -> List[Launch]:
        """The launches of a phase, in their order."""
        b, shape = self.buffers, self.shape
        block_n = math.gcd(64, NUM_GATES * shape.granule)  # no block may reach into the padding after a layer's rows
        grid = (NUM_GATES * b.size_padded // block_n, self.tiles, NUM_PRODUCTS * self.cells_per_phase)
        products = dict(
            **self.arguments(forward_products), **self.skipping, **self.product_constants, KEEP=b.keep, BLOCK_N=block_n,
            STRIDE_N=1 if b.transposed else b.size_padded, STRIDE_K=NUM_GATES * b.size_padded if b.transposed else 1,
            num_stages=self.stages(block_n, grid[0] * self.tiles * self.products_of_a_phase),
        )  # fmt: skip
        cell = dict(
            **self.arguments(forward_cell), **self.skipping, **self.cell_constants, HALF=b.hidden is not b.h,
            EPS=LAYER_NORM_EPS, CHUNK=self.chunk,
        )  # fmt: skip
        return [(forward_products, grid, products), (forward_cell, (shape.batch, self.cells_per_phase), cell)]

    def launches_backward(self) -> List[Launch]:
        """As `launches_forward`."""
        b, shape = self.buffers, self.shape
        grid = (b.size_padded // shape.granule, self.tiles, int(SPLIT) * NUM_PRODUCTS * self.cells_per_phase)
        cell = dict(
            **self.arguments(backward_cell), **self.cell_constants, COPY_GRADIENTS=shape.copy_has_gate_gradients
        )
        products = dict(
            **self.arguments(backward_products), **self.product_constants, BLOCK_N=shape.granule,
            num_stages=self.stages(shape.granule, grid[0] * self.tiles * int(SPLIT) * self.products_of_a_phase),
        )  # fmt: skip
        return [(backward_cell, (shape.batch, self.cells_per_phase), cell), (backward_products, grid, products)]

    def forward(self) -> None:
        b, shape = self.buffers, self.shape
        x = b.x.view(-1, shape.input_size)
        width = NUM_GATES * shape.padded[0]
        b.projected.view(-1, b.projected.size(2))[:, :width].copy_(float32_product(x, b.input_weight.t()))
        wide = x.float()
        torch.mv(wide, b.input_detector, out=b.projected_detector.view(-1))
        if shape.hidden_padded:
            units = b.projected_hidden.size(2)
            torch.mm(wide, b.input_detector_hidden.t(), out=b.projected_hidden.view(-1, units))
        launches = self.launches_forward()
        for phase in range(self.last_phase + 1):
            for kernel, grid, arguments in launches:
                kernel[grid](phase=phase, **arguments)

    def backward(self) -> None:
        """From the gradients in the buffers to those of the state before the first step, of all gates, and the sums
        over steps for biases and gains."""
        b = self.buffers
        for total in (b.bias_sums, b.detector_bias_sums, b.gain_sums, b.detector_gain_sums):
            total.zero_()
        launches = self.launches_backward()
        for phase in range(self.last_phase, -3, -1):  # before phase 0 nothing is sent any more, only collected
            for kernel, grid, arguments in launches if phase >= 0 else launches[:1]:
                kernel[grid](phase=phase, **arguments)

    def kind(self, index: int, product: int) -> Tensor:
        """Gradients of a product's gate rows, all steps, (T R, 4 padded)."""
        whole = self.buffers.gradients[product if self.shape.layer_norm else 0, index]
        return whole.view(-1, whole.size(2))[:, : NUM_GATES * self.shape.padded[index]]

    def source(self, index: int, product: int) -> Tensor:
        """The input of a product at every step, times its gate without layer normalisation, (T R, columns)."""
        b, shape = self.buffers, self.shape
        if (index, product) == (0, BOTTOM_UP):
            return b.x.view(-1, shape.input_size)
        if product == RECURRENT:
            return b.read[index, :-1, :, : shape.sizes[index]].flatten(0, 1)
        layer = index + 1 if product == TOP_DOWN else index - 1
        if product == TOP_DOWN:
            read, gate = b.hidden[layer, :-1], b.z[index, :-1]
        else:
            read, gate = b.hidden[layer, 1:], b.z[layer, 1:]
        read = read[..., : shape.sizes[layer]]
        read = read if shape.layer_norm else read * gate.unsqueeze(2).to(read.dtype)
        return read.flatten(0, 1)

    def weight_gradient(self, index: int, product: int) -> Tensor:
        """(4H+1, columns)"""
        source, size = self.source(index, product), self.shape.sizes[index]
        gates = torch.mm(self.kind(index, product).t(), source)
        grad = gates.new_empty(num_rows(size), source.size(1))
        grad[:-1].view(NUM_GATES, size, -1).copy_(self.buffers.unpadded_gates(gates, index))
        grad[-1] = torch.mv(source.float().t(), self.buffers.detector_gradients[product, index].view(-1))
        return grad

    def vector_gradient(self, index: int, gates: Tensor, last: Tensor) -> Tensor:
        """Sums over samples of (R, 4P) and (R) as (4H+1)."""
        rows = self.buffers.unpadded_gates(gates.sum(0), index).reshape(-1)
        return torch.cat([rows, last.sum(0, keepdim=True)]).to(self.shape.dtype)

    def detector_hidden_gradients(self, index: int) -> List[Optional[Tensor]]:
        """Gradients of the detector's hidden layer, in the order of LayerParameters."""
        b, sizes = self.buffers, self.shape.sizes
        if not self.shape.detector_hidden or not self.shape.detector_hidden[index]:
            return [None] * len(DetectorHidden._fields)
        hidden = [h[1:, :, :size] for h, size in zip(b.h, sizes)]
        start = [h[0, :, :size] for h, size in zip(b.h, sizes)]
        masks = [mask[:, :size] for mask, size in zip(b.masks, sizes)] if self.shape.masked else None
        read = read_by(index, b.x, hidden, start, b.z.permute(1, 2, 0), masks)
        parts, bias, output = b.detector_hidden(index)
        du = b.logit_gradients[index].view(-1)
        grads = hidden_gradients(DetectorHidden(torch.cat(parts, 1), bias, output), read, du)
        return [grad.to(self.shape.dtype) for grad in grads]

    def layer_gradients(self, index: int) -> List[Optional[Tensor]]:
        """In the order of LayerParameters."""
        b = self.buffers
        weights: List[Optional[Tensor]] = [None] * NUM_PRODUCTS
        gains: List[Optional[Tensor]] = [None] * NUM_PRODUCTS
        for p in range(NUM_PRODUCTS):
            if p == TOP_DOWN and index + 1 == self.layers:  # the top layer has no top-down product
                continue
            weights[p] = self.weight_gradient(index, p)
            if self.shape.layer_norm:
                gains[p] = self.vector_gradient(index, b.gain_sums[index, p], b.detector_gain_sums[index, p])
        bias = self.vector_gradient(index, b.bias_sums[index], b.detector_bias_sums[index])
        return [*weights, bias, *gains, *self.detector_hidden_gradients(index)]

    def input_gradient(self) -> Tensor:
        b, shape = self.buffers, self.shape
        grad = float32_product(self.kind(0, BOTTOM_UP), b.input_weight)
        grad = torch.addr(grad, b.scalars[1] * b.detector_gradients[BOTTOM_UP, 0].view(-1), b.input_detector)
        return grad.view(shape.steps, shape.rows, -1)[:, : shape.batch].to(shape.dtype)

    def gradients(self, need_x: bool, need_weights: bool) -> List[Optional[Tensor]]:
        """Runs the backward pass. Gradients of x, z, h, c and the weights, flat."""
        self.backward()
        b, batch = self.buffers, self.shape.batch
        layers = list(enumerate(self.shape.sizes))
        state = [t[index, :batch, :size].clone() for t in (b.dh, b.dc) for index, size in layers]
        weights = [g for index, _ in layers for g in self.layer_gradients(index)] if need_weights else [None] * (
            len(LayerParameters._fields) * self.layers)  # fmt: skip
        return [self.input_gradient() if need_x else None, b.dz[:, :batch].t().clone(), *state, *weights]
